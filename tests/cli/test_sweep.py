"""The whole chain on one machine, through the command line."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from rayasd import presets
from rayasd.errors import UserError
from rayasd.sweep.checks import check_extractors
from rayasd.unit import RunDirectory
from tests.command import Rayasd, command_line, environment
from tests.conftest import SMALL, small_sweep, write_clip, write_tree


def models(run: Path) -> dict[str, bytes]:
    return {str(p.relative_to(run)): p.read_bytes() for p in sorted(run.rglob("model.safetensors"))}


def scores(run: Path) -> dict[str, bytes]:
    files = [*run.glob("scores/*/*/*/part-0.parquet"), run / "leaderboard.csv"]
    return {str(p.relative_to(run)): p.read_bytes() for p in sorted(files)}


@pytest.fixture(scope="module")
def finished(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy of the finished run to which the tests of this file may write."""
    return Path(shutil.copytree(finished, tmp_path_factory.mktemp("copied") / "run"))


@pytest.mark.slow
def test_a_sweep_leaves_the_contracts_files(finished: Path):
    run = RunDirectory(finished)
    cells = pq.read_table(run.cells)
    assert cells.num_rows == 2 * 3 * 2 * 2 * 2 * 2  # variants, machines, sections, domains, detectors, poolings
    assert set(cells["status"].to_pylist()) == {"ok"}
    assert set(cells["part"].to_pylist()) == {"development", "evaluation"}
    embeddings = ds.dataset(finished / "embeddings", partitioning="hive").to_table()
    assert embeddings.num_rows == 2 * 3 * 42 * 3
    scores = ds.dataset(finished / "scores", partitioning="hive").to_table()
    assert scores.num_rows == 2 * 3 * (24 + 18) * 2 * 2  # test clips and normal clips
    board = pq.read_table(run.leaderboard("parquet")).to_pylist()
    assert sorted(s["rank"] for s in board if s["rank"]) == [1, 2]
    manifest = json.loads(run.manifest.read_text())
    assert manifest["plans"][0]["machines"] == ["fan", "pump", "valve"]
    assert manifest["invocations"][0]["packages"]["torch"]
    marker = json.loads((finished / "models/both/fan/seed=0/DONE").read_text())
    assert set(marker["files"]) == {"model.safetensors", "config.json", "history.jsonl"}


@pytest.mark.slow
def test_a_second_run_does_nothing_and_says_so_at_once(finished: Path, tree: Path, rayasd: Rayasd):
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*.safetensors")}
    began = time.process_time()
    again = rayasd(*small_sweep(tree, finished, "--variants", "both,statistics"))
    assert time.process_time() - began < 5
    assert again.returncode == 0
    assert "nothing to do: 15 units" in again.stdout
    assert "leaderboard up to date" in again.stdout
    assert {p: p.stat().st_mtime_ns for p in finished.rglob("*.safetensors")} == before
    paged = rayasd(*small_sweep(tree, finished, "--variants", "both,statistics"), "--html")
    assert RunDirectory(finished).html.exists()
    assert f"next:    rayasd report {finished} --by-section" in paged.stdout
    assert re.search(rf"rayasd score {finished} --machine \w+ --section \d\d CLIP", paged.stdout)
    RunDirectory(finished).leaderboard("md").unlink()
    assert "written:" in rayasd(*small_sweep(tree, finished, "--variants", "both,statistics")).stdout


@pytest.mark.slow
def test_changed_configuration_or_data_in_the_same_run_stop_with_a_diff(
    finished: Path, tree: Path, tmp_path: Path, rayasd: Rayasd
):
    changed = rayasd(*small_sweep(tree, finished, "--set", "exposure.epochs=4"))
    assert changed.returncode == 2
    assert "exposure.epochs: 3 -> 4" in changed.stderr
    other = rayasd(*small_sweep(write_tree(tmp_path / "other", ("fan", "pump")), finished))
    assert other.returncode == 2
    assert "data: 42 clips removed, valve/source_test/section_00_source_test_anomaly_0000.wav first" in other.stderr


@pytest.mark.slow
def test_report_is_computed_afresh_from_scores(finished: Path, rayasd: Rayasd):
    board = RunDirectory(finished).leaderboard("csv")
    before = board.read_text()
    board.unlink()
    shown = rayasd("report", finished)
    assert shown.returncode == 0
    assert board.read_text() == before
    assert "statistics" in shown.stdout


