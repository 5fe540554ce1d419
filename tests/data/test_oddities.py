import numpy as np
import pyarrow as pa
import pytest

from rayasd.data.decoding import Content
from rayasd.data.oddities import CONTENT, counted_problems, odd_contents, same_audio

NOISE, OTHER, MUTE = (np.full(100, 5, np.int16) for _ in range(3))
NOISE[3], OTHER[4] = 7, 9


def content(samples: np.ndarray) -> tuple[int, int, int, str]:
    described = Content()
    described.add(samples)
    return described.facts


def table(*rows: tuple[str, str, str, int | None, np.ndarray]) -> pa.Table:
    return pa.Table.from_pylist(
        [dict(zip(CONTENT, (*row[:4], *content(row[4])), strict=True)) for row in rows],
        pa.schema([(n, pa.int64() if n in ("label", *CONTENT[4:7]) else pa.string()) for n in CONTENT]),
    )


def test_leakage_is_within_a_machine_and_from_training_to_test():
    clips = table(
        ("a", "fan", "train", 0, NOISE), ("b", "fan", "train", 0, NOISE), ("c", "pump", "test", 0, NOISE),
        ("d", "fan", "test", 0, OTHER), ("e", "fan", "test", 0, OTHER),
    )  # fmt: skip
    assert odd_contents(clips) == []
    leaky = table(
        ("a", "fan", "train", 0, NOISE), ("b", "fan", "test", None, NOISE), ("c", "pump", "test", 1, OTHER),
        ("d", "pump", "train", 0, OTHER), ("e", "fan", "test", None, NOISE),
    )  # fmt: skip
    (odd,) = odd_contents(leaky)
    assert str(odd) == "fan 2, pump 1: test clips hold the same audio as training clips, b = a first"
    assert not odd.unusable


def test_the_same_audio_in_two_places_is_found():
    clips = table(
        ("a", "fan", "train", 0, NOISE), ("b/a", "fan", "train", 0, NOISE), ("c", "pump", "test", 0, NOISE),
        ("d", "fan", "test", 0, OTHER), ("e", "pump", "train", 0, MUTE), ("f", "fan", "train", 0, MUTE),
    )  # fmt: skip
    assert [str(odd) for odd in same_audio(clips)] == [
        "pump 1: clips hold the same audio as clips of another machine, c = a first",
        "fan 1: clips hold the same audio as others of their machine and split, b/a = a first",
    ]


def test_long_test_clips_are_counted():
    long = np.tile(NOISE, 2)
    clips = table(("a", "fan", "train", 0, NOISE), ("b", "fan", "test", 0, long), ("c", "pump", "test", 0, long))
    (odd,) = odd_contents(clips)
    assert str(odd).startswith("fan 1: test clips are more than 1.5 times as long")


@pytest.mark.parametrize(("labels", "number"), [((0, 1), 1), ((0, 0), 0), ((None, 1), 0), ((1, None), 0), ((1, 0), 1)])
def test_only_known_labels_contradict(labels: tuple[int | None, int | None], number: int):
    clips = table(("a", "fan", "test", labels[0], NOISE), ("b", "fan", "test", labels[1], NOISE))
    assert [odd.problem for odd in odd_contents(clips)] == [
        "test clips hold the same audio as test clips of the other label, b = a first"
    ] * number


def test_machines_without_sound_are_named():
    clips = table(
        ("a", "fan", "train", 0, MUTE), ("b", "fan", "train", 0, NOISE), ("c", "pump", "train", 0, MUTE),
        ("d", "pump", "test", 0, NOISE), ("e", "valve", "test", 0, MUTE),
    )  # fmt: skip
    assert [str(odd) for odd in odd_contents(clips)] == [
        "pump: all training clips are silent or constant: nothing can be learned from them",
        "fan 1, pump 1: training clips are silent or constant, a first",
    ]


def test_problems_are_counted_in_a_line():
    assert counted_problems([]) == "none"
    assert counted_problems(["a is cut off"]) == "1 clip: a is cut off"
    assert counted_problems(["a is cut off", "b"]) == "2 clips, first a is cut off"
