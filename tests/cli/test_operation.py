"""Runs seen and told from outside: status, stop, signals, parts of a run."""

import json
import os
import signal
import subprocess
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from rayasd.cli import status
from rayasd.cli.main import cli
from rayasd.files import write_json
from rayasd.stages import ALL_MACHINES
from rayasd.sweep.store import RunStore
from tests.cli import slow
from tests.cli.test_sweep import models, wait_until
from tests.command import Rayasd, call_process, command_line, environment
from tests.conftest import small_sweep

ROOT = Path(__file__).parents[2]
EPOCHS = 60
LONG = ("--machines", "fan", "--set", f"exposure.epochs={EPOCHS}", "--set", "exposure.checkpoint_every=100000",
        "--set", "exposure.objective=tests.cli.slow.Slow")  # fmt: skip
"""Long enough to be stopped, if asked to be slow; the only checkpoint is the one that the stop makes."""
ONE_FOR_ALL = ("--set", "exposure.objective=tests.cli.slow.SlowCentres(subclusters=2)", "--set", "exposure.scope=all",
               "--set", "exposure.schedule=constant", "--set", "exposure.mixup_schedule=half")  # fmt: skip
"""The same of one network for all machine types."""


def begin(run: Path, tree: Path, cache: Path, *more: object) -> subprocess.Popen[str]:
    """Start a long sweep and wait until it trains; half a minute of sleep is left to stop it in."""
    driver = subprocess.Popen(
        command_line(*small_sweep(tree, run, *LONG, *more)), env=environment(cache, **{slow.PAUSE: "0.2"}), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=ROOT,
    )  # fmt: skip

    def trains() -> bool:
        (progress,) = list(run.glob("models/both/*/seed=0/progress.json")) or [None]
        return progress is not None and json.loads(progress.read_text())["done"] > 2

    wait_until(trains, driver)
    return driver


@pytest.mark.slow
@pytest.mark.parametrize(("network", "scope"), [("fan", ()), (ALL_MACHINES, ONE_FOR_ALL)], ids=["machine", "all"])
def test_a_run_is_seen_and_stopped_from_elsewhere_and_goes_on(
    tree: Path, cache: Path, tmp_path: Path, rayasd: Rayasd, network: str, scope: tuple[str, ...]
):
    run = tmp_path / "run"
    with begin(run, tree, cache, *scope) as driver:
        shown = rayasd("status", run)
        assert f"driven by process {driver.pid} on" in shown.stdout
        assert "2 waiting, 1 running" in shown.stdout
        state = json.loads(rayasd("status", run, "--format", "json").stdout)
        assert state["states"] == {"done": 0, "waiting": 2, "running": 1, "failed": 0, "blocked": 0}
        assert [unit["unit"] for unit in state["running"]] == [f"train {network} both seed 0"]
        assert state["running"][0]["total"] == EPOCHS
        assert state["running"][0]["host"] == os.uname().nodename
        stopped = rayasd("stop", run, "--wait", 240)
        assert (stopped.returncode, stopped.stdout) == (0, "stopped\n")
        output, _ = driver.communicate(timeout=240)
    assert driver.returncode == 77  # batch scripts put 75 back in the queue
    assert not list(run.glob("stop*"))
    assert "stopped as asked" in output
    shown = rayasd("status", run)
    assert "no process works on it" in shown.stdout
    assert "3 waiting" in shown.stdout
    nobody = rayasd("stop", run)
    assert (nobody.returncode, nobody.stderr) == (2, f"error: no process works on {run}\n")
    assert (run / f"models/both/{network}/seed=0/state.pt").exists()
    done = rayasd(*small_sweep(tree, run, *LONG, *scope))
    assert done.returncode == 0, done.stdout + done.stderr
    undisturbed = tmp_path / "undisturbed"
    assert rayasd(*small_sweep(tree, undisturbed, *LONG, *scope)).returncode == 0
    assert models(run) == models(undisturbed)
    watched = rayasd("status", run, "--watch")  # ends, since nobody works on it
    assert "3 done" in watched.stdout


@pytest.mark.slow
def test_usr1_lets_units_save_at_their_epochs_end(tree: Path, cache: Path, tmp_path: Path):
    run = tmp_path / "run"
    with begin(run, tree, cache) as driver:
        driver.send_signal(signal.SIGUSR1)
        driver.communicate(timeout=240)
    assert driver.returncode == 75
    assert (run / "models/both/fan/seed=0/state.pt").exists()
    assert [event["event"] for event in RunStore(run).events()][-3:] == [
        "unit stopped", "sweep ended", "sweep interrupted",
    ]  # fmt: skip


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(("every", "code"), [(1, 75), (100000, 1)], ids=["saved", "nothing saved"])
def test_after_the_grace_the_sweep_is_interrupted_all_the_same(
    tree: Path, cache: Path, tmp_path: Path, every: int, code: int
):
    run = tmp_path / "run"
    with begin(run, tree, cache, "--grace", 2, "--set", f"exposure.checkpoint_every={every}") as driver:
        (worker,) = {json.loads(p.read_text())["pid"] for p in run.glob("models/both/fan/seed=0/progress.json")}
        os.kill(worker, signal.SIGSTOP)
        driver.send_signal(signal.SIGUSR1)
        began = time.monotonic()
        output, _ = driver.communicate(timeout=240)
    assert driver.returncode == code  # batch scripts put 75 back in the queue, where 1 would begin anew for ever
    assert ("the time limit came before a unit or an epoch was saved" in output) == (code == 1)
    assert time.monotonic() - began < 100
    assert not Path(f"/proc/{worker}").exists()