@pytest.mark.slow
def test_two_variants_are_compared_in_pairs(finished: Path, rayasd: Rayasd):
    shown = rayasd("compare", finished, finished, "--variants", "both,statistics")
    assert shown.returncode == 0, shown.stderr
    assert "DCASE 2021 score: run both" in shown.stdout
    assert "Paired bootstrap over the test clips of 6 evaluation cells" in shown.stdout
    same = rayasd("compare", finished, finished, "--part", "development")
    assert "no sure difference" in same.stdout
    refused(rayasd("compare", finished, finished, "--variants", "both,bothh"), "did you mean 'both'?")
    refused(rayasd("compare", finished, finished, "--variants", "both"), "one variant for each")


@pytest.mark.slow
def test_runs_are_ranked_together_and_others_left_out_with_the_reason(finished: Path, rayasd: Rayasd):
    shown = rayasd("leaderboard", finished, finished, "--format", "json")
    assert shown.returncode == 0, shown.stderr
    assert "published systems are left out: the data are not DCASE 2021 Task 2" in shown.stderr
    rows = json.loads(shown.stdout)
    assert len(rows) == 4
    assert [row["score"] for row in rows] == sorted((row["score"] for row in rows), reverse=True)
    for form, first in (("md", "| # | system |"), ("csv", "#,system,"), ("table", "                         ")):
        assert rayasd("leaderboard", finished, "--format", form).stdout.startswith(first)


@pytest.mark.slow
def test_stages_one_by_one_give_the_same_as_a_sweep(finished: Path, tree: Path, tmp_path: Path, rayasd: Rayasd):
    run = tmp_path / "run"
    empty = rayasd(*small_sweep(tree, run, "--machines", "fan", "--set", "network.backbone=no_such_net"))
    assert empty.returncode == 2
    assert "timm has no model 'no_such_net'" in empty.stderr
    with pytest.raises(UserError, match="timm has no model 'no_such_net'"):  # also where another process makes it
        check_extractors({"both": presets.load("demo", (*SMALL, "network.backbone=no_such_net"))})
    swept = rayasd(*small_sweep(tree, run, "--machines", "fan"))
    assert swept.returncode == 0, swept.stdout + swept.stderr
    fan = {name: data for name, data in models(finished).items() if "/fan/" in name}
    assert models(run) == fan  # the other machines of the plan change nothing
    (run / "embeddings/variant=both/machine=fan/seed=0/part-0.parquet").unlink()
    blocked = rayasd("detect", run, "--executor", "local")
    assert blocked.returncode == 1
    assert "embed fan both seed 0 has not been done" in blocked.stdout
    assert rayasd("embed", run, "--executor", "local").returncode == 0
    assert rayasd("detect", run, "--executor", "local").returncode == 0


@pytest.mark.slow
def test_killed_driver_and_workers_lose_nothing(
    finished: Path, tree: Path, cache: Path, tmp_path: Path, rayasd: Rayasd
):
    """The driver is ended without a word while it trains; the same command then gives the same bits."""
    run = tmp_path / "run"
    words = small_sweep(tree, run, "--variants", "both,statistics")
    with subprocess.Popen(
        command_line(*words), env=environment(cache), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as driver:
        wait_until(lambda: list(run.glob("models/both/*/seed=0/state.pt")), driver)
        children = children_of(driver.pid)
        os.kill(driver.pid, signal.SIGKILL)
        driver.communicate()
    assert children
    wait_until(lambda: not any(Path(f"/proc/{pid}/cmdline").exists() for pid in children))
    again = rayasd(*words)
    assert again.returncode == 0, again.stdout + again.stderr
    assert models(run) == models(finished)
    for name in ("development", "evaluation", "auc"):
        a, b = (pq.read_table(RunDirectory(r).leaderboard("parquet"))[name].to_pylist() for r in (run, finished))
        assert a == b
    assert not list(run.rglob("*.part"))


@pytest.mark.slow
def test_a_killed_worker_costs_one_try(finished: Path, tree: Path, cache: Path, tmp_path: Path):
    run = tmp_path / "run"
    command = command_line(*small_sweep(tree, run, "--machines", "fan"))
    with subprocess.Popen(command, env=environment(cache), stdout=subprocess.PIPE, text=True) as driver:
        wait_until(lambda: list(run.glob("models/both/*/seed=0/state.pt")), driver)
        for pid in children_of(driver.pid):
            if b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)
        output, _ = driver.communicate(timeout=240)
    assert driver.returncode == 0, output
    assert "its worker process died (SIGKILL)" in (run / "events.jsonl").read_text()
    assert models(run).items() <= models(finished).items()


