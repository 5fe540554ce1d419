"""Commands that read a run never change it, and never use a damaged file of it."""

import hashlib
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rayasd.evaluation import scores as scores_module
from rayasd.parquet import read_parquet
from rayasd.report.run_report import RunReport
from rayasd.stages import DETECT
from rayasd.unit import RunDirectory
from tests.conftest import small_sweep
from tests.faults.bench import Bench, says
from tests.faults.places import flip, without_roots_powers

pytestmark = pytest.mark.slow

FAN = "variant=both/machine=fan/seed=0"
MODEL = "models/both/fan/seed=0/model.safetensors"


def contents(run: Path) -> dict[str, tuple[str, int]]:
    """Sha256 and time of modification of every file of a run."""
    return {
        str(path.relative_to(run)): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in sorted(run.rglob("*")) if path.is_file()
    }  # fmt: skip


def members_of(packed: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(packed) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def clip_of(bench: Bench) -> Path:
    return next((bench.tree / "fan/source_test").glob("*.wav"))


def readers(bench: Bench, run: Path, out: Path) -> dict[str, list[object]]:
    """Every command that reads a run; what it makes goes to ``out``."""
    out.mkdir(exist_ok=True)
    label = "Doe_Lab_task2_1"
    return {
        "status": ["status", run],
        "leaderboard": ["leaderboard", run],
        "compare": ["compare", run, run],
        "score": ["score", run, "--machine", "fan", clip_of(bench)],
        "pack": ["pack", run, "--machine", "fan", "--out", out / "fan.rayasd"],
        "dcase": ["export", "dcase", run, "--system-label", label, "--out", out / "dcase"],
        "dcase --set": ["export", "dcase", run, "--system-label", label, "--out", out / "other", "--set",
                        "evaluation.criterion=auc", "--set", "evaluation.ensembles=greedy"],
        "report --set": ["report", run, "--set", "evaluation.threshold=gamma", "--by-section"],
        "report --out": ["report", run, "--set", "evaluation.criterion=auc", "--out", out / "report"],
        "dry run": [*small_sweep(bench.tree, run), "--dry-run"],
    }  # fmt: skip


def test_reading_commands_change_nothing(bench: Bench, tmp_path: Path):
    run, stale = bench.copy(tmp_path / "run"), bench.copy(tmp_path / "stale", "leaderboard.md")
    for each in (run, stale):  # the second has no current leaderboard: it is computed in memory
        before = contents(each)
        for name, words in readers(bench, each, tmp_path / "out").items():
            says(bench.call(*words), 0)
            assert contents(each) == before, name
    assert (tmp_path / "out/report/report.html").stat().st_size > 10_000
    assert (tmp_path / "out/report/leaderboard.md").exists()


def test_reading_commands_need_no_write_permission(bench: Bench, tmp_path: Path):
    if os.geteuid():
        pytest.skip("only root may give files away")
    run = bench.copy(tmp_path / "run", "leaderboard.md")
    for folder, _, names in os.walk(run):
        for path in (folder, *(os.path.join(folder, name) for name in names)):  # noqa: PTH118
            os.chown(path, 65534, 65534)
            os.chmod(path, 0o555)  # noqa: PTH101
    before = contents(run)
    commands = readers(bench, run, tmp_path / "out")
    with without_roots_powers():
        for name in ("compare", "score", "dcase --set", "report --set"):  # the others share their readers
            says(bench.call(*commands[name]), 0)
        refused = bench.call("report", run)
    says(
        refused, 2, f"cannot write the run directory {run}: Permission denied; --out FOLDER writes the report elsewhere"
    )
    assert "DCASE 2021" in refused.stdout  # it is shown before
    assert contents(run) == before


@pytest.mark.parametrize("name", [MODEL, f"embeddings/{FAN}/part-0.parquet", f"scores/{FAN}/part-0.parquet"])
def test_a_damaged_file_is_refused_every_time(bench: Bench, tmp_path: Path, name: str):
    run = bench.copy(tmp_path / "run")
    flip(run / name)
    before = contents(run)
    commands = readers(bench, run, tmp_path / "out")
    for words in (commands["score"], commands["score"], commands["pack"], commands["pack"], commands["score"]):
        says(bench.call(*words), 2, f"error: {run / name} is damaged", "rayasd sweep --verify does that again")
    if name.startswith("scores"):
        for command in ("dcase", "compare"):
            says(
                bench.call(*commands[command]),
                2,
                f"error: {run / name} is damaged",
                "rayasd sweep --verify does it again",
            )
        says(bench.call(*commands["report --set"]), 0, "1 unit not done or damaged: rayasd sweep continues")
    assert contents(run) == before
    assert not list((tmp_path / "out").rglob("*.rayasd"))
    says(bench.sweep(run, "--verify"), 0, "done before: a file is damaged")
    bench.same(run)
    says(bench.call(*commands["score"]), 0)


@pytest.mark.parametrize("stage", ["models/both/fan/seed=0/DONE", f"embeddings/{FAN}/_DONE", f"scores/{FAN}/_DONE"])
def test_a_unit_without_marker_is_not_done(bench: Bench, tmp_path: Path, stage: str):
    run = bench.copy(tmp_path / "run", stage)
    for command in ("score", "pack"):
        said = "fan both seed 0 of", "is not done: rayasd sweep does it"
        says(bench.call(*readers(bench, run, tmp_path / "out")[command]), 2, *said)


def test_a_file_that_is_missing_for_a_moment_costs_nothing(bench: Bench, tmp_path: Path):
    run = bench.copy(tmp_path / "run")
    score = readers(bench, run, tmp_path / "out")["score"]
    for name in (MODEL, f"scores/{FAN}/part-0.parquet"):
        (run / name).rename(tmp_path / "elsewhere")
        says(bench.call(*score), 2, f"error: {run / name} is damaged")
        (tmp_path / "elsewhere").rename(run / name)
    says(bench.call(*score), 0, "fan")
    says(bench.sweep(run), 0, "nothing to do: 6 units")


def test_other_rules_do_not_change_what_is_deployed(bench: Bench, tmp_path: Path):
    run = bench.copy(tmp_path / "run")
    commands = readers(bench, run, tmp_path / "out")
    packed = tmp_path / "out/fan.rayasd"
    says(bench.call(*commands["pack"]), 0)
    before = members_of(packed)
    for command in ("dcase --set", "report --set", "report --out"):
        says(bench.call(*commands[command]), 0)
    packed.unlink()
    says(bench.call(*commands["pack"]), 0)
    assert members_of(packed) == before
    bench.same(run)


def test_a_leaderboard_by_other_rules_chooses_nothing(bench: Bench, tmp_path: Path):
    """As 0.1.0 left it behind."""
    run = RunDirectory(bench.copy(tmp_path / "run"))
    board = pq.read_table(run.leaderboard("parquet"))
    pq.write_table(board.replace_schema_metadata({**board.schema.metadata, b"rules": b"0"}), run.leaderboard("parquet"))
    said = "leaderboard.parquet was not made by the run's own rules: rayasd report", "makes it again"
    says(bench.call(*readers(bench, run.root, tmp_path / "out")["score"]), 2, *said)
    says(bench.call("report", run.root), 0)
    says(bench.call(*readers(bench, run.root, tmp_path / "out")["score"]), 0)


def test_a_report_does_not_write_into_a_run_that_is_driven(bench: Bench, tmp_path: Path):
    run = bench.copy(tmp_path / "run")
    before = contents(run)
    with bench.held(run):
        report = bench.call("report", run)
        says(report, 2, f"error: {run} is held by process")
        assert "DCASE 2021" in report.stdout
        says(bench.call("report", run, "--out", tmp_path / "page"), 0)
    assert contents(run) == before
    says(bench.call("report", run, "--out", run), 2, "is a run directory")


def test_each_scores_file_is_read_once_per_report(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    read: list[Path] = []

    def counted(path: Path, *words: object, **options: object) -> object:
        read.append(path)
        return read_parquet(path, *words, **options)

    monkeypatch.setattr(scores_module, "read_parquet", counted)
    report = RunReport.of(bench.run)
    assert not report.damaged
    assert report.results.cells.num_rows
    assert report.scored
    assert sorted(read) == sorted(bench.run.glob("scores/*/*/*/part-0.parquet"))


@pytest.mark.parametrize("change", ["settings", "version", "data"])
def test_units_that_are_done_again_say_why(bench: Bench, tmp_path: Path, change: str, marked: Callable[..., None]):
    run = bench.copy(tmp_path / "run")
    why = marked(run, change)
    says(bench.sweep(run), 0, f"again 2 units done before: {why}")
    bench.same(run)
    says(bench.sweep(run), 0, "nothing to do")


@pytest.fixture
def marked() -> Callable[[Path, str], str]:
    """Make the markers of a run's detect units those of other settings, versions or data; returns what is said then."""

    def change(run: Path, what: str) -> str:
        for path in run.glob("scores/*/*/*/_DONE"):
            marker = json.loads(path.read_text())
            marker["identity"] = "0" * 64
            if what == "settings":
                marker["settings"]["inlier.calibration_folds"] = 7
            elif what == "version":
                marker["version"] -= 1
            path.write_text(json.dumps(marker))
        return {
            "settings": "inlier.calibration_folds: 7 -> default",
            "version": f"version {DETECT.version - 1} of detect, which is now {DETECT.version}",
            "data": "other data, labels or pretrained weights",
        }[what]

    return change
