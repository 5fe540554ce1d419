"""Sweeps under Slurm and MPI on two hosts: they end as a sweep of one process does, whatever happens on the way."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rayasd.stages import ALL_MACHINES
from tests.conftest import run_locally
from tests.slurm.hosts import Hosts, wait_for
from tests.slurm.jobs import (
    FAULTY,
    LOCAL_TEMP,
    ROOT,
    SHORT,
    THREE_HOSTS,
    TWO_HOSTS,
    Job,
    events,
    left_behind,
    moment,
    results,
    slow_motion,
    sweep_words,
    trainings,
    wait_until_clean,
)

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="session")
def undisturbed(tree: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Results of a short sweep without any cluster."""
    return results(run_locally(tree, cache, tmp_path_factory.mktemp("local") / "run", *SHORT))


@pytest.fixture(scope="session")
def untouched(tree: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Results of the sweep to which things happen, when nothing does."""
    return results(run_locally(tree, cache, tmp_path_factory.mktemp("local") / "run", *FAULTY))


def test_a_batch_job_on_two_hosts_gives_what_one_process_gives(job, hosts, undisturbed, tmp_path, figures):
    batch = job(*SHORT, "--device", "cpu", options=(*TWO_HOSTS, "--gpus-per-node=1"))
    assert batch.wait() == "COMPLETED", batch.log
    assert "4 CPUs and 2 GPUs on 2 nodes" in batch.log
    run = tmp_path / "run"
    markers = [path.read_text() for path in run.glob("models/*/*/*/DONE")]
    assert {host for host in ("h1", "h2") if any(f'"host": "{host}"' in marker for marker in markers)} == {"h1", "h2"}
    assert results(run) == undisturbed  # bit by bit: each unit trains in one process on one thread, as there
    started = next(event for event in events(run) if event["event"] == "unit started")
    began = time.mktime(time.strptime(batch.facts()["StartTime"], "%Y-%m-%dT%H:%M:%S"))
    figures("job start to first unit", moment(started) - began)
    assert left_behind(hosts) == []
    assert "ssh -N -L" in batch.log


def test_a_job_goes_on_with_the_hosts_whose_ray_starts(job, undisturbed, tmp_path, monkeypatch: pytest.MonkeyPatch):
    """Three hosts of two sizes; on one, the first start of Ray fails, on another each one."""
    (tmp_path / "hook.py").write_text(
        "import os, pathlib\n"
        "def refuse(*_):\n"
        "    host, tried = os.uname().nodename, pathlib.Path(__file__).with_name('tried')\n"
        "    if host == 'h3' or (host == 'h2' and not tried.exists()):\n"
        "        tried.touch() if host == 'h2' else None\n"
        "        raise SystemExit(f'no Ray on {host} today')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("RAY_START_HOOK", "hook.refuse")
    batch = job(*SHORT, options=THREE_HOSTS)
    assert batch.wait() == "COMPLETED", batch.log
    assert "Ray ended on 10.78.0.2 (exit code 1): no Ray on h2 today; tried once more" in batch.log
    assert "2 of 3 nodes came, and the job continues with these: Ray ended on 10.78.0.3 (exit code 1): no" in batch.log
    assert "4 CPUs and 0 GPUs on 2 nodes" in batch.log
    assert results(tmp_path / "run") == undisturbed


@pytest.mark.long
def test_a_temporary_folder_that_hosts_share_is_named(job, tmp_path, monkeypatch: pytest.MonkeyPatch):
    short = next(parent for parent in tmp_path.parents if parent.name.startswith("pytest-of-"))
    monkeypatch.setenv("RAYASD_LAUNCH", f"--temp-dir {short} --wait 20")  # the last ones count
    batch = job(*SHORT, options=THREE_HOSTS)
    assert batch.wait(150) == "FAILED"
    assert re.search(r"error: RAYASD_TMP is shared by h1 and h[23]: \S+ must be a folder that each node has", batch.log)


@pytest.mark.long
def test_gpus_that_slurm_gives_and_torch_does_not_see_end_the_job(job):
    batch = job(*SHORT, options=("--nodes=2", "--exclusive", "--ntasks-per-node=2", "--gpus-per-node=1"))
    assert batch.wait() == "FAILED"
    assert "4 CPUs and 2 GPUs on 2 nodes" in batch.log
    assert "but torch sees 0 CUDA devices on h" in batch.log


@pytest.mark.long
@pytest.mark.parametrize("loud", [True, False], ids=["loudly", "silently"])
def test_a_lost_hosts_units_go_on_elsewhere(job, hosts, untouched, tmp_path, figures, loud: bool):
    batch, run = job(*FAULTY), tmp_path / "run"
    with slow_motion(hosts, run) as slow:
        hosts.kill(2, loud=loud)
        killed = time.time()
    lost = next(machine for machine, training in slow.items() if training.host == "h2")
    try:
        again = f"train {lost} both seed 0"
        wait_for(lambda: [e.get("unit") for e in events(run) if e["event"] == "unit started"].count(again) == 2, 90)
        restarted = [event for event in events(run) if event["event"] == "unit started" and event["unit"] == again][-1]
        figures(f"host lost {'loudly' if loud else 'silently'} to its unit's new start", moment(restarted) - killed)
        assert moment(restarted) - killed < 60
        assert batch.wait() == "COMPLETED", batch.log
    finally:
        hosts.boot(2)
        wait_for(lambda: hosts.states().get("h2") == "idle", 120)
    assert results(run) == untouched


@pytest.mark.long
def test_a_host_that_comes_back_has_the_launchers_started_again_within_the_job(job, hosts, untouched, tmp_path):
    batch, run = job(*FAULTY, "--device", "cpu", options=(*TWO_HOSTS, "--gpus-per-node=1")), tmp_path / "run"
    with slow_motion(hosts, run):
        hosts.kill(2)
        time.sleep(5)
        hosts.boot(2)
        wait_for(lambda: "came back: started again on 2 nodes" in batch.log, 90)
    assert batch.wait(300) == "COMPLETED", batch.log
    assert batch.facts()["Restarts"] == "0"
    assert results(run) == untouched
    wait_for(hosts.idle, 60)


@pytest.mark.long
def test_a_killed_driver_and_a_preempted_job_are_put_back_in_the_queue(job, hosts, untouched, tmp_path):
    batch, run = job(*FAULTY), tmp_path / "run"
    with slow_motion(hosts, run) as first:
        hosts.node(1, "sh", "-c", "kill -9 $(pgrep -f 'rayasd sweep')")
    batch.wait(60, "PENDING")
    assert "the driver was ended by SIGKILL" in batch.log
    urgent = ("--partition=urgent", "--exclusive", "--nodes=2", "--output=/dev/null", "--wrap=sleep 3")
    with slow_motion(hosts, run, first):
        assert batch.facts()["Restarts"] == "1"
        assert hosts.run("sbatch", *urgent, cwd=tmp_path).returncode == 0
    batch.wait(90, "PENDING")
    assert batch.wait(300) == "COMPLETED", batch.log
    assert batch.facts()["Restarts"] == "2"
    assert results(run) == untouched


@pytest.mark.long
def test_a_lost_head_is_put_back_in_the_queue(job, hosts, untouched, tmp_path):
    batch, run = job(*FAULTY), tmp_path / "run"
    with slow_motion(hosts, run):
        hosts.kill(1)
    try:
        batch.wait(150, "PENDING")
    finally:
        hosts.boot(1)
    assert "the head is lost: back into the queue" in batch.log
    assert batch.wait(300) == "COMPLETED", batch.log
    assert results(run) == untouched
    wait_for(hosts.idle, 120)


@pytest.mark.long
def test_a_network_that_comes_back_loses_nothing(job, hosts, untouched, tmp_path):
    batch, run = job(*FAULTY), tmp_path / "run"
    with slow_motion(hosts, run):
        pass  # not while it is cut: a process that is too slow to find its head again leaves
    hosts.cut(2)
    time.sleep(8)
    hosts.heal(2)
    assert batch.wait() == "COMPLETED", batch.log
    assert results(run) == untouched


@pytest.mark.long
def test_at_the_time_limit_units_save_and_the_job_goes_on_later(job, hosts, untouched, tmp_path):
    batch, run = job(*FAULTY, options=(*TWO_HOSTS, "--time=60", "--signal=B:USR1@90")), tmp_path / "run"
    with slow_motion(hosts, run):
        began = time.mktime(time.strptime(batch.facts()["StartTime"], "%Y-%m-%dT%H:%M:%S"))
        minutes = (time.time() - began) // 60 + 2  # one to two from now, so that the signal comes soon: within 30 s
        hosts.run("scontrol", "update", f"JobId={batch.number}", f"TimeLimit={minutes:.0f}")
        wait_for((run / "stop").exists, 120)
    batch.wait(120, "PENDING")
    hosts.run("scontrol", "update", f"JobId={batch.number}", "TimeLimit=60")  # one interruption is enough
    assert batch.wait(540) == "COMPLETED", batch.log
    assert int(batch.facts()["Restarts"]) >= 1
    assert "unit stopped" in [event["event"] for event in events(run)]
    assert results(run) == untouched


@pytest.mark.long
def test_a_client_without_the_token_is_refused_and_a_cancelled_job_leaves_nothing(job, hosts, tmp_path, figures):
    batch, run = job(*FAULTY, "--set", "exposure.epochs=20000"), tmp_path / "run"
    wait_for(lambda: len(trainings(run)) == 2, 240)
    (token,) = tmp_path.glob("launch-*/token")
    assert token.stat().st_mode & 0o777 == 0o600
    assert token.read_text() not in hosts.node(1, "ps", "-eo", "args").stdout
    executor = next(event["executor"] for event in events(run) if "executor" in event)
    address = executor.split()[2].rstrip(":")
    client = f"import ray; ray.init(address={address!r}); print('let', 'in')"
    anybody = ("env", "-u", "RAY_AUTH_MODE", f"HOME={tmp_path}")
    asked = hosts.node(2, *anybody, sys.executable, "-c", client, timeout=150)
    assert asked.returncode != 0
    assert "let in" not in asked.stdout
    known = ("RAY_AUTH_MODE=token", f"RAY_AUTH_TOKEN_PATH={token}")
    asked = hosts.node(2, *anybody, *known, sys.executable, "-c", client, timeout=60)
    assert "let in" in asked.stdout  # it was for the token alone
    assert batch.state() == "RUNNING"
    assert {training.host for training in trainings(run).values()} == {"h1", "h2"}
    hosts.run("scancel", batch.number)
    figures("scancel until nothing is left", wait_until_clean(hosts, seconds=60))
    assert batch.wait(60, "CANCELLED")
    assert not (run / "lock.json").exists()
    assert not list(tmp_path.glob("launch-*/token"))


@pytest.mark.long
def test_two_jobs_on_one_host_do_not_disturb_each_other(job, undisturbed, tmp_path):
    options = ("--nodes=1", "--nodelist=h1", "--cpus-per-task=1", "--mem=100")
    batches = [job(*SHORT, options=options, run=name) for name in ("one", "two")]
    for batch in batches:
        batch.wait(60, "RUNNING")
    for batch, name in zip(batches, ("one", "two"), strict=True):
        assert batch.wait() == "COMPLETED", batch.log
        assert results(tmp_path / name) == undisturbed


def launch_by_hand(hosts: Hosts, k: int, folder: Path, *words: object, **variables: str) -> subprocess.Popen[str]:
    """Start a launcher on a host."""
    command = [sys.executable, "-m", "rayasd", "launch", "--temp-dir", LOCAL_TEMP, "--cpus", 1, "--gpus", 0, *words]
    return subprocess.Popen(
        hosts.words(f"h{k}", *command, cwd=folder), env={**hosts.environment, **variables}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


@pytest.mark.long
def test_why_hosts_do_not_come_together_is_said_on_all_of_them(hosts, tmp_path):
    """Two jobs at once: one waits for a third host, the other has a host where Ray cannot start."""
    words = ("--job", "short", "--size", 3, "--wait", 45, "--min-nodes", 3)
    short = [launch_by_hand(hosts, k, tmp_path, *words, "--rank", k - 1, "--", "report", "--help") for k in (1, 2)]
    words = ("--job", "broken", "--size", 2, "--min-nodes", 2)
    broken = [
        launch_by_hand(hosts, 1, tmp_path, *words, "--rank", 0, "--", "report", "--help"),
        launch_by_hand(
            hosts, 2, tmp_path, *words, "--rank", 1, "--", "report", "--help", RAY_START_HOOK="no.such.hook"
        ),
    ]
    outputs = [launcher.communicate(timeout=120)[0] for launcher in short]
    assert [launcher.returncode for launcher in short] == [2, 2]
    assert "2 of 3 nodes came together within 45 s: no word from rank 2" in outputs[0]
    outputs = [launcher.communicate(timeout=90)[0] for launcher in broken]
    assert [launcher.returncode for launcher in broken] == [2, 2]
    for output in outputs:
        assert "Ray ended on 10.78.0.2 (exit code 1)" in output
        assert "Traceback" not in output
    wait_until_clean(hosts)


@pytest.mark.long
def test_a_launcher_without_free_ports_is_a_failed_job_with_its_reason(job, hosts):
    take_all = (
        "import socket, time; s = [socket.create_server(('', p)) for p in range(20000, 32000, 100)]; time.sleep(300)"
    )
    squatter = subprocess.Popen(hosts.words("h2", sys.executable, "-c", take_all), env=hosts.environment)
    try:
        batch = job(*SHORT)
        assert batch.wait(60) == "FAILED"
        assert "error: no free block of 100 ports from 20000 to 32000 at 10.78.0.2" in batch.log
    finally:
        squatter.kill()
        squatter.wait()


@pytest.mark.long
def test_mpirun_starts_the_launchers(hosts, undisturbed, tree, cache, tmp_path):
    words = sweep_words(tree, tmp_path / "run", *SHORT)
    done = hosts.mpirun(
        "--host", "h1,h2", "-x", "RAYASD_CACHE", sys.executable, "-m", "rayasd", "launch", "--temp-dir", LOCAL_TEMP,
        "--cpus", 2, "--gpus", 0, "--", "sweep", *words, cwd=tmp_path, timeout=240, RAYASD_CACHE=str(cache),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "4 CPUs and 0 GPUs on 2 nodes" in done.stdout
    assert results(tmp_path / "run") == undisturbed
    wait_until_clean(hosts)


def test_mpi_ranks_do_the_units(hosts, undisturbed, tree, cache, tmp_path):
    words = sweep_words(tree, tmp_path / "run", *SHORT, "--executor", "mpi", "--device", "cpu")
    done = hosts.mpirun(
        "--host", "h1:2,h2:1", "-x", "RAYASD_CACHE", sys.executable, "-m", "rayasd", "sweep", *words,
        cwd=tmp_path, timeout=240, RAYASD_CACHE=str(cache),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "MPI, 2 ranks that work" in done.stdout
    markers = [path.read_text() for path in (tmp_path / "run").glob("models/*/*/*/DONE")]
    assert {host for host in ("h1", "h2") if any(f'"host": "{host}"' in marker for marker in markers)} == {"h1", "h2"}
    assert results(tmp_path / "run") == undisturbed


@pytest.mark.long
def test_srun_starts_mpi_ranks(hosts, undisturbed, tree, cache, tmp_path):
    words = sweep_words(tree, tmp_path / "run", *SHORT, "--executor", "mpi")
    done = hosts.run(
        "srun", "--mpi=pmix", "--nodes=2", "--ntasks=3", "--mem=200", sys.executable, "-m", "rayasd", "sweep", *words,
        cwd=tmp_path, timeout=240, RAYASD_CACHE=str(cache),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "MPI, 2 ranks that work" in done.stdout
    assert results(tmp_path / "run") == undisturbed


def test_ranks_that_are_each_alone_are_refused(hosts, tree, cache, tmp_path):
    words = sweep_words(tree, tmp_path / "run", *SHORT, "--executor", "mpi")
    done = hosts.run(
        "srun", "--mpi=none", "--nodes=2", "--ntasks=2", "--mem=200", sys.executable, "-m", "rayasd", "sweep", *words,
        cwd=tmp_path, timeout=60, RAYASD_CACHE=str(cache),
    )  # fmt: skip
    assert done.returncode != 0
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_doctor_has_nothing_to_say_about_a_plain_srun(hosts, tmp_path):
    words = (
        "srun",
        "--nodes=2",
        "--ntasks-per-node=1",
        sys.executable,
        "-m",
        "rayasd",
        "doctor",
        "--temp-dir",
        LOCAL_TEMP,
    )
    done = hosts.run(*words, cwd=tmp_path, timeout=120)
    assert done.stdout.count("0 bad") == 2, done.stdout
    assert "MPI" not in done.stdout


def submit_array(hosts: Hosts, folder: Path, cache: Path, *words: object) -> dict[str, Job]:
    """Submit a sweep of two machines as an array; returns its jobs by what they do."""
    done = hosts.run(
        ROOT / "slurm/array.sh", "--cpus-per-task=1", "--mem=100", "--", *words, cwd=folder, timeout=90,
        RAYASD_CACHE=str(cache), RAYASD_VENV=sys.prefix,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    parts = [part.rpartition(" ") for part in done.stdout.strip().splitlines()[-1].split(", ")]
    return {what: Job(hosts, number, folder) for what, _, number in parts}


def ends(array: Job) -> list[str]:
    """Return the state of each task of an array."""
    shown = array.hosts.run("scontrol", "--oneliner", "show", "job", array.number).stdout
    return re.findall(r"JobState=(\w+)", shown)


def test_an_array_does_the_same_without_a_cluster(hosts, undisturbed, tree, cache, tmp_path):
    jobs = submit_array(hosts, tmp_path, cache, *sweep_words(tree, tmp_path / "run", *SHORT))
    assert list(jobs) == ["plan", "2 tasks", "report"]
    assert jobs["report"].wait(300) == "COMPLETED", jobs["report"].log
    assert ends(jobs["2 tasks"]) == ["COMPLETED"] * 2
    assert results(tmp_path / "run").keys() == undisturbed.keys()
    assert results(tmp_path / "run") == undisturbed


@pytest.mark.long
def test_an_arrays_shared_network_goes_on_in_the_queue_and_the_machines_wait(
    hosts, shared_preset, tree, cache, tmp_path
):
    compared = ("--preset", shared_preset, "--variants", "both,one", "--machines", "fan,pump",
                "--set", "exposure.epochs=60")  # fmt: skip
    run, alone = tmp_path / "run", run_locally(tree, cache, tmp_path / "local", *compared)
    jobs = submit_array(hosts, tmp_path, cache, *sweep_words(tree, run, *compared))
    assert list(jobs) == ["plan", "shared network", "4 tasks", "report"]
    network = jobs["shared network"]
    wait_for(lambda: ALL_MACHINES in trainings(run, "one"), 120)
    hosts.run("scancel", "--batch", "--signal=USR1", network.number)  # as Slurm does before the time limit
    network.wait(60, "PENDING")
    assert "interrupted: back into the queue" in network.log
    assert ends(jobs["4 tasks"]) == ["PENDING"]
    assert jobs["report"].wait(400) == "COMPLETED", jobs["report"].log
    assert network.facts()["Restarts"] == "1"
    assert [network.state(), *ends(jobs["4 tasks"])] == ["COMPLETED"] * 5
    happened = [(event["event"], event.get("unit")) for event in events(run, f"-{ALL_MACHINES}")]
    assert ("unit stopped", f"train {ALL_MACHINES} one seed 0") in happened
    assert results(run) == results(alone)