@pytest.mark.slow
def test_interrupted_by_signal_is_exit_75_and_leaves_no_process(tree: Path, cache: Path, tmp_path: Path):
    run = tmp_path / "run"
    command = command_line(*small_sweep(tree, run))
    with subprocess.Popen(command, env=environment(cache), stderr=subprocess.PIPE, text=True,
                          stdout=subprocess.DEVNULL) as driver:  # fmt: skip
        wait_until(lambda: list(run.glob("models/both/*/seed=0/state.pt")), driver)
        children = children_of(driver.pid)
        driver.send_signal(signal.SIGTERM)
        _, errors = driver.communicate(timeout=240)
    assert driver.returncode == 75
    assert "interrupted: the same command continues from here" in errors
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children))


@pytest.mark.slow
def test_a_failing_unit_leaves_the_others_and_exit_code_1(tree: Path, tmp_path: Path, rayasd: Rayasd):
    preset = tmp_path / "mine.toml"
    preset.write_text('extends = "demo"\n[variants.broken]\nexposure.learning_rate = 1e30\n')
    run = tmp_path / "run"
    arguments = small_sweep(tree, run, "--machines", "fan", "--variants", "statistics,broken")
    arguments[arguments.index("demo")] = preset
    done = rayasd(*arguments)
    assert done.returncode == 1
    assert "1 unit failed, 2 blocked by them" in done.stdout
    assert "lower exposure.learning_rate" in done.stdout
    board = pq.read_table(RunDirectory(run).leaderboard("parquet"))
    assert set(board["variant"].to_pylist()) == {"statistics"}
    assert "Traceback" in json.loads((run / "models/broken/fan/seed=0/FAILED").read_text())["traceback"]


@pytest.mark.slow
def test_a_dry_run_prints_the_plan_and_starts_nothing(tree: Path, tmp_path: Path, rayasd: Rayasd):
    run = tmp_path / "run"
    planned = rayasd(*small_sweep(tree, run, "--variants", "both,untrained,statistics", "--seeds", "0-2", "--dry-run"))
    assert planned.returncode == 0
    assert "features 3 each cache" in " ".join(planned.stdout.split())  # in the cache, whatever the seeds
    assert (
        "3 machines (fan, pump, valve) x 3 variants (both, untrained, statistics) x 3 seeds (0, 1, 2): 72 units"
        in planned.stdout
    )
    assert "train fan both seed 0" in planned.stdout
    refused(
        rayasd(*small_sweep(tree, run, "--dry-run", "--set", "data.groups=mic")), "data.groups = 'mic' matches no clip"
    )
    assert not run.exists()


@pytest.mark.slow
def test_a_variant_that_keeps_its_own_value_of_a_setting_is_named(tree: Path, tmp_path: Path, rayasd: Rayasd):
    words = ("sweep", "--data", tree, "--run-dir", tmp_path / "run", "--dry-run", "--set", "exposure.epochs=3")
    done = rayasd(*words, "--variants", "both,untrained")
    assert (
        "note     exposure.epochs: untrained keeps its own 0; --set variants.untrained.exposure.epochs" in done.stdout
    )
    done = rayasd(*words, "--variants", "both,untrained", "--set", "variants.untrained.exposure.epochs=3")
    assert "note     exposure.epochs" not in done.stdout