@pytest.mark.slow
def test_parts_of_a_run_give_what_the_whole_gives(tree: Path, tmp_path: Path, rayasd: Rayasd):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert rayasd(*small_sweep(tree, whole)).returncode == 0
    early = rayasd(*small_sweep(tree, parts, "--only", "fan"))
    assert early.returncode == 2
    assert "has not been set up for this: the same command with --set-up-only first" in early.stderr
    set_up = rayasd(*small_sweep(tree, parts, "--set-up-only"))
    assert set_up.returncode == 0
    assert "machines fan, pump, valve" in set_up.stdout
    other = rayasd(*small_sweep(tree, parts, "--only", "fan", "--set", "exposure.epochs=4"))
    assert other.returncode == 2
    assert "exposure.epochs: 3 -> 4" in other.stderr
    unknown = rayasd(*small_sweep(tree, parts, "--only", "fam"))
    assert unknown.returncode == 2
    assert "did you mean 'fan'?" in unknown.stderr
    unknown = rayasd(*small_sweep(tree, parts, "--only", "4/3"))
    assert (unknown.returncode, unknown.stderr.count("\n")) == (2, 1)
    assert "--only 4/3: give machines, or K/N for the K-th of N shares" in unknown.stderr
    for part in ("fan", "1/2", "2/2"):
        done = rayasd(*small_sweep(tree, parts, "--only", part))
        assert done.returncode == 0, done.stdout + done.stderr
    assert not (parts / "leaderboard.md").exists()
    assert rayasd("report", parts).returncode == 0
    assert models(parts) == models(whole)
    assert (parts / "leaderboard.csv").read_text() == (whole / "leaderboard.csv").read_text()
    assert {path.name for path in parts.glob("events*")} == {f"events-{part}.jsonl" for part in ("fan", "1of2", "2of2")}
    assert not list(parts.glob("lock*"))


def test_status_of_no_run_is_one_line(tmp_path: Path, rayasd: Rayasd):
    for command in ("status", "stop"):
        done = rayasd(command, tmp_path)
        assert done.returncode == 2
        assert "is not a run directory: it has no manifest.json" in done.stderr
        assert "Traceback" not in done.stderr
    write_json(tmp_path / "manifest.json", {})
    assert "manifest.json is damaged" in rayasd("status", tmp_path).stderr


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (("--gpus-per-unit", "1", "--executor", "ray"), "a unit asks for 1 CPU and 1 GPU, but the largest node has"),
        (
            ("--ranks-per-unit", "2", "--gpus-per-unit", "1"),
            "--ranks-per-unit 2 with --gpus-per-unit 1: give as many GPUs, or 0",
        ),
        (("--gpus-per-unit", "2"), "a unit asks for 1 CPU and 2 GPUs"),
        (("--gpus-per-unit", "1.5"), "--gpus-per-unit 1.5: a part of one GPU, or a whole number"),
        (("--device", "cuda", "--executor", "ray"), "--device cuda, but no node has a GPU"),
        (("--cpus-per-unit", "9999"), "lower --cpus-per-unit"),
    ],
)
def test_what_this_host_cannot_give_is_refused_at_once(
    tree: Path, tmp_path: Path, rayasd: Rayasd, request_: tuple[str, ...], said: str
):
    arguments = [*small_sweep(tree, tmp_path / "run"), *request_]
    done = rayasd(*arguments, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2
    assert said in done.stderr
    assert not (tmp_path / "run").exists()  # nothing was begun: no decoding, no Ray


@pytest.mark.slow
def test_gpus_that_torch_does_not_see_end_the_sweep(tree: Path, cache: Path, tmp_path: Path):
    run, rayasd = tmp_path / "run", partial(call_process, cache=cache, folder=tmp_path)
    words = small_sweep(tree, run, "--machines", "fan")
    done = rayasd(*words, CUDA_VISIBLE_DEVICES="0")
    assert done.returncode == 1
    assert "device 'cuda', but torch sees 0 CUDA devices" in " ".join(done.stdout.split())
    assert "--device cpu computes without GPUs" in " ".join(done.stdout.split())
    assert not list(run.rglob("*FAILED"))  # nothing is held against the units
    done = rayasd(*words, "--device", "cpu", CUDA_VISIBLE_DEVICES="0")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_two_processes_train_one_unit(tree: Path, tmp_path: Path, rayasd: Rayasd):
    two = ("--machines", "fan", "--ranks-per-unit", 2, "--cpus-per-unit", 2)
    done = rayasd(*small_sweep(tree, tmp_path / "run", *two))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 ranks" in done.stdout
    history = (tmp_path / "run/models/both/fan/seed=0/history.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in history]
    assert len(losses) == 3
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(("took", "pause"), [(0.01, 2.0), (3.0, 60.0)])
def test_watching_takes_no_more_than_a_twentieth_of_the_time(tmp_path: Path, monkeypatch, took: float, pause: float):
    clock, pauses = [0.0], []

    def look(store: RunStore):
        clock[0] += took
        return {"holders": [{"silent": 0.0}] * (not pauses)}, None

    monkeypatch.setattr(status, "_look", look)
    monkeypatch.setattr(status, "time", SimpleNamespace(monotonic=lambda: clock[0], sleep=pauses.append))
    done = CliRunner().invoke(cli, ["status", str(tmp_path), "--watch", "--format", "json"])
    assert done.exit_code == 0, done.output
    assert pauses == [pytest.approx(pause)]
