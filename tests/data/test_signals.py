"""Vibration as tables of numbers: from folders of .npy, .mat and .csv to a score."""

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from rayasd.config import DataConfig
from rayasd.data.audio import BadClipError, read_facts, read_samples
from rayasd.scoring.arrivals import Arrivals
from tests.command import Rayasd
from tests.conftest import small_sweep

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