def test_a_dry_run_plays_the_plan_on_nodes_that_are_not_there(
    finished: Path, tree: Path, tmp_path: Path, rayasd: Rayasd
):
    planned = tmp_path / "planned"
    speeds = "train=10,embed=100,detect=100"
    by_hand = rayasd(*small_sweep(tree, planned, "--dry-run", "--simulate", f"nodes=2,gpus-per-node=4,{speeds}"))
    assert by_hand.returncode == 0, by_hand.stderr
    assert "2 nodes" in by_hand.stdout
    assert "4 GPUs" in by_hand.stdout
    assert "at least " in by_hand.stdout
    assert "bound by " in by_hand.stdout
    assert not planned.exists()
    unmeasured = rayasd(*small_sweep(tree, planned, "--dry-run", "--simulate", "nodes=2"))
    assert (unmeasured.returncode, "like=RUN" in unmeasured.stderr) == (2, True)
    measured = rayasd(*small_sweep(tree, planned, "--dry-run", "--simulate", f"nodes=2,like={finished}"))
    assert measured.returncode == 0, measured.stderr
    for wrong, said in (
        ("nods=2", "did you mean '--simulate nodes'"),
        ("nodes", "KEY=VALUE"),
        ("nodes=two", "no number"),
        ("nodes=0", "at least"),
        ("nodes=1,cpus-per-node=0.5," + speeds, "the largest node has 0.5 CPUs"),
    ):
        result = rayasd(*small_sweep(tree, planned, "--dry-run", "--simulate", wrong))
        assert (result.returncode, said in result.stderr or "between" in result.stderr) == (2, True), result.stderr
    assert "--dry-run" in rayasd(*small_sweep(tree, planned, "--simulate", "nodes=2")).stderr


@pytest.mark.slow
def test_data_has_a_default_or_one_line_with_two_commands(tree: Path, rayasd: Rayasd):
    nothing = rayasd("sweep", "--dry-run")
    assert nothing.returncode == 2
    assert "rayasd data synth data" in nothing.stderr
    assert "rayasd data index FOLDER" in nothing.stderr
    assert len(nothing.stderr.splitlines()) == 1
    assert rayasd("sweep", "--dry-run", RAYASD_DATA=str(tree)).returncode == 0


def refused(result: subprocess.CompletedProcess[str], said: str) -> None:
    """Check for one line on stderr, exit code 2 and no traceback."""
    assert result.returncode == 2, result.stdout + result.stderr
    assert said in result.stderr
    assert "Traceback" not in result.stderr + result.stdout
    assert len([line for line in result.stderr.splitlines() if line.startswith("error: ")]) <= 1


