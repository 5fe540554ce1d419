"""A real Ray cluster on this host."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.parse
import urllib.request
from pathlib import Path

import pytest

from rayasd.stages import ALL_MACHINES
from tests.cli.test_sweep import models, scores, wait_until
from tests.command import command_line, environment
from tests.conftest import small_sweep

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def ray_sweep(tree: Path, run: Path, *more: object) -> list[str]:
    arguments = small_sweep(tree, run, *more)
    arguments[arguments.index("local")] = "ray"
    return command_line(*arguments)


def processes(text: str) -> list[int]:
    """Find processes whose command line or title holds ``text``."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                if text.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def metrics_of(driver: int) -> str:
    """Read what Prometheus would read of a driver's own Ray."""
    (session,) = Path("/tmp").glob(f"ra????????/ray/session_*_{driver}")
    (port,) = [path.read_text().strip() for path in session.glob("metrics_export_port_*")]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return answer.read().decode()


def test_a_ray_sweep_survives_killed_workers_and_gives_what_the_local_one_gives(
    undisturbed: Path, compared: tuple[object, ...], tree: Path, cache: Path, tmp_path: Path
):
    run, killed = tmp_path / "run", {"one": ALL_MACHINES, "both": "fan"}  # as they start
    command = ray_sweep(tree, run, *compared)
    with subprocess.Popen(command, env=environment(cache), stdout=subprocess.PIPE, text=True,
                          stderr=subprocess.STDOUT) as driver:  # fmt: skip
        wait_until(lambda: (run / "ray-token").exists() or (run / "events.jsonl").exists(), driver)
        assert (run / "ray-token").stat().st_mode & 0o777 == 0o600
        for variant, machine in killed.items():
            folder = run / f"models/{variant}/{machine}/seed=0"
            wait_until((folder / "state.pt").exists, driver, seconds=240)
            worker = json.loads((folder / "progress.json").read_text())["pid"]
            assert worker in processes(f"ray::train {machine} {variant} seed 0")
            os.kill(worker, signal.SIGKILL)
        output, _ = driver.communicate(timeout=300)
    assert driver.returncode == 0, output
    assert "dashboard http://127.0.0.1:" in output
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    again = [event for event in events if event["event"] == "unit to be tried again"]
    assert sorted(event["unit"] for event in again) == ["train fan both seed 0", f"train {ALL_MACHINES} one seed 0"]
    assert all("Ray worker was lost" in event["reason"] for event in again)
    assert models(run) == models(undisturbed)
    assert scores(run) == scores(undisturbed)
    assert not (run / "ray-token").exists()
    assert list((run / "ray-logs").glob("worker-*"))  # the worker's last words


