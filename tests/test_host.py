import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from rayasd import host

SCRIPT = """
import resource
from rayasd.host import freed_memory_kept

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(50_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(min(faults() for _ in range(5)))
with freed_memory_kept():
    print(min(faults() for _ in range(5)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_memory_that_was_freed_is_used_again_without_new_pages():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True
    )  # a heap of its own
    usually, kept = map(int, done.stdout.split())
    assert usually > 5000
    assert kept < 500


NAMELESS = """
import os, pwd, sys

def none(number):
    raise KeyError(f"getpwuid(): uid not found: {number}")

pwd.getpwuid = none
import rayasd
from rayasd.cluster.executor import _dashboard
print(_dashboard(type("Context", (), {"dashboard_url": "127.0.0.1:8265"}))["tunnel"])
from rayasd.errors import UserError
from rayasd.study.choices import cache_folder
try:
    cache_folder(None)
except UserError as error:
    print(error)
import torch
torch.optim.SGD([torch.zeros(1, requires_grad=True)])
"""


@pytest.mark.slow
def test_a_user_without_a_name_can_train():
    nameless = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)}  # docker run --user 1234
    done = subprocess.run([sys.executable, "-c", NAMELESS], env=nameless, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    tunnel, no_home = done.stdout.splitlines()
    assert tunnel == f"ssh -N -L 8265:127.0.0.1:8265 {socket.gethostname()}"
    assert no_home == "you have no home folder: choose one with --cache DIR or RAYASD_CACHE"


def test_limits_of_this_cgroup_and_of_those_above_it(tmp_path: Path):
    own, root = tmp_path / "own", tmp_path / "root"
    own.write_text("4:memory,hugetlb:/slurm/job\n0::/user/session\n")
    for name, text in {
        "memory/slurm/job/limit": "9223372036854771712",
        "memory/slurm/limit": "800",
        "unified/user/session/max": "max",
        "user/max": "500",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    assert list(host.cgroup_files("memory", "max", "limit", own, root)) == ["9223372036854771712", "800", "500", "max"]
    assert not list(host.cgroup_files("pids", "none", "none", own, root))


@pytest.mark.parametrize(
    ("texts", "allowed", "cpus"),
    [
        (["max 100000", "75000 50000"], 1.5, 1),
        (["150000", "-1"], 1.5, 1),
        (["50000 100000"], 0.5, 1),
        (["-1", "max 100000", "400000 100000"], 4.0, 4),
    ],
)
def test_the_cpus_are_no_more_than_a_quota_allows(monkeypatch, texts: list[str], allowed: float, cpus: int):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(host, "cgroup_files", lambda *_: iter(texts))
    assert host.cpu_quota() == allowed
    assert host.usable_cpus({}) == cpus
    assert host.usable_cpus({"SLURM_CPUS_PER_TASK": "6"}) == cpus


def test_without_a_quota_the_cpus_are_those_that_the_process_may_run_on(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)))
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(host, "cgroup_files", lambda *_: iter(["max 100000"]))
    assert host.usable_cpus({}) == 4
    assert host.usable_cpus({"SLURM_CPUS_PER_TASK": "2"}) == 2


@pytest.mark.parametrize(
    ("environment", "gpus"),
    [
        ({}, ["0", "1"]),
        ({"CUDA_VISIBLE_DEVICES": "3,GPU-a"}, ["3", "GPU-a"]),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, []),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, []),
        ({"CUDA_VISIBLE_DEVICES": ""}, []),
        ({"SLURM_JOB_ID": "7"}, []),  # all of the host's are others'
        ({"SLURM_JOB_ID": "7", "SLURM_GPUS_PER_TASK": ""}, []),
        ({"SLURM_JOB_ID": "7", "SLURM_JOB_GPUS": "0,1"}, ["0", "1"]),
    ],
)
def test_gpus_are_those_that_were_given(tmp_path: Path, environment: dict[str, str], gpus: list[str]):
    for name in ("0000:01:00.0", "0000:02:00.0"):
        (tmp_path / "gpus" / name).mkdir(parents=True)
    assert host.visible_gpus(environment, tmp_path) == gpus


def test_an_interface_has_an_address():
    assert host.address_of("lo") == "127.0.0.1"
    assert host.address_of("no-such-one") is None
