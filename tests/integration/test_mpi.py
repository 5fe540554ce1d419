"""The MPI executor on this host."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.cli.test_sweep import models, scores, wait_until
from tests.command import command_line, environment
from tests.conftest import small_sweep

pytestmark = [pytest.mark.mpi, pytest.mark.slow]
FROZEN = ("--machines", "fan,pump", "--set", "exposure.epochs=20000", "--hang-after", 25)


@pytest.fixture(scope="module", autouse=True)
def mpi() -> None:
    if not shutil.which("mpirun"):
        pytest.skip("no mpirun")
    tried = subprocess.run(
        [sys.executable, "-c", "from mpi4py import MPI"], capture_output=True, text=True, check=False
    )
    if tried.returncode:
        pytest.skip(f"mpi4py does not work: {tried.stderr.strip().splitlines()[-1]}")


def mpirun(ranks: int, tree: Path, run: Path, cache: Path, *more: object) -> subprocess.Popen[str]:
    words = small_sweep(tree, run, *more)
    words[words.index("local")] = "mpi"
    command = ["mpirun", "--oversubscribe", "-np", str(ranks), *command_line(*words)]
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return subprocess.Popen(command, env=environment(cache, **root), text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT)  # fmt: skip


def training(run: Path, *, epochs: int = 0) -> list[int]:
    """Process ids of the workers that have trained so many epochs."""
    records = []
    for path in run.glob("models/*/*/seed=0/progress.json"):
        with suppress(FileNotFoundError):  # this unit has ended
            records.append(json.loads(path.read_text()))
    return [record["pid"] for record in records if record["done"] >= epochs]


def test_three_ranks_survive_a_killed_worker_and_give_the_same_numbers(undisturbed, compared, tree, cache, tmp_path):
    run = tmp_path / "run"
    with mpirun(3, tree, run, cache, *compared) as job:
        wait_until(lambda: training(run), job, seconds=240)
        os.kill(training(run)[0], signal.SIGKILL)
        output, _ = job.communicate(timeout=240)
    assert job.returncode == 0, output
    assert "MPI, 2 ranks that work" in output
    assert "its worker process died (SIGKILL)" in (run / "events.jsonl").read_text()
    assert models(run) == models(undisturbed)
    assert scores(run) == scores(undisturbed)


@pytest.mark.long
def test_a_frozen_worker_is_ended_and_a_signal_interrupts(tree, cache, tmp_path):
    run = tmp_path / "run"
    with mpirun(3, tree, run, cache, *FROZEN) as job:
        wait_until(lambda: len(training(run, epochs=3)) == 2, job, seconds=240)
        frozen = training(run)[0]
        os.kill(frozen, signal.SIGSTOP)
        wait_until(lambda: not Path(f"/proc/{frozen}").exists(), job, seconds=90)
        workers = training(run)
        job.send_signal(signal.SIGUSR1)  # mpirun hands it on
        output, _ = job.communicate(timeout=90)
    assert "ended after 25 s without a sign of life" in (run / "events.jsonl").read_text()
    assert "stopped as asked" in output
    assert job.returncode == 75
    assert not (run / "lock.json").exists()
    time.sleep(1)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


def test_one_rank_alone_is_refused(tree, cache, tmp_path):
    job = mpirun(1, tree, tmp_path / "run", cache)
    output, _ = job.communicate(timeout=60)
    assert job.returncode == 2
    assert "--executor mpi needs a rank that drives and at least one that works" in output
    assert "Traceback" not in output


def test_what_rank_0_refuses_ends_all(tree, cache, tmp_path):
    job = mpirun(3, tree, tmp_path / "run", cache, "--preset", "nowhere")
    output, _ = job.communicate(timeout=60)
    assert job.returncode == 2
    assert output.count("error: ") == 1
