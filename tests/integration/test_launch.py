"""Launchers of one job, as processes of this host on the loopback."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

from tests.cli.test_sweep import models
from tests.command import Rayasd, command_line, environment
from tests.conftest import small_sweep

ROOT = Path(f"/tmp/l{os.getpid()}")
"""Where Ray's files go: a short path of this process's own."""

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def start(
    folder: Path, cache: Path, rank: int, size: int, job: str, *command: object, wait: int = 120, min_nodes: int = 2
):
    words = ("launch", "--job", job, "--rank", rank, "--size", size, "--node-address", "127.0.0.1", "--cpus", 1,
             "--gpus", 0, "--wait", wait, "--min-nodes", min_nodes, "--", *command)  # fmt: skip
    return subprocess.Popen(
        command_line(*words), env=environment(cache, RAYASD_TMP=str(ROOT)), cwd=folder, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def processes_of(marker: str) -> list[str]:
    """Command lines of processes with this word in their arguments."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if marker in line and str(os.getpid()) != path.parent.name:
            found.append(line)
    return found


def read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def wait_until(condition: Callable[[], object], seconds: float) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.2)


def ask(dashboard: str, token: str, path: str) -> Any:
    """Ask Ray's dashboard as a browser does; it answers JSON, or the text of a log."""
    question = Request(f"{dashboard}{path}", headers={"Authorization": f"Bearer {token}"})
    with urlopen(question, timeout=30) as answer:
        said = answer.read().decode()
    return json.loads(said) if said.startswith(("{", "[")) else said


def wait_for_a_checkpoint(run: Path, head: subprocess.Popen) -> None:
    until = time.monotonic() + 240
    while not list(run.glob("models/both/*/seed=0/state.pt")):
        assert head.poll() is None, head.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.2)


@pytest.fixture
def job(tmp_path: Path):
    """Name of a job; nothing of it may be left."""
    ROOT.mkdir(exist_ok=True)
    yield f"test-{os.getpid()}-{tmp_path.name[-8:]}"
    assert not list(tmp_path.glob("launch-*"))
    assert not list(ROOT.iterdir())
    ROOT.rmdir()
    until = time.monotonic() + 20
    while processes_of(str(tmp_path)) and time.monotonic() < until:
        time.sleep(0.5)
    assert processes_of(str(tmp_path)) == []


def test_two_launchers_are_one_cluster_and_leave_nothing(
    undisturbed: Path, compared: tuple[object, ...], tree: Path, cache: Path, tmp_path: Path, job: str, rayasd: Rayasd
):
    sweep = [str(word) for word in small_sweep(tree, tmp_path / "run", *compared)]
    sweep = [word for word in sweep if word not in ("--executor", "local")]
    launchers = [start(tmp_path, cache, rank, 2, job, *sweep) for rank in (1, 0)]
    wait_until(lambda: "unit started" in read(tmp_path / "run/events.jsonl"), 240)
    reached = dict(line.split(maxsplit=1) for line in rayasd("dashboard", tmp_path / "run").stdout.splitlines()[-2:])
    assert "dashboard http://127.0.0.1:" in rayasd("status", tmp_path / "run").stdout
    dashboard, token = reached["in"].split()[-1], reached["token"]

    def jobs() -> list[dict]:
        return [each for each in ask(dashboard, token, "/api/jobs/") if " waiting" in each["message"]]

    wait_until(jobs, 60)
    (listed,) = jobs()
    assert (listed["status"], listed["metadata"]["job_name"]) == ("RUNNING", f"sweep {tmp_path / 'run'}")
    assert listed["entrypoint"].startswith("rayasd sweep --data ")
    assert " waiting" in listed["message"]
    place = f"node_id={listed['driver_node_id']}&filename=job-driver-{listed['submission_id']}.log"
    assert "units to do, 0 done before" in ask(dashboard, token, f"/api/v0/logs/file?{place}")
    outputs = [launcher.communicate(timeout=300)[0] for launcher in launchers]
    assert [launcher.returncode for launcher in launchers] == [0, 0], outputs
    assert "2 CPUs and 0 GPUs on 2 nodes" in outputs[1]
    assert (tmp_path / "run/leaderboard.md").exists()
    assert models(tmp_path / "run") == models(undisturbed)  # the same numbers as without a cluster


