"""The place of a launcher in its job: its rank, how many there are, and what its node gives it."""

import os
import re
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address

from rayasd.errors import UserError
from rayasd.host import address_of, usable_cpus, visible_gpus

_SLURM = ("SLURM_PROCID", "SLURM_NTASKS")
_PMI = ("PMI_RANK", "PMI_SIZE")
_RANK_AND_SIZE = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),  # before Slurm's: mpirun inside a job starts its ranks by srun
    _PMI,
    _SLURM,
)
_JOB = ("SLURM_JOB_ID", "PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid", "PMI_JOBID")


@dataclass(frozen=True)
class Placement:
    """One launcher's place. Rank 0 is the head: it also runs the driver."""

    job: str  # name that all launchers of a job share, and no other job's
    rank: int
    size: int
    address: str  # IPv4 address of this node that the other nodes reach
    cpus: int
    gpus: int
    by_mpi: bool = False  # whether an MPI started this launcher
    earlier: tuple[str, ...] = ()
    """Patterns of names that this job had before it was put back in the queue, or its launchers started again."""

    @property
    def is_head(self) -> bool:
        """Whether the driver runs here."""
        return self.rank == 0


def find_placement(
    environment: Mapping[str, str], *, job: str | None = None, rank: int | None = None, size: int | None = None,
    address: str | None = None, cpus: int | None = None, gpus: int | None = None,
) -> Placement:  # fmt: skip
    """Read the variables that Slurm, MPICH and OpenMPI set; what is given here comes before them.

    Raises UserError: rank and size do not go together, a job of several launchers has no name, or this node no address.
    """
    if (rank is None) != (size is None):
        raise UserError("give --rank and --size together, or neither")
    names = next(((r, s) for r, s in _RANK_AND_SIZE if r in environment and s in environment), None)
    slurms = f"{environment.get('SLURM_JOB_ID')}.{environment.get('SLURM_STEP_ID')}"  # of srun --mpi=pmi2, not mpirun
    by_slurm = names == _SLURM or (names == _PMI and environment.get("PMI_JOBID") == slurms)
    if rank is None or size is None:
        rank, size = (int(environment[name]) for name in names) if names else (0, 1)
    if not 0 <= rank < size:
        raise UserError(f"rank {rank} of {size}: ranks go from 0 to size - 1")
    name = job or next((environment[variable] for variable in _JOB if variable in environment), None)
    if name is None:
        if size > 1:
            raise UserError(f"{size} launchers, but nothing names their job: give all of them the same --job NAME")
        name = f"alone-{os.getpid()}"
    restart = environment.get("SLURM_RESTART_COUNT", "0")
    # each of Slurm's steps may be a job of ours; of mpirun's ranks, some are in its own step and some in none
    step = environment.get("SLURM_STEP_ID", "0") if by_slurm else "mpi"
    in_slurm = not job and "SLURM_JOB_ID" in environment
    earlier = [f"{name}-*-{attempt}" for attempt in range(int(restart))]
    if by_slurm:  # slurm/job.bash starts launchers again, a step each
        again = int(environment.get("RAYASD_AGAIN", "0"))
        earlier += [f"{name}-{before}-{restart}" for before in range(int(step) - again, int(step))]
    return Placement(
        job=f"{name}-{step}-{restart}" if in_slurm else re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[:60],
        by_mpi=names is not None and not by_slurm,
        earlier=tuple(earlier) if in_slurm else (),
        rank=rank,
        size=size,
        address=_given_address(address) if address else "127.0.0.1" if size == 1 else own_address(environment),
        cpus=usable_cpus(environment) if cpus is None else cpus,
        gpus=_gpus(environment) if gpus is None else gpus,
    )


def own_address(environment: Mapping[str, str]) -> str:
    """Find this node's address: what Slurm's name of it resolves to, else the host's own, unless that is the loopback.

    Raises UserError: the names lead nowhere; --node-address says what to do.
    """
    names = list(dict.fromkeys(filter(None, (environment.get("SLURMD_NODENAME"), socket.gethostname()))))
    for name in names:
        with suppress(OSError):
            found = {IPv4Address(each[4][0]) for each in socket.getaddrinfo(name, None, socket.AF_INET)}
            if outside := sorted(address for address in found if not address.is_loopback):
                return str(outside[0])
    raise UserError(
        f"host name {' or '.join(names)} leads to no address that other nodes reach: give --node-address an address or "
        f"an interface ({_interfaces()})"
    )


def _given_address(text: str) -> str:
    """Read ``--node-address``: an address, or the name of an interface of this node."""
    with suppress(AddressValueError):
        return str(IPv4Address(text))
    if address := address_of(text):
        return address
    raise UserError(f"--node-address {text}: no IPv4 address, and no interface here that has one ({_interfaces()})")


def _interfaces() -> str:
    return ", ".join(name for _, name in socket.if_nameindex() if address_of(name)) or "there is none"


def _gpus(environment: Mapping[str, str]) -> int:
    """GPUs of this launcher. ``SLURM_GPUS_PER_TASK`` may be empty, and the visible ones may be more than are ours."""
    if environment.get("SLURM_GPUS_ON_NODE", "").isdecimal():
        return int(environment["SLURM_GPUS_ON_NODE"])
    return len(visible_gpus(environment))