class TestBadInput:
    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--machines", "fann"], "unknown machine 'fann': did you mean 'fan'?"),
            (["--preset", "eusipco"], "did you mean 'eusipco2022'?"),
            (["--set", "exposure.epoch=3"], "did you mean 'exposure.epochs'?"),
            (["--set", "exposure.epochs=-3"], "must be at least 0"),
            (["--detectors", "svm"], "unknown detector 'svm'"),
            (["--variants", "bothh"], "did you mean 'both'?"),
            (["--seeds", "x"], "give whole numbers from 0"),
            (["--seeds", "0,4-2"], "4-2 is an empty range"),
            (["--seeds", "9223372036854775808"], "must be below 2^63"),
            (["--only", "fan"], "--only does not go with --dry-run"),
            (["--set-up-only"], "leave --set-up-only out"),
            (["--set", "inlier.poolings=avg"], "unknown pooling 'avg'"),
            (["--vary", "exposure.real_anomalies"], "write it as key=value,value"),
            (["--vary", "exposure.real_anomalies=0,32"], "setting 32 anomalies aside"),
            (["--vary", "evaluation.year=2021,2022"], "apply to the whole run"),
            (["--set", "evaluation.year=2019"], "choose one of auto, 2020"),
            (["--set", "evaluation.ensembles=all"], "is none of seeds, checkpoints, detectors, greedy"),
            (["--executor", "slurm"], "Invalid value for '--executor'"),
            (["--cpus-per-unit", "0"], "Invalid value for '--cpus-per-unit'"),
        ],
    )
    def test_options(self, tree: Path, rayasd: Rayasd, arguments: list[str], said: str):
        refused(rayasd("sweep", "--data", tree, "--preset", "demo", "--dry-run", *arguments), said)

    def test_no_such_folder(self, rayasd: Rayasd):
        refused(rayasd("sweep", "--data", "nowhere"), "no such data folder or manifest: nowhere")

    def test_an_empty_folder(self, tmp_path: Path, rayasd: Rayasd):
        (tmp_path / "empty").mkdir()
        refused(rayasd("sweep", "--data", tmp_path / "empty"), "no clips in")

    def test_one_machine_only_where_others_are_asked_for(self, tmp_path: Path, rayasd: Rayasd):
        root = write_tree(tmp_path / "one", ("fan",))
        asked = "exposure.pseudo_anomalies=machines"
        refused(rayasd(*small_sweep(root, tmp_path / "run", "--set", asked)), "has training clips of fan alone")

    @pytest.mark.slow
    def test_one_section_only_works_and_is_said(self, tmp_path: Path, rayasd: Rayasd):
        root = write_tree(tmp_path / "tree", ("fan", "pump"))
        for path in root.rglob("section_03_*"):
            path.unlink()
        done = rayasd(*small_sweep(root, tmp_path / "run"))
        assert done.returncode == 0, done.stdout + done.stderr
        assert "No labelled evaluation sections" in done.stdout
        checked = rayasd("data", "check", root)
        assert "fan, pump: one section" in checked.stdout

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("kind", "said"),
        [
            ("cut", "is cut off"),
            ("text", "cannot be read as audio"),
            ("slow", "8000 Hz among 16000 Hz: --set data.resample=true"),
            ("stereo", "has 2 channels: --set data.channel=0"),
        ],
    )
    def test_a_bad_clip(self, tmp_path: Path, rayasd: Rayasd, kind: str, said: str):
        root = write_tree(tmp_path / "tree", ("fan", "pump"))
        clip = root / "fan/train/section_00_source_train_normal_0100.wav"
        write_clip(clip, 300, rate=8000 if kind == "slow" else 16000, channels=2 if kind == "stereo" else 1)
        if kind == "cut":
            clip.write_bytes(clip.read_bytes()[:5000])
        if kind == "text":
            clip.write_text("hello")
        result = rayasd(*small_sweep(root, tmp_path / "run"))
        refused(result, said)
        assert "fan/train/section_00_source_train_normal_0100.wav" in result.stderr
        checked = rayasd("data", "check", root)
        assert checked.returncode == 1
        assert said in checked.stdout

    def test_an_unwritable_run_directory(self, tree: Path, tmp_path: Path, rayasd: Rayasd):
        (tmp_path / "file").write_text("")
        refused(rayasd(*small_sweep(tree, tmp_path / "file" / "run")), "cannot write the run directory")

    def test_more_than_any_node_has(self, tree: Path, tmp_path: Path, rayasd: Rayasd):
        began = time.process_time()
        result = rayasd(*small_sweep(tree, tmp_path / "run", "--cpus-per-unit", "999"))
        refused(result, "999 CPUs and 0 GPUs, but the largest node has")
        assert time.process_time() - began < 15

    @pytest.mark.slow
    def test_a_ray_cluster_that_is_not_there(self, tree: Path, tmp_path: Path, rayasd: Rayasd):
        arguments = small_sweep(tree, tmp_path / "run", "--variants", "statistics", "--address", "127.0.0.1:1")
        arguments[arguments.index("local")] = "ray"
        refused(rayasd(*arguments), "no Ray cluster answers at 127.0.0.1:1")

    @pytest.mark.slow
    def test_a_cache_that_cannot_be_written(self, tree: Path, tmp_path: Path, rayasd: Rayasd):
        (tmp_path / "file").write_text("")
        arguments = small_sweep(tree, tmp_path / "run", "--cache", tmp_path / "file" / "cache")
        refused(rayasd(*arguments), "choose another --cache DIR")

    def test_a_gpu_where_there_is_none(self, tree: Path, tmp_path: Path, rayasd: Rayasd):
        arguments = small_sweep(tree, tmp_path / "run", "--variants", "statistics", "--device", "cuda")
        refused(rayasd(*arguments, CUDA_VISIBLE_DEVICES=""), "--device cuda, but no node has a GPU")

    @pytest.mark.slow
    def test_not_a_run(self, tmp_path: Path, rayasd: Rayasd):
        for command in ("train", "embed", "detect", "report"):
            refused(rayasd(command, tmp_path), "is not a run directory")


def test_help_is_quick_and_shows_every_command(rayasd: Rayasd):
    began = time.process_time()
    shown = rayasd("--help")
    assert time.process_time() - began < 2  # 0.1 s; the bound only catches an import of torch or ray
    for command in ("sweep", "train", "embed", "detect", "report", "data"):
        assert command in shown.stdout


def test_help_imports_no_torch_and_no_ray(cache: Path):
    code = "import sys, rayasd.cli.main; print([m for m in ('torch', 'ray', 'sklearn', 'pyarrow') if m in sys.modules])"
    command = [command_line()[0], "-c", code]
    shown = subprocess.run(command, env=environment(cache), capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def wait_until(condition, process: subprocess.Popen | None = None, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        assert process is None or process.poll() is None, "the process ended before"
        time.sleep(0.02)


def children_of(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
