"""The cluster itself: jobs, networks, lost hosts, and that nothing of it is left."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.slurm.hosts import CHECKOUT, FOLDER, Hosts, wait_for

HOST = rf".* {Path(__file__).with_name('hosts.py').resolve()} be-host "  # process 1 of a host of this checkout


def processes(pattern: str) -> list[str]:
    """Return command lines that begin like this; the machine sees those of all hosts."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            lines.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return [line for line in lines if re.match(pattern, line)]


def sleepers(seconds: str) -> list[str]:
    """Return the processes that sleep so long."""
    return processes(rf"\S*sleep {seconds} ")


def leftovers(jobs: range) -> list[str]:
    """What a cluster has beside its own folder: network namespaces, mounts, control groups, processes 1 of hosts."""
    freezer = Path("/sys/fs/cgroup/freezer")
    if set(FOLDER.parent.glob("rayasd-hosts-*/")) - {FOLDER}:  # another checkout's has groups of the same names
        groups = [path for path in freezer.glob("slurm_h*/uid_*/job_*") if int(path.name.removeprefix("job_")) in jobs]
    else:
        groups = [*freezer.glob("slurm_h[0-9]*")]
    mounts = [line for line in Path("/proc/mounts").read_text().splitlines() if f" {FOLDER}" in line]
    spaces = Path("/run/netns").glob(f"rayasd-{CHECKOUT}-*")
    return [*map(str, [*spaces, *groups]), *mounts, *processes(HOST)]


@pytest.fixture
def whole(hosts: Hosts) -> Iterator[Hosts]:
    """Idle hosts before and after a test that takes one away."""
    yield hosts
    hosts.boot(2)
    hosts.heal(2)
    hosts.run("scancel", "--user=root")
    wait_for(hosts.idle, 60)


def test_srun_reaches_two_hosts_with_addresses_of_their_own(hosts: Hosts):
    says = "echo $(hostname) $(hostname -I) $SLURM_CPUS_ON_NODE $SLURM_GPUS_ON_NODE"
    done = hosts.run(*["srun", "--nodes=2", "--exclusive", "--gpus-per-node=1", "sh", "-c"], says)
    assert sorted(done.stdout.splitlines()) == ["h1 10.78.0.1 2 1", "h2 10.78.0.2 2 1"]


def test_a_host_has_folders_of_its_own_and_shares_the_rest(hosts: Hosts, tmp_path: Path):
    hosts.node(1, "touch", "/tmp/ray/mine", "/dev/shm/mine", "ours", cwd=tmp_path)
    assert hosts.node(2, "ls", "/tmp/ray", "/dev/shm", ".", cwd=tmp_path).stdout.split() == [
        ".:", "ours", "/dev/shm:", "/tmp/ray:",
    ]  # fmt: skip
    assert not Path("/dev/shm/mine").exists()
    hosts.node(1, "rm", "/tmp/ray/mine", "/dev/shm/mine")  # a job is looked at for what it leaves there


def test_variables_and_exit_codes_come_through(hosts: Hosts):
    done = hosts.run("srun", "sh", "-c", "echo $COLOUR; exit 75", COLOUR="blue")
    assert "blue" in done.stdout.splitlines()
    assert done.returncode == 75


def test_a_command_that_takes_too_long_is_ended(hosts: Hosts):
    marker = f"30.{os.getpid()}"
    with pytest.raises(subprocess.TimeoutExpired):
        hosts.node(1, "sleep", marker, timeout=0.5)
    wait_for(lambda: not sleepers(marker), 5)


@pytest.mark.long
def test_a_killed_job_leaves_no_process(hosts: Hosts, tmp_path: Path):
    marker = f"300.{os.getpid()}"
    job = f"srun sh -c 'setsid sleep {marker} & trap : TERM; while :; do sleep {marker}; done'"
    hosts.run("sbatch", "--nodes=2", "--output=log", f"--wrap={job}", cwd=tmp_path)
    wait_for(lambda: len(sleepers(marker)) == 4, 20)
    hosts.run("scancel", "--user=root")
    wait_for(lambda: not sleepers(marker), 60)
    wait_for(hosts.idle, 20)


@pytest.mark.long
def test_an_urgent_job_sends_another_back_to_the_queue(hosts: Hosts, tmp_path: Path):
    batch = ["sbatch", "--nodes=2", "--exclusive", "--requeue", "--parsable", "--output=log", "--wrap"]
    job = hosts.run(*batch, "echo started; sleep 300 & wait", cwd=tmp_path).stdout.strip()
    wait_for((tmp_path / "log").exists, 20)
    urgent = hosts.run("srun", "--partition=urgent", "--exclusive", "hostname")
    assert {"h1", "h2"} & set(urgent.stdout.splitlines())
    wait_for(lambda: "JobState=PENDING" in hosts.run("scontrol", "show", "job", job).stdout, 30)
    assert "Restarts=1" in hosts.run("scontrol", "show", "job", job).stdout
    hosts.run("scancel", job)
    wait_for(hosts.idle, 20)


@pytest.mark.long
def test_a_cut_network_is_silent_until_it_is_healed(whole: Hosts):
    reach = [sys.executable, "-c", "import socket; socket.create_connection(('h2', 6818), 2)"]  # slurmd
    assert whole.node(1, *reach).returncode == 0
    whole.cut(2)
    assert "imed out" in whole.node(1, *reach).stdout
    whole.heal(2)
    assert whole.node(1, *reach).returncode == 0


@pytest.mark.long
@pytest.mark.parametrize("loud", [False, True], ids=["silent", "loud"])
def test_a_killed_host_comes_back(whole: Hosts, loud: bool):
    marker = f"301.{os.getpid()}"
    words = whole.words("control", "srun", "--nodelist=h2", "sleep", marker)
    job = subprocess.Popen(words, env=whole.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: len(sleepers(marker)) == 1, 20)
    whole.kill(2, loud=loud)
    assert not sleepers(marker)
    job.terminate()
    whole.boot(2)
    wait_for(lambda: "h2" in whole.run("srun", "--nodes=2", "--immediate=5", "hostname", timeout=30).stdout.split(), 30)
    job.wait(30)


def test_mpirun_reaches_two_hosts(hosts: Hosts):
    done = hosts.mpirun("-np", "2", "--host", "h1,h2", "sh", "-c", "echo $(hostname) $OMPI_COMM_WORLD_SIZE")
    assert {"h1 2", "h2 2"} <= set(done.stdout.splitlines())


@pytest.mark.long
def test_down_leaves_nothing_and_up_starts_afresh(hosts: Hosts):
    assert hosts.missing() == "a cluster is up already (python -m tests.slurm.hosts down)"
    jobs = hosts.jobs()
    assert leftovers(jobs)
    hosts.down()
    assert leftovers(jobs) == []
    assert not hosts.folder.exists()
    hosts.down()
    assert hosts.missing() is None
    hosts.up()
    assert hosts.run("srun", "--nodes=2", "hostname").returncode == 0


@pytest.mark.long
def test_hosts_end_with_a_killed_owner(hosts: Hosts):
    hosts.down()
    owner = "import time; from tests.slurm.hosts import Hosts; Hosts().up(); print(flush=True); time.sleep(300)"
    process = subprocess.Popen([sys.executable, "-c", owner], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    wait_for(lambda: not processes(HOST), 60)
    hosts.up()  # clears away what was left
