"""Bad data through the command line: one line and exit code 2, or left out, counted and said in every report."""

import json
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.command import Rayasd
from tests.conftest import small_sweep, write_tree
from tests.data.bad_clips import CASES, RATE, TEST, TRAIN, put, remove, wav

pytestmark = pytest.mark.timeout(300)
REFUSED = [
    case
    for case in CASES.values()
    if case.answer == "refused"
    and not (case.after_scan or case.sets)
    and (os.geteuid() or case.name != "no permission")
]


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    yield write_tree(tmp_path / "tree", ("fan", "pump"))
    remove(tmp_path / "tree")


def report_of(run: Path, rayasd: Rayasd) -> dict[str, str]:
    """What each form of a run's report says."""
    printed = rayasd("report", run)
    assert printed.returncode == 0, printed.stderr
    return {
        "printed": printed.stdout,
        "leaderboard.md": (run / "leaderboard.md").read_text(encoding="utf-8"),
        "report.html": (run / "report.html").read_text(encoding="utf-8"),
    }


@pytest.mark.timeout(60)
def test_a_pipe_keeps_nobody_waiting(root: Path, rayasd: Rayasd):
    os.mkfifo(root / TRAIN)
    checked = rayasd("data", "check", root)
    assert checked.returncode == 1
    assert f"unusable  {TRAIN}: is a pipe, not a file" in checked.stdout


@pytest.mark.parametrize("case", ["machines that differ in case alone", "machine name of 255 bytes"])
def test_what_is_always_refused(root: Path, tmp_path: Path, rayasd: Rayasd, case: str):
    CASES[case].write(root)
    swept = rayasd(*small_sweep(root, tmp_path / "run", "--on-bad-clip", "skip"))
    assert swept.returncode == 2
    assert swept.stderr.count("\n") == 1
    assert CASES[case].says in swept.stderr


@pytest.mark.slow
def test_all_that_is_refused_at_once(root: Path, tmp_path: Path, rayasd: Rayasd):
    for number, case in enumerate(REFUSED):
        (root / f"{number:02}/fan/train").mkdir(parents=True)
        case.write(root / f"{number:02}")
    setting_up = [*small_sweep(root, tmp_path / "run", "--variants", "statistics"), "--set-up-only"]
    stopped = rayasd(*setting_up)
    assert stopped.returncode == 2, stopped.stderr
    assert stopped.stderr.count("\n") == 1
    assert "Traceback" not in stopped.stderr
    assert not (tmp_path / "run").exists()
    skipping = rayasd(*setting_up, "--on-bad-clip", "skip")
    assert skipping.returncode == 0, skipping.stderr
    assert "skipped" in skipping.stdout
    manifest = json.loads((tmp_path / "run/manifest.json").read_text(encoding="utf-8"))
    assert len(manifest["data"]["skipped"]) == len(REFUSED)
    assert manifest["data"]["clips"] == 2 * 42
    checked = rayasd("data", "check", root)
    assert checked.returncode == 1
    assert f"{len(REFUSED)} unusable" in checked.stdout
    for case in REFUSED:
        assert case.says in checked.stdout


@pytest.mark.slow
def test_what_was_left_out_and_what_is_odd_stands_in_every_report(root: Path, tmp_path: Path, rayasd: Rayasd):
    for clip in (root / "pump").glob("*_test/section_03*"):
        clip.write_bytes(b"")
    for clip in (TRAIN, TEST, TEST.replace("normal", "anomaly")):
        put(root, wav(), clip)
    put(root, wav(np.zeros(RATE, np.int16)), TRAIN.replace("0100", "0101"))
    swept = rayasd(*small_sweep(root, tmp_path / "run", "--variants", "statistics", "--on-bad-clip", "skip"))
    assert swept.returncode == 0, swept.stderr
    for line in (
        "note     fan 2: test clips hold the same audio as training clips, ",
        "note     fan 1: test clips hold the same audio as test clips of the other label, ",
        f"note     fan 1: training clips are silent or constant, {TRAIN.replace('0100', '0101')} first",
        "skipped  12 clips: cannot be read as audio",
        "skipped  all of pump 03 test",
    ):
        assert line in swept.stdout
    pair = f"{TEST.replace('normal', 'anomaly')} = {TRAIN}"
    for place, text in report_of(tmp_path / "run", rayasd).items():
        assert "12 clips, first pump/source_test/section_03_" in text, place
        assert "nothing is left of pump 03 test" in text, place
        assert f"fan 2: test clips hold the same audio as training clips, {pair} first" in text, place
        assert "of the other label" in text, place


