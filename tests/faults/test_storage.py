"""Disks that are full, read-only, forbidden or gone: a line that says what to do, and no wrong number."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.test_sweep import wait_until
from tests.conftest import small_sweep
from tests.faults.bench import Bench, says
from tests.faults.places import Place, without_roots_powers
from tests.faults.results import results_of

pytestmark = pytest.mark.slow

Mount = Callable[..., Place]


def unfinished(run: Path) -> list[Path]:
    return [*run.rglob("*.part"), *run.rglob("*FAILED"), *run.rglob("*filler*/*")]


def test_a_disk_that_fills_up_during_training(bench: Bench, mounted: Mount, tmp_path: Path):
    place = mounted(tmp_path / "disk", "size=2000k")  # enough for what is left at the end, not for checkpoints
    run = place.folder / "run"
    said = f"no space is left in {run}: make room, then the same command continues"
    says(bench.sweep(run), 1, said, "train fan both")
    assert unfinished(run) == []
    assert place.remount("size=20m")
    bench.goes_on(run)


@pytest.mark.parametrize("executor", ["local", pytest.param("ray", marks=[pytest.mark.ray, pytest.mark.long])])
def test_a_disk_that_is_full_when_clips_are_embedded(bench: Bench, mounted: Mount, tmp_path: Path, executor: str):
    place = mounted(tmp_path / "disk", "size=20m")
    run = bench.copy(place.folder / "run", "embeddings", "scores")
    filler = place.fill(leave=40_000)
    done = bench.call("embed", run, "--executor", executor, apart=executor == "ray")
    said = f"no space is left in {run}: make room, then the same command continues"
    says(done, 1, said, "These units are not marked as failed")
    assert unfinished(run) == []
    filler.unlink()
    bench.goes_on(run)


def test_a_disk_that_is_full_when_the_report_is_written(bench: Bench, mounted: Mount, tmp_path: Path):
    place = mounted(tmp_path / "disk", "size=20m")
    run = bench.copy(place.folder / "run", "leaderboard.parquet", "leaderboard.csv", "leaderboard.md", "cells.parquet")
    filler = place.fill(leave=4096)
    says(bench.call("report", run), 1, f"error: no space is left in {run}: make room")
    says(bench.sweep(run), 1, f"error: no space is left in {run}: make room")
    assert not (run / "lock.json").exists()
    assert unfinished(run) == []
    filler.unlink()
    bench.goes_on(run)


def test_a_sweep_that_has_no_room_is_refused_and_only_what_is_missing_counts(
    bench: Bench, mounted: Mount, tmp_path: Path
):
    place = mounted(tmp_path / "disk", "size=3m")
    filler = place.fill(leave=300_000)
    run = place.folder / "run"
    says(
        bench.sweep(run),
        2,
        "error: this sweep leaves about 1.",
        f" MB more in {run} (train 1.",
        "are free: make room",
    )
    assert not run.exists()
    filler.unlink()
    bench.copy(run, "scores")
    place.fill(leave=300_000)
    bench.goes_on(run)  # the scores alone have room


def test_a_full_cache_is_refused_with_the_numbers(bench: Bench, mounted: Mount, tmp_path: Path):
    place = mounted(tmp_path / "disk", "size=1m")
    done = bench.sweep(tmp_path / "run", cache=place.folder)
    says(done, 2, "the waveform cache needs ", f" in {place.folder}, ", "choose another place with --cache DIR")
    assert list(place.folder.iterdir()) == []


def test_a_read_only_run_is_read_scored_and_not_written(bench: Bench, mounted: Mount, tmp_path: Path):
    place = mounted(tmp_path / "disk", "size=20m")
    run = bench.copy(place.folder / "run")
    assert place.remount("ro")
    clip = next((bench.tree / "fan/source_test").glob("*.wav"))
    says(bench.call("status", run), 0, "no process works on it")
    says(bench.call("leaderboard", run), 0, "both")
    says(bench.call("score", run, "--machine", "fan", clip), 0, clip.name)
    says(bench.call("report", run), 2, f"cannot write the run directory {run}: Read-only file system; --out FOLDER")
    says(bench.sweep(run), 2, f"cannot write the run directory {run}: Read-only file system")


@pytest.mark.long
def test_a_disk_that_becomes_read_only_meanwhile(bench: Bench, mounted: Mount, tmp_path: Path):
    place = mounted(tmp_path / "disk", "size=20m")
    run = place.folder / "run"
    sweep = bench.start(*small_sweep(bench.tree, run, "--set", "exposure.epochs=60"))
    wait_until(lambda: any(run.rglob("state.pt")), sweep)
    wait_until(lambda: place.remount("ro"), sweep)
    said, _ = sweep.communicate(timeout=240)
    assert sweep.returncode == 1
    assert "read-only: mount it writable, then the same command continues" in said
    assert "Traceback (" not in said
    assert place.remount("rw")
    assert unfinished(run) == []
    done = bench.call("status", run)
    says(done, 0, "0 failed" if "failed" in done.stdout else "waiting")


def test_no_permission_for_run_and_cache(bench: Bench, mounted: Mount, tmp_path: Path):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    os.chown(foreign, 65534, 65534)
    run = bench.copy(tmp_path / "seen")
    os.chown(run, 65534, 65534)
    with without_roots_powers():
        done = bench.sweep(foreign / "run")
        says(done, 2, f"cannot write the run directory {foreign}/run: Permission denied")
        done = bench.sweep(tmp_path / "run", cache=foreign)
        says(done, 2, f"cannot write the cache {foreign}: Permission denied; choose another --cache DIR")
        says(bench.call("status", run), 0, "no process works on it")
        says(bench.call("report", run), 2, f"cannot write the run directory {run}: Permission denied")


def test_a_run_directory_that_goes_away(bench: Bench, mounted: Mount, tmp_path: Path):
    (tmp_path / "server").mkdir()
    place = mounted(tmp_path / "disk", source=tmp_path / "server")
    run = place.folder / "run"
    sweep = bench.start(*small_sweep(bench.tree, run))
    wait_until(lambda: any(run.rglob("state.pt")), sweep)
    place.detach()
    said, _ = sweep.communicate(timeout=240)
    assert sweep.returncode == 1
    assert f"error: {run} is gone: was its file system unmounted?" in said
    assert "Traceback (" not in said
    assert [path for path in place.folder.rglob("*") if path.is_file()] == []  # nothing lies below the mount point
    place.mount()
    bench.goes_on(run)


@pytest.mark.long
def test_data_that_go_away(bench: Bench, mounted: Mount, tmp_path: Path):
    place = mounted(tmp_path / "data", source=bench.tree)
    run = tmp_path / "run"
    sweep = bench.start(*small_sweep(place.folder, run))
    wait_until(lambda: any(run.rglob("state.pt")), sweep)
    place.detach()  # all has been decoded
    said, _ = sweep.communicate(timeout=240)
    assert sweep.returncode == 0, said
    assert {name: results_of(run)[name] for name in bench.results if name.startswith("models")} == {
        name: content for name, content in bench.results.items() if name.startswith("models")
    }
    says(bench.call(*small_sweep(place.folder, run)), 2, f"error: no clips in {place.folder}")