@pytest.mark.long
def test_a_missing_node_is_a_failed_job_with_its_reason(cache: Path, tmp_path: Path, job: str):
    head = start(tmp_path, cache, 0, 2, job, "report", "--help", wait=20)
    output, _ = head.communicate(timeout=120)
    assert head.returncode != 0
    assert "1 of 2 nodes came together within 20 s: no word from rank 1" in output
    assert "Traceback" not in output


@pytest.mark.long
def test_a_second_job_of_the_same_name_is_refused_and_disturbs_nothing(cache: Path, tmp_path: Path, job: str):
    first = start(tmp_path, cache, 0, 2, job, "report", "--help", wait=30)
    until = time.monotonic() + 60
    while not list(tmp_path.glob("launch-*/head.json")) and time.monotonic() < until:
        time.sleep(0.1)
    second = start(tmp_path, cache, 0, 2, job, "report", "--help")
    output, _ = second.communicate(timeout=60)
    assert second.returncode == 2
    assert "a job of this name runs, or was killed" in output
    worker = start(tmp_path, cache, 1, 2, job, "report", "--help")
    assert "Print RUN's leaderboard" in first.communicate(timeout=120)[0]
    worker.communicate(timeout=60)
    assert (first.returncode, worker.returncode) == (0, 0)


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM], ids=["USR1", "TERM"])
def test_a_signal_saves_and_ends_with_75(tree: Path, cache: Path, tmp_path: Path, job: str, number: signal.Signals):
    sweep = [str(w) for w in small_sweep(tree, tmp_path / "run", "--set", "exposure.epochs=2000")]
    sweep = [word for word in sweep if word not in ("--executor", "local")]
    head = start(tmp_path, cache, 0, 1, job, *sweep)
    wait_for_a_checkpoint(tmp_path / "run", head)
    head.send_signal(number)
    output, _ = head.communicate(timeout=60)
    assert head.returncode == 75, output
    assert "interrupted: the same command continues from here" in output


@pytest.mark.long
def test_a_killed_launcher_takes_its_ray_with_it(tree: Path, cache: Path, tmp_path: Path, job: str):
    sweep = [str(w) for w in small_sweep(tree, tmp_path / "run", "--set", "exposure.epochs=2000")]
    head = start(tmp_path, cache, 0, 1, job, *[word for word in sweep if word not in ("--executor", "local")])
    wait_for_a_checkpoint(tmp_path / "run", head)
    (folder,) = ROOT.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert list((folder / "ray").glob("session_*/sockets/*"))  # which Ray opens to all, within
    words = ("gc", "--temp-dir", ROOT, "--older-than", 0, "--yes")
    mine = environment(cache, RAYASD_TMP=str(ROOT), RAY_TMPDIR=str(tmp_path))
    in_use = subprocess.run(command_line(*words), env=mine, capture_output=True, text=True, check=True)
    assert in_use.stdout == "nothing is left over\n"
    head.kill()
    head.communicate(timeout=60)
    until = time.monotonic() + 40
    while processes_of(folder.name) and time.monotonic() < until:
        time.sleep(0.5)
    assert not processes_of(folder.name)
    said = ""
    while "folder of a Ray of ours that is gone" not in said and time.monotonic() < until:  # workers end last
        said = subprocess.run(command_line(*words), env=mine, capture_output=True, text=True, check=True).stdout
    assert f"{folder}  (folder of a Ray of ours that is gone)" in said  # files do outlive a killed launcher
    for leftover in tmp_path.glob("launch-*"):
        shutil.rmtree(leftover)
