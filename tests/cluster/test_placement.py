import os
import socket
from fnmatch import fnmatchcase

import pytest

from rayasd import host
from rayasd.cluster import placement
from rayasd.cluster.placement import Placement, find_placement
from rayasd.errors import UserError

SLURM = {"SLURM_JOB_ID": "42", "SLURM_STEP_ID": "0", "SLURM_PROCID": "1", "SLURM_NTASKS": "3", "SLURMD_NODENAME": "n2"}


@pytest.fixture(autouse=True)
def names(monkeypatch: pytest.MonkeyPatch):
    """Host n2 has an address; this host's own name leads to the loopback."""

    def lookup(name, *_):
        if name == "nowhere":
            raise OSError
        found = {"n2": ("10.0.0.2",), "n3": ("10.0.0.12", "10.0.0.9", "127.0.0.1")}.get(name, ("127.0.1.1",))
        return [(socket.AF_INET, 0, 0, "", (address, 0)) for address in found]

    monkeypatch.setattr(placement.socket, "getaddrinfo", lookup)
    monkeypatch.setattr(placement.socket, "gethostname", lambda: "here")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(12)))
    monkeypatch.setattr(host, "cgroup_files", lambda *_: iter(()))
    monkeypatch.setattr(os, "cpu_count", lambda: 12)


def test_slurms_variables():
    place = find_placement(SLURM | {"SLURM_CPUS_PER_TASK": "8", "SLURM_GPUS_ON_NODE": "2", "SLURM_GPUS_PER_TASK": ""})
    assert (place.rank, place.size, place.address, place.cpus, place.gpus) == (1, 3, "10.0.0.2", 8, 2)
    assert not place.is_head
    bound = find_placement(SLURM | {"SLURM_CPUS_PER_TASK": "16"})
    assert bound.cpus == 12  # an srun that did not take sbatch's --cpus-per-task over
    again = find_placement(SLURM | {"SLURM_RESTART_COUNT": "1"})
    assert again.job != place.job  # a requeued job does not meet in its earlier self's folder
    late = find_placement(SLURM | {"SLURM_STEP_ID": "35"})
    assert is_earlier(place.job, again)
    assert is_earlier(late.job, again)  # whatever its step was
    assert not is_earlier(place.job.replace("42", "421"), again)
    third = find_placement(SLURM | {"SLURM_STEP_ID": "2", "SLURM_RESTART_COUNT": "1"})
    assert is_earlier(place.job, third)
    assert not is_earlier(again.job, third)  # another step may be another job of ours
    third = find_placement(SLURM | {"SLURM_STEP_ID": "2", "SLURM_RESTART_COUNT": "1", "RAYASD_AGAIN": "2"})
    assert is_earlier(place.job, third)
    assert is_earlier(again.job, third)
    assert not is_earlier(third.job, third)


def is_earlier(name: str, place: Placement) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in place.earlier)


def test_ranks_of_slurms_own_pmi_are_slurms_steps():
    pmi2 = SLURM | {"PMI_RANK": "1", "PMI_SIZE": "3", "PMI_JOBID": "42.0"}  # srun --mpi=pmi2, or MpiDefault
    assert find_placement(pmi2) == find_placement(SLURM)
    step = {"SLURM_STEP_ID": "1", "PMI_JOBID": "42.1", "RAYASD_AGAIN": "1"}
    place = find_placement(pmi2 | step)
    assert place.earlier == (find_placement(pmi2).job,)
    by_mpirun = find_placement(pmi2 | {"PMI_JOBID": "kvs_1", "RAYASD_AGAIN": "1"})
    assert (by_mpirun.job, by_mpirun.by_mpi, by_mpirun.earlier) == ("42-mpi-0", True, ())


def test_an_mpi_launcher_within_a_slurm_job_counts_its_own_ranks():
    mpi = {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2", "SLURMD_NODENAME": "n2"}
    place = find_placement(SLURM | mpi)
    assert (place.rank, place.size) == (0, 2)
    assert find_placement(mpi | {"PMIX_NAMESPACE": "prterun-n2-7@1"}).job == "prterun-n2-7-1"
    mpich = {"PMI_RANK": "1", "PMI_SIZE": "2", "PMI_JOBID": "kvs_1", "SLURMD_NODENAME": "n2"}
    assert (find_placement(mpich).rank, find_placement(mpich).job) == (1, "kvs-1")


def test_alone_it_stays_on_the_loopback():
    place = find_placement({"CUDA_VISIBLE_DEVICES": "0,3"})
    assert (place.rank, place.size, place.address, place.gpus) == (0, 1, "127.0.0.1", 2)
    assert place.cpus >= 1
    assert find_placement({"CUDA_VISIBLE_DEVICES": "-1"}).gpus == 0


def test_the_address_is_the_numerically_first_of_the_nodes_or_the_hosts_name(monkeypatch: pytest.MonkeyPatch):
    assert find_placement(SLURM | {"SLURMD_NODENAME": "n3"}).address == "10.0.0.9"
    monkeypatch.setattr(placement.socket, "gethostname", lambda: "n2")
    assert find_placement(SLURM | {"SLURMD_NODENAME": "nowhere"}).address == "10.0.0.2"


def test_an_interface_names_an_address():
    assert find_placement(SLURM, address="lo").address == "127.0.0.1"


def test_options_come_before_variables():
    place = find_placement(SLURM, job="mine", rank=0, size=2, address="10.1.1.1", cpus=4, gpus=0)
    assert (place.job, place.rank, place.size, place.address, place.cpus) == ("mine", 0, 2, "10.1.1.1", 4)


@pytest.mark.parametrize(
    ("environment", "options", "said"),
    [
        ({}, {"rank": 0}, "--rank and --size together"),
        ({}, {"rank": 2, "size": 2, "job": "x"}, "rank 2 of 2"),
        ({}, {"rank": 0, "size": 2}, "give all of them the same --job NAME"),
        (SLURM | {"SLURMD_NODENAME": "nowhere"}, {}, "host name nowhere or here leads to no address"),
        (SLURM, {"address": "ib7"}, r"--node-address ib7: no IPv4 address, and no interface here .*\blo\b"),
        (SLURM | {"SLURMD_NODENAME": "local"}, {}, "give --node-address"),
    ],
)
def test_what_cannot_be_known_is_asked_for(environment: dict, options: dict, said: str):
    with pytest.raises(UserError, match=said):
        find_placement(environment, **options)