@pytest.mark.slow
def test_good_data_are_said_to_be_whole(root: Path, tmp_path: Path, rayasd: Rayasd):
    assert rayasd(*small_sweep(root, tmp_path / "run", "--variants", "statistics")).returncode == 0
    said = report_of(tmp_path / "run", rayasd)
    assert "left out" not in said["printed"]
    assert "clips left out: `none`" in said["leaderboard.md"]
    assert "<dt>clips left out</dt><dd>none</dd>" in said["report.html"]


@pytest.mark.slow
def test_skipping_never_leaves_a_machine_without_training_clips(root: Path, tmp_path: Path, rayasd: Rayasd):
    for clip in (root / "pump/train").iterdir():
        clip.write_bytes(b"")
    swept = rayasd(*small_sweep(root, tmp_path / "run", "--on-bad-clip", "skip"))
    assert swept.returncode == 2
    assert "no training clips are left of pump: rayasd data check" in swept.stderr


@pytest.mark.slow
def test_a_machine_without_sound_and_one_with_an_odd_name_give_numbers(root: Path, tmp_path: Path, rayasd: Rayasd):
    mute, odd = "mute", 'it\'s a "fan", 🌀 no. 1'
    for clip in (root / "pump").rglob("*.wav"):
        put(root, wav(np.full(RATE, 1234, np.int16)), clip.relative_to(root).as_posix().replace("pump", mute))
    shutil.copytree(root / "fan", root / odd)
    for clip in (root / odd).rglob("*.wav"):
        clip.write_bytes(clip.read_bytes()[:-2] + b"\x07\x00")
    detectors = "knn,gmm,lof,kde,mahalanobis,kmeans,pca,ocsvm,ldn,varmin,domain-nn"
    swept = rayasd(*small_sweep(root, tmp_path / "run", "--variants", "both,statistics"), "--detectors", detectors)
    assert "Traceback" not in swept.stderr
    assert f"note     {mute}: all training clips are silent or constant: nothing can be learned" in swept.stdout
    for place, text in report_of(tmp_path / "run", rayasd).items():
        assert "nothing can be learned" in text, place
    for path in (tmp_path / "run/models").rglob("history.jsonl"):
        for line in path.read_text().splitlines():
            assert all(math.isfinite(value) for value in json.loads(line).values() if isinstance(value, float))
    for path in (tmp_path / "run/embeddings").rglob("*.parquet"):
        table = pq.read_table(path)
        assert np.isfinite(table["embedding"].combine_chunks().flatten().to_numpy()).all()
    for path in (tmp_path / "run/scores").rglob("*.parquet"):
        scores = pq.read_table(path)["score"].drop_null().to_numpy()
        assert np.isfinite(scores).all()
    cells = pq.read_table(tmp_path / "run/cells.parquet").to_pylist()
    machines = {cell["machine"] for cell in cells}
    assert machines - {mute} == {"fan", "pump", odd}
    assert mute in machines or f"embed {mute} both seed 0: the extractor has collapsed" in swept.stdout
    for cell in cells:
        assert cell["status"] == "ok" or cell["reason"]
        if cell["machine"] == mute and cell["status"] == "ok":
            assert cell["auc"] == pytest.approx(0.5)  # nothing to tell apart
