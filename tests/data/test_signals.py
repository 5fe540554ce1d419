"""What libsndfile does not read, from a folder to a score: vibration in .npy, .mat and .csv, and what ffmpeg reads."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import soundfile

from rayasd.config import DataConfig
from rayasd.data.audio import read_facts, read_samples
from rayasd.data.signals import by_ffmpeg
from rayasd.errors import BadClipError, StorageError
from rayasd.scoring.arrivals import Arrivals
from tests.command import Rayasd
from tests.conftest import small_sweep, write_clip, write_tree

RATE = 12000
ROWS = DataConfig(sample_rate=RATE, signal_rate=RATE, signal_column="acc_x")


def vibration(hz: float, seed: int) -> np.ndarray:
    """Half a second of acceleration in g."""
    time = np.arange(RATE // 2) / RATE
    return 3 * np.sin(2 * np.pi * hz * time) + 0.3 * np.random.default_rng(seed).standard_normal(len(time))


def write(path: Path, samples: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, samples)
    elif path.suffix == ".mat":
        scipy.io.savemat(path, {"X097_acc_x": samples[:, None], "X097_acc_y": 0 * samples, "X097RPM": 1796})
    else:
        rows = np.stack([np.arange(len(samples)) / RATE, samples, 0 * samples], axis=1)
        np.savetxt(path, rows, delimiter=";", header="time;acc_x;acc_y", comments="")


@pytest.mark.parametrize("suffix", [".npy", ".mat", ".csv"])
def test_from_a_folder_of_numbers_to_a_score(rayasd: Rayasd, tmp_path: Path, suffix: str):
    data, run = tmp_path / "work/data", tmp_path / "run"
    for n in range(8):
        write(data / f"motor/normal/{n}{suffix}", vibration(500, n))
        write(data / f"motor/fault/{n}{suffix}", vibration(900, 50 + n))
    column = () if suffix == ".npy" else ("--column", "acc_x")
    index = (
        "data",
        "index",
        data,
        "--pattern",
        f"{{machine}}/{{label}}/*{suffix}",
        "--anomaly",
        "fault",
        "--rate",
        RATE,
    )
    for _ in range(2):  # the manifest is no recording
        done = rayasd(*index, *column)
        assert done.returncode == 0, done.stdout + done.stderr
    checked = rayasd("data", "check", data / "clips.csv", "--set", f"data.sample_rate={RATE}")
    assert checked.returncode == 0, checked.stdout
    assert "floats are divided by 16" in checked.stdout
    swept = rayasd(
        *small_sweep(data / "clips.csv", run, "--variants", "statistics", "--set", f"data.sample_rate={RATE}")
    )
    assert swept.returncode == 0, swept.stdout + swept.stderr
    assert "note     motor: floats are divided by 16" in swept.stdout
    write(data / f"new/good{suffix}", vibration(500, 98))
    write(data / f"new/bad{suffix}", vibration(900, 99))
    scored = rayasd("score", run, data / "new", "--format", "jsonl")
    bad, good = sorted(map(json.loads, scored.stdout.splitlines()), key=lambda row: row["clip"])
    assert bad["score"] > good["score"]
    watched = Arrivals([data / "new"], {}, print, signals=True)
    watched._ready()
    assert {path.name for path in watched._due} == {f"good{suffix}", f"bad{suffix}"}


def test_numbers_come_out_as_they_are(tmp_path: Path):
    samples = vibration(500, 0) / 8
    wanted = samples * 32768  # in float32, and rounded
    for suffix in (".npy", ".mat", ".csv"):
        write(tmp_path / f"x{suffix}", samples)
        assert np.abs(read_samples(tmp_path / f"x{suffix}", ROWS) - wanted).max() < 0.51
    np.save(tmp_path / "two.npy", np.stack([samples, -samples]))
    assert read_facts(tmp_path / "two.npy", ROWS).channels == 2
    other = DataConfig(sample_rate=RATE, signal_rate=RATE, channel="1")
    assert np.abs(read_samples(tmp_path / "two.npy", other) + wanted).max() < 0.51
    np.savetxt(tmp_path / "bare.csv", samples)
    bare = read_samples(tmp_path / "bare.csv", DataConfig(sample_rate=RATE, signal_rate=RATE))
    assert np.abs(bare - wanted).max() < 0.51


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.csv", b"time,a,b\n0,1,2\n", "which column? data.signal_column (index: --column) names one of time, a, b"),
        ("x.csv", b"acc_x\n1\ntwo\n", "could not convert string 'two'"),
        ("x.csv", b"", "which column?"),
        ("x.csv", b"acc_x\n", "holds no samples"),
        ("x.npy", b"not numbers", "cannot be read as audio"),
        ("x.npy", b"", "cannot be read as audio"),
        ("x.mat", b"not numbers" * 30, "cannot be read as audio"),
        ("x.mat", b"", "cannot be read as audio"),
    ],
)
def test_files_that_hold_no_recording_are_refused_in_one_line(tmp_path: Path, name: str, content: bytes, said: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadClipError) as caught:
        read_samples(tmp_path / name, ROWS)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_numbers_without_a_rate_are_no_recording(tmp_path: Path):
    write(tmp_path / "x.npy", vibration(500, 0))
    with pytest.raises(BadClipError, match="has no sample rate of its own"):
        read_samples(tmp_path / "x.npy", DataConfig())


FFMPEG = """#!/bin/sh
test "$MODE" = hangs && exec sleep 60
test "$MODE" = full && { echo "[out @ 0x5e] Error: No space left on device" >&2; exit 1; }
for word; do case "$word" in file:*) exec cat "${word#file:}"; esac; done
"""
"""Gives the bytes of its input: files that are WAV, whatever their names say."""


@pytest.fixture
def ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    program = tmp_path / "bin/ffmpeg"
    program.parent.mkdir()
    program.write_text(FFMPEG)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return program


def test_what_ffmpeg_reads_is_audio_everywhere(ffmpeg: Path, rayasd: Rayasd, tmp_path: Path):
    tree = write_tree(tmp_path / "data", ("fan", "pump"))
    for path in sorted(tree.rglob("*.wav")):
        path.rename(path.with_suffix(".M4A"))
    checked = rayasd("data", "check", tree)
    assert checked.returncode == 0, checked.stdout
    assert "not an audio file" not in checked.stdout
    swept = rayasd(*small_sweep(tree, tmp_path / "run", "--variants", "statistics"))
    assert swept.returncode == 0, swept.stdout + swept.stderr
    new = tmp_path / "new"
    new.mkdir()
    shutil.copy(next(tree.glob("fan/*test/*anomaly*")), new / "bad.m4a")
    score = ("score", tmp_path / "run", "--machine", "fan", "--section", "00", new, "--format", "jsonl")
    (row,) = map(json.loads, rayasd(*score).stdout.splitlines())
    assert row["score"] is not None
    watched = Arrivals([new], {}, print)
    watched._ready()
    assert list(watched._due) == [new / "bad.m4a"]
    indexed = rayasd("data", "index", tree, "--pattern", "{machine}/train/*.m4a", "--partial", "--label", "normal")
    assert f"{tree.name}/clips.csv" in indexed.stdout, indexed.stderr
    ffmpeg.unlink()
    by_ffmpeg.cache_clear()
    (row,) = map(json.loads, rayasd(*score).stdout.splitlines())
    assert "needs ffmpeg, which is not installed: install it" in row["reason"]


def test_ffmpeg_is_bounded_and_its_disk_is_not_the_clips_fault(
    ffmpeg: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "x.m4a"
    write_clip(path, 440, format="WAV")
    assert read_facts(path).frames == 16000
    by_ffmpeg.cache_clear()
    soundfile.write(tmp_path / "x.wav", read_samples(path, DataConfig()), 16000)
    assert np.array_equal(read_samples(path, DataConfig()), read_samples(tmp_path / "x.wav", DataConfig()))
    by_ffmpeg.cache_clear()
    monkeypatch.setenv("MODE", "full")
    with pytest.raises(StorageError, match="No space left on device"):
        read_facts(path)
    monkeypatch.setenv("MODE", "hangs")
    monkeypatch.setattr("rayasd.data.signals._MOST_SECONDS", 0.2)
    with pytest.raises(BadClipError, match=r"more than 0\.2 s for it"):
        read_facts(path)
    monkeypatch.setenv("MODE", "")
    monkeypatch.setattr("rayasd.data.signals._MOST_BYTES", 20_000)
    with pytest.raises(BadClipError, match="longer than 20000 bytes"):
        read_facts(path)
    path.write_bytes(b"")
    with pytest.raises(BadClipError, match="cannot be read as audio"):
        read_facts(path)
