"""Units on the ranks of an MPI job: rank 0 drives, every other rank does one unit at a time.

Each of those hands its units to a worker process of its own (a ``LocalExecutor``), so that a unit that dies takes no
MPI process with it, which would end the whole job.
"""

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any, TypeVar

from rayasd.errors import UserError
from rayasd.host import visible_gpus
from rayasd.sweep.executors import Resources
from rayasd.sweep.executors.local import LocalExecutor
from rayasd.sweep.worker import Outcome
from rayasd.unit import Unit, UnitSpec

Result = TypeVar("Result")
_world: "_World | None" = None


class _World:
    """The MPI job, as this rank sees it. Raises UserError: no MPI, or no rank besides this one."""

    def __init__(self) -> None:
        try:
            from mpi4py import MPI
        except (ImportError, RuntimeError) as error:  # no package, or no library for it to load
            reason = str(error).splitlines()[0]
            raise UserError(f"--executor mpi needs an MPI and pip install 'rayasd[mpi]': {reason}") from None
        world = MPI.COMM_WORLD
        if world.size < 2:
            raise UserError(
                "--executor mpi needs a rank that drives and at least one that works: mpirun -np 3 rayasd sweep … "
                "(srun with a --mpi that this MPI does not know gives as many worlds of one rank)"
            )
        self.control = world.Dup()
        """Carries the numbers of tries that ranks are to end."""
        workers = world.Split(int(world.rank > 0))
        on_host = workers.Split_type(MPI.COMM_TYPE_SHARED)
        cpus = set().union(*on_host.allgather(os.sched_getaffinity(0)))  # a rank may be bound to its own, or not
        self.cpus = max(1, len(cpus) // on_host.size)
        gpus, share = _share(on_host.allgather(visible_gpus()), on_host.rank)
        self.local = LocalExecutor(self.cpus, gpus)
        self.ranks: list[Resources] = world.gather(Resources(self.cpus, len(gpus) * share)) or []
        self.pool: Any = None


def on_rank_0(command: Callable[[], Result]) -> Result | None:
    """Run ``command`` on rank 0 and return what it returns; the other ranks do units until it ends: None.

    Within itself, it only calls the command.
    """
    global _world
    if _world is not None:
        return command()
    _world = _World()
    from mpi4py import MPI
    from mpi4py.futures import MPICommExecutor

    if MPI.COMM_WORLD.rank > 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # mpirun hands it to all ranks, but it is the driver's
    try:
        with MPICommExecutor(MPI.COMM_WORLD, root=0) as _world.pool:
            if _world.pool is not None:
                return command()
            _world.local.close()
            return None
    finally:
        _world = None


class MPIExecutor:
    """Drives the other ranks; within ``on_rank_0``."""

    def __init__(self, cpus_per_unit: float) -> None:
        assert _world is not None
        self._world = _world
        ranks = _world.ranks[1:]
        if len({rank.gpus for rank in ranks}) > 1:  # a unit goes to whichever rank is free
            each = ", ".join(f"{rank.gpus:g}" for rank in ranks)
            raise UserError(f"--executor mpi: the ranks have different numbers of GPUs ({each}): as many ranks a GPU")
        cpus = min(cpus_per_unit, *(rank.cpus for rank in ranks))
        self.nodes = [Resources(cpus, rank.gpus) for rank in ranks]  # one unit at a time
        self._all = Resources(sum(rank.cpus for rank in ranks), sum(rank.gpus for rank in ranks))
        self._running: dict[Future[Outcome], tuple[int, Unit]] = {}
        self._tries = 0
        self._sent: list[Any] = []

    def describe(self) -> list[str]:
        """Return where units run."""
        return [f"MPI, {len(self.nodes)} ranks that work: {self._all}"]

    def submit(self, spec: UnitSpec, resources: Resources) -> None:
        """Send the unit to a rank that is free."""
        self._tries += 1
        future = self._world.pool.submit(_do_unit_of_rank, spec, resources, self._tries)
        self._running[future] = (self._tries, spec.unit)

    def wait(self, timeout: float) -> list[Outcome]:
        """Collect what finished."""
        if not self._running:
            time.sleep(timeout)
            return []
        done, _ = wait(self._running, timeout, FIRST_COMPLETED)
        outcomes = []
        for future in done:
            _, unit = self._running.pop(future)
            error = future.exception()
            outcomes.append(Outcome(unit, f"its MPI rank failed: {error}") if error else future.result())
        return outcomes

    def cancel(self, unit: Unit) -> None:
        """Tell the unit's rank to end it."""
        future, (number, _) = next((f, running) for f, running in self._running.items() if running[1] == unit)
        del self._running[future]
        control = self._world.control
        self._sent += [control.isend(number, rank) for rank in range(1, control.size)]

    def close(self) -> None:
        """End what still runs; the ranks stay until the command ends."""
        for unit in [unit for _, unit in self._running.values()]:
            self.cancel(unit)


def _do_unit_of_rank(spec: UnitSpec, resources: Resources, number: int) -> Outcome:
    """Do a unit in this rank's worker process, unless the driver ends this try."""
    assert _world is not None
    local, control = _world.local, _world.control
    local.submit(spec, resources)
    while True:
        for outcome in local.wait(0.2):
            return outcome
        while control.iprobe(source=0):
            if control.recv(source=0) == number:
                local.cancel(spec.unit)
                return Outcome(spec.unit, "ended by the driver")


def _share(visible: list[list[str]], rank: int) -> tuple[list[str], float]:
    """Choose the GPUs of a host's rank, from what each of the host's ranks sees: its own, or a part of all.

    Returns the GPUs, and the share that the rank has of each.
    """
    mine, ranks = visible[rank], len(visible)
    if any(others != mine for others in visible) or not mine:
        return mine, 1.0
    if len(mine) < ranks:
        return [mine[rank % len(mine)]], len(mine) / ranks
    each = len(mine) // ranks
    return mine[rank * each : (rank + 1) * each], 1.0