@pytest.mark.long
def test_an_interrupted_ray_sweep_leaves_no_process_and_goes_on(
    undisturbed: Path, compared: tuple[object, ...], tree: Path, cache: Path, tmp_path: Path
):
    run = tmp_path / "run"
    # Ray's own processes carry the session folder's name, which carries the driver's process id
    command = ray_sweep(tree, run, *compared)
    with subprocess.Popen(command, env=environment(cache), stdout=subprocess.DEVNULL) as driver:
        wait_until(lambda: list(run.glob("models/both/*/seed=0/state.pt")), driver, seconds=240)
        session = f"_{driver.pid}"
        assert processes(session)
        driver.send_signal(signal.SIGINT)
        driver.communicate(timeout=60)
    assert driver.returncode == 75
    wait_until(lambda: not processes(session), seconds=30)
    done = subprocess.run(command, env=environment(cache), check=False, timeout=300, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert models(run) == models(undisturbed)


@pytest.mark.long
def test_a_frozen_worker_is_ended_and_metrics_tell_of_it(tree: Path, cache: Path, tmp_path: Path):
    run = tmp_path / "run"
    command = [*ray_sweep(tree, run), "--machines", "fan", "--set", "exposure.epochs=20000",
               "--hang-after", "25", "--max-tries", "5"]  # fmt: skip
    progress = run / "models/both/fan/seed=0/progress.json"
    with subprocess.Popen(command, env=environment(cache), stdout=subprocess.PIPE,
                          text=True, stderr=subprocess.STDOUT) as driver:  # fmt: skip
        wait_until(lambda: progress.exists() and json.loads(progress.read_text())["done"] > 2, driver)
        frozen = json.loads(progress.read_text())["pid"]
        os.kill(frozen, signal.SIGSTOP)
        wait_until(lambda: not Path(f"/proc/{frozen}").exists(), driver, seconds=90)
        wait_until(lambda: progress.exists() and json.loads(progress.read_text())["pid"] != frozen, driver)
        wait_until(lambda: "rayasd_clips_per_second{" in metrics_of(driver.pid), driver, seconds=60)
        measured = metrics_of(driver.pid)
        driver.send_signal(signal.SIGUSR1)
        output, _ = driver.communicate(timeout=90)
    assert driver.returncode == 75, output
    assert "ended after 25 s without a sign of life" in (run / "events.jsonl").read_text()
    for label in ('stage="train"', 'state="running"', 'unit="train fan both seed 0"'):
        assert label in measured
    shown = set(re.findall(r"ray_rayasd_\w+", (ROOT / "docs/grafana.json").read_text()))
    assert len(shown) == 5
    assert {
        name for name in shown if f"\n{name}{{" in measured
    } == shown  # the Grafana dashboard asks for what is there


@pytest.mark.long
def test_a_unit_that_is_killed_for_memory_fails_alone_after_its_tries(tree: Path, cache: Path, tmp_path: Path):
    run = tmp_path / "run"
    command = [*ray_sweep(tree, run), "--machines", "fan"]
    little = environment(cache, RAY_memory_usage_threshold="0.001", RAY_memory_monitor_refresh_ms="100")
    done = subprocess.run(command, env=little, check=False, timeout=300, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    ends = [event for event in events if "reason" in event]
    assert [event["event"] for event in ends] == ["unit to be tried again", "unit failed"]
    assert "memory" in ends[1]["reason"]


AGAIN = """
import os, sys
from pathlib import Path
from rayasd.cluster.executor import RayExecutor
def authentication():
    return {name: value for name, value in os.environ.items() if name.startswith("RAY_AUTH")}
for given in ({}, {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "4" * 64}):
    os.environ.update(given)
    executor = RayExecutor(None, Path(sys.argv[1]))
    assert authentication() == {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": sys.argv[1]}
    executor.close()
    assert not Path(sys.argv[1]).exists() and authentication() == given
"""


@pytest.mark.long
def test_a_second_ray_of_one_process_starts(cache: Path, tmp_path: Path):
    command = [sys.executable, "-c", AGAIN, tmp_path / "token"]
    done = subprocess.run(command, env=environment(cache), capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not shutil.which("prometheus"), reason="prometheus is not installed")
def test_prometheus_reads_the_metrics_of_a_run_until_it_is_ended(tree: Path, cache: Path, tmp_path: Path):
    run, short = tmp_path / "run", {**environment(cache), "TMPDIR": str(tmp_path)}
    words = ray_sweep(tree, run, "--machines", "fan", "--set", "exposure.epochs=20000")
    with subprocess.Popen(words, env=environment(cache), stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as driver:
        wait_until(lambda: (run / "models/both/fan/seed=0/progress.json").exists(), driver)
        (listed,) = Path("/tmp").glob(f"ra????????/ray/session_*_{driver.pid}/../prom_metrics_service_discovery.json")
        wait_until(listed.exists, driver)
        with subprocess.Popen(command_line("dashboard", run, "--with-prometheus"), env=short, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as prometheus:  # fmt: skip
            wait_until(lambda: ask("ray_rayasd_unit_done") and ask("ray_node_cpu_count"), prometheus)
            (series,) = ask('sum by (state) (ray_rayasd_units{state="running"})')
            refused = subprocess.run(command_line("dashboard", run, "--with-prometheus"), env=short, text=True,
                                     capture_output=True, check=False)  # fmt: skip
            prometheus.send_signal(signal.SIGINT)
            said, _ = prometheus.communicate(timeout=30)
        driver.send_signal(signal.SIGTERM)
        driver.communicate(timeout=90)
    assert series["value"][1] == "1"
    assert prometheus.returncode == 0
    assert "Prometheus       http://127.0.0.1:9090 until Ctrl-C" in said
    assert not list(tmp_path.glob("rayasd-prometheus-*"))
    assert refused.returncode == 2
    assert "error: prometheus ended with exit code 1" in refused.stderr
    assert "address already in use" in refused.stderr


def ask(query: str) -> list[dict]:
    """Return what Prometheus answers; nothing where none listens yet."""
    words = urllib.parse.urlencode({"query": query})
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:9090/api/v1/query?{words}", timeout=10) as answer:
            return json.load(answer)["data"]["result"]
    except OSError:
        return []
