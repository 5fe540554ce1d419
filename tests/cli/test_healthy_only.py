"""Runs without test clips: nothing can be evaluated, everything else works."""

import shutil
from pathlib import Path

import pytest

from tests.conftest import Rayasd, small_sweep, write_tree


def test_without_test_clips_a_fixed_system_scores_and_report_shows_its_thresholds(rayasd: Rayasd, tmp_path: Path):
    tree, run = write_tree(tmp_path / "data", ("fan", "pump")), tmp_path / "run"
    for folder in tree.glob("*/*_test"):
        shutil.rmtree(folder)
    done = rayasd(*small_sweep(tree, run, "--variants", "statistics", "--set", "embedding.num_windows=1"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "windows  1 of 0.5 s see 50% of a usual clip" in done.stdout
    assert "nothing is evaluated or ranked: rayasd score and pack take knn-1, mean" in done.stdout
    shown = rayasd("report", run)
    assert shown.returncode == 0, shown.stderr
    rows = [line.split() for line in shown.stdout.splitlines() if line.startswith("statistics")]
    assert [row[1:4] for row in rows] == [[m, "0", s] for m in ("fan", "pump") for s in ("00", "03")]
    assert {tuple(row[4:8]) for row in rows} == {("knn-1", "mean", "leave-one-out", "9")}
    exported = rayasd("export", "dcase", run, "--system-label", "Doe_Lab_task2_1")
    assert exported.returncode == 2
    assert "no test clips; rayasd score RUN --machine NAME FOLDER --format csv" in exported.stderr
    clip = next(tree.glob("fan/train/section_00_*"))
    scored = rayasd("score", run, "--machine", "fan", "--section", "0", clip, "--format", "csv")
    assert scored.returncode == 0, scored.stderr
    threshold = float(scored.stdout.splitlines()[1].split(",")[7])
    assert f"{threshold:.4g}" == rows[0][-1]


@pytest.mark.slow
def test_without_test_clips_an_ensemble_that_held_all_clips_out_scores(rayasd: Rayasd, tmp_path: Path):
    tree, run = write_tree(tmp_path / "data", ("fan", "pump")), tmp_path / "run"
    for folder in tree.glob("*/*_test"):
        shutil.rmtree(folder)
    folds = ("--set", "exposure.hold_out=cross-fit", "--set", "exposure.folds=2", "--seeds", "0-1")
    done = rayasd(*small_sweep(tree, run, "--variants", "both", *folds))
    assert done.returncode == 0, done.stdout + done.stderr
    shown = rayasd("report", run)
    rows = [line.split() for line in shown.stdout.splitlines() if line.startswith("both+seeds")]
    assert [row[1:4] for row in rows] == [[m, "all", s] for m in ("fan", "pump") for s in ("00", "03")]
    assert {row[6] for row in rows} == {"cross-fit"}
    clip = next(tree.glob("fan/train/section_00_*"))
    words = ("--machine", "fan", "--section", "0", clip, "--format", "csv")
    scored = {entry: rayasd("score", run, *words, "--entry", entry) for entry in ("both", "both+seeds")}
    assert [each.returncode for each in scored.values()] == [0, 0], scored
    assert "cross-fit" in scored["both+seeds"].stdout
    assert rayasd("score", run, *words).stdout == scored["both+seeds"].stdout  # the default
    packed = rayasd("pack", run, "--machine", "fan", "-o", tmp_path / "fan.rayasd")
    assert packed.returncode == 0, packed.stderr
    assert rayasd("score", tmp_path / "fan.rayasd", *words[2:]).stdout == scored["both+seeds"].stdout
