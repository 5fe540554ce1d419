"""A cluster that is in a bad way: units run all the same, or say why they do not."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
from ray.cluster_utils import Cluster

from tests.cli.test_sweep import models, wait_until
from tests.command import command_line, environment
from tests.conftest import run_locally, small_sweep
from tests.faults.victims import Processes

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.long]


def one_node(cluster: Cluster) -> None:
    cluster.add_node(num_cpus=2, object_store_memory=80_000_000)


def ray_sweep(tree: Path, run: Path, cluster: Cluster, *more: object) -> list[str]:
    arguments = small_sweep(tree, run, "--machines", "fan", "--address", cluster.address, *more)
    arguments[arguments.index("local")] = "ray"
    return command_line(*arguments)


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    cluster = Cluster()
    one_node(cluster)
    yield cluster
    cluster.shutdown()


def test_a_full_object_store_stops_no_unit(cluster: Cluster, tree: Path, cache: Path, tmp_path: Path):
    alone = run_locally(tree, cache, tmp_path / "alone", "--machines", "fan")
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    try:
        held = [ray.put(np.zeros(10_000_000, np.uint8)) for _ in range(12)]  # what does not fit is spilled
        done = subprocess.run(ray_sweep(tree, tmp_path / "run", cluster), env=environment(cache), check=False,
                              timeout=300, capture_output=True, text=True)  # fmt: skip
        assert len(held) == 12
    finally:
        ray.shutdown()
    assert done.returncode == 0, done.stdout + done.stderr
    assert models(tmp_path / "run") == models(alone)


def test_a_sweep_whose_clusters_head_is_gone_ends_and_goes_on_elsewhere(
    cluster: Cluster, tree: Path, cache: Path, tmp_path: Path
):
    alone = run_locally(tree, cache, tmp_path / "alone", "--machines", "fan", "--set", "exposure.epochs=60")
    run, more = tmp_path / "run", ("--set", "exposure.epochs=60")
    with subprocess.Popen(ray_sweep(tree, run, cluster, *more), env=environment(cache), stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True) as driver:  # fmt: skip
        wait_until(lambda: (run / "models/both/fan/seed=0/state.pt").exists(), driver)
        os.kill(driver.pid, signal.SIGSTOP)  # or the training is over before the driver misses its head
        cluster.head_node.kill_all_processes(check_alive=False, allow_graceful=False)
        os.kill(driver.pid, signal.SIGCONT)
        output, _ = driver.communicate(timeout=300)
    assert driver.returncode == 75, output
    assert "does not answer" in output
    assert "the same command continues from here" in output
    assert not (run / "lock.json").exists()
    other = Cluster()
    try:
        one_node(other)
        done = subprocess.run(ray_sweep(tree, run, other, *more), env=environment(cache), check=False, timeout=300,
                              capture_output=True, text=True)  # fmt: skip
    finally:
        other.shutdown()
    assert done.returncode == 0, done.stdout + done.stderr
    assert models(run) == models(alone)


@pytest.mark.parametrize("daemon", ["raylet", "Ray's gcs_server"])
def test_a_sweep_whose_own_ray_loses_a_daemon_ends_and_goes_on(daemon: str, tree: Path, cache: Path, tmp_path: Path):
    alone = run_locally(tree, cache, tmp_path / "alone", "--machines", "fan", "--set", "exposure.epochs=60")
    run = tmp_path / "run"
    arguments = small_sweep(tree, run, "--machines", "fan", "--set", "exposure.epochs=60")
    arguments[arguments.index("local")] = "ray"
    command = command_line(*arguments)
    with subprocess.Popen(command, env=environment(cache), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True) as driver:  # fmt: skip
        wait_until(lambda: (run / "models/both/fan/seed=0/state.pt").exists(), driver)
        os.kill(driver.pid, signal.SIGSTOP)  # or the training is over before the driver misses it
        (victim,) = [process for process, kind in Processes(run).others(driver.pid) if kind == daemon]
        assert victim.kill()
        os.kill(driver.pid, signal.SIGCONT)
        output, _ = driver.communicate(timeout=300)
    assert driver.returncode == 75, output
    assert "the same command continues from here" in output
    done = subprocess.run(command, env=environment(cache), check=False, timeout=300, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert models(run) == models(alone)
