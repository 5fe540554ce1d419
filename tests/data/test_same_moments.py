from pathlib import Path

import numpy as np
import soundfile

from rayasd.data.machine_sounds import clip_of, product_of
from tests.command import Rayasd


def recording(seed: int) -> np.ndarray:
    return clip_of(product_of("slider", 0, 0), "source", 32000, 16000, np.random.default_rng(seed))


def write(path: Path, samples: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, 16000)


def test_another_microphone_s_clip_of_a_training_moment_is_named(rayasd: Rayasd, tmp_path: Path):
    """Same rhythm at other moments is no twin; a quieter, duller, noisier recording 2 ms later is."""
    folder = tmp_path / "slider"
    for n in range(6):
        write(folder / f"train/section_00_source_train_normal_000{n}.wav", recording(n))
        write(folder / f"source_test/section_00_source_test_normal_000{n}.wav", recording(100 + n))
    before = rayasd("data", "check", tmp_path)
    assert "of a moment" not in before.stdout
    moment = recording(3)
    other = np.convolve(np.roll(moment, 32), [0.2, 0.3, 0.2], mode="same")
    other += 0.1 * other.std() * np.random.default_rng(0).standard_normal(len(other))
    write(folder / "source_test/section_00_source_test_normal_0004.wav", other)
    found = rayasd("data", "check", tmp_path)
    assert "slider: 1 test clip of a moment that is in another training clip, too" in found.stdout
    assert "normal_0004.wav and slider/train/section_00_source_train_normal_0003.wav first" in found.stdout
    write(folder / "train/section_00_source_train_normal_0008.wav", recording(200))
    write(folder / "train/section_00_source_train_normal_0007.wav", np.roll(recording(200), 50) * 0.5)
    found = rayasd("data", "check", tmp_path)
    assert "slider: 2 train clips of a moment that is in another training clip, too" in found.stdout
    one = rayasd("data", "check", tmp_path, "--set", "data.groups=(normal_000)[78]")
    assert "train clips of a moment" not in one.stdout
    write(folder / "source_test/section_00_source_test_normal_0004.wav", moment)
    again = rayasd("data", "check", tmp_path)
    assert "test clip of a moment" not in again.stdout  # the same audio has a note of its own
    assert "same audio" in again.stdout
