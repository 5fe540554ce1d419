"""Notes about the data: single clips, and comparisons between clips."""

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from statistics import median
from typing import Any

import pyarrow as pa

ClipRow = Mapping[str, Any]
CONTENT = ("clip", "machine", "split", "label", "frames", "sum", "sum_squares", "digest")
"""Columns that ``odd_contents`` reads."""
_digest, _audio = itemgetter("digest"), itemgetter("machine", "digest")
_place = itemgetter("machine", "split", "digest")

MUCH_LONGER = 1.5  # times a training clip: ``rayasd score`` scores a longer recording in pieces


@dataclass(frozen=True)
class Oddity:
    """Something in a data folder that a person should know about."""

    path: str
    problem: str
    unusable: bool = False  # True: a clip that cannot take part; False: merely ignored or remarkable

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}"


def odd_contents(clips: pa.Table) -> list[Oddity]:
    """Set decoded clips side by side: leakage from training to test, contradicting labels, machines without sound.

    Returns one oddity a kind, of all machines together, with counts and the first pair.
    """
    rows: list[ClipRow] = clips.select(CONTENT).to_pylist()
    train = [row for row in rows if row["split"] == "train"]
    test = [row for row in rows if row["split"] == "test"]
    trained = _first_of_each(train, _audio)
    tested = _first_of_each((row for row in test if row["label"] is not None), _audio)
    leaked = [(row, trained[_audio(row)]) for row in test if _audio(row) in trained]
    contradicting = [
        (row, tested[_audio(row)])
        for row in test
        if row["label"] is not None and row["label"] != tested[_audio(row)]["label"]
    ]
    found = [
        *_pairs(leaked, "test clips hold the same audio as training clips"),
        *_pairs(contradicting, "test clips hold the same audio as test clips of the other label"),
        *_much_longer(train, test),
    ]
    if mute := sorted({row["machine"] for row in train} - {row["machine"] for row in train if not is_constant(row)}):
        problem = "all training clips are silent or constant: nothing can be learned from them"
        found.append(Oddity(", ".join(mute), problem))
    if silent := [row for row in train if is_constant(row)]:
        found.append(Oddity(_machines(silent), f"training clips are silent or constant, {silent[0]['clip']} first"))
    return found


def same_audio(clips: pa.Table) -> list[Oddity]:
    """Find clips that hold the same audio as one of another machine, or of their machine and split in another place.

    ``clips`` and what is returned are as of ``odd_contents``, which finds what lies in training and test.
    """
    rows = [row for row in clips.select(CONTENT).to_pylist() if not is_constant(row)]
    anywhere, alike = _first_of_each(rows, _digest), _first_of_each(rows, _place)
    elsewhere = [(row, anywhere[_digest(row)]) for row in rows if row["machine"] != anywhere[_digest(row)]["machine"]]
    twice = [(row, alike[_place(row)]) for row in rows if row is not alike[_place(row)]]
    return [
        *_pairs(elsewhere, "clips hold the same audio as clips of another machine"),
        *_pairs(twice, "clips hold the same audio as others of their machine and split"),
    ]


def is_constant(row: ClipRow) -> bool:
    """Whether all samples of a clip are the same: their variance is 0, exactly."""
    return bool(row["frames"] * row["sum_squares"] == row["sum"] ** 2)


def counted_problems(problems: Collection[str]) -> str:
    """Return in one line how many clips have a problem, and what is wrong with the first; none where there are none."""
    if not problems:
        return "none"
    first = next(iter(problems))
    return f"1 clip: {first}" if len(problems) == 1 else f"{len(problems)} clips, first {first}"


def _first_of_each(rows: Iterable[ClipRow], key: Callable[[ClipRow], Hashable]) -> dict[Hashable, ClipRow]:
    first: dict[Hashable, ClipRow] = {}
    for row in rows:
        first.setdefault(key(row), row)
    return first


def _much_longer(train: Sequence[ClipRow], test: Sequence[ClipRow]) -> list[Oddity]:
    """Find machines whose test clips are longer than what ``rayasd score`` takes for one clip."""
    lengths: dict[str, list[int]] = {}
    for row in train:
        lengths.setdefault(row["machine"], []).append(row["frames"])
    usual = {machine: median(of_machine) for machine, of_machine in lengths.items()}
    longer = [r for r in test if r["machine"] in usual and r["frames"] > MUCH_LONGER * usual[r["machine"]]]
    text = (
        f"test clips are more than {MUCH_LONGER:g} times as long as training clips, and rayasd score takes them in "
        "pieces: rayasd data index --cut SECONDS makes clips of one length"
    )
    return [Oddity(_machines(longer), text)] if longer else []


def _pairs(pairs: Sequence[tuple[ClipRow, ClipRow]], problem: str) -> list[Oddity]:
    if not pairs:
        return []
    (one, other), *_ = pairs
    text = f"{problem}, {one['clip']} = {other['clip']} first"
    return [Oddity(_machines([row for row, _ in pairs]), text)]


def _machines(rows: Iterable[ClipRow]) -> str:
    """Count rows by machine: fan 2, pump 1."""
    return ", ".join(f"{machine} {count}" for machine, count in sorted(Counter(row["machine"] for row in rows).items()))
