"""The driver: keeps every slot busy, starts a unit once what it builds on is done, survives units that fail."""

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from heapq import heappop, heappush

from rayasd.errors import UserError
from rayasd.files import gone
from rayasd.stages import STAGES, StageName
from rayasd.sweep import markers
from rayasd.sweep.executors import Executor, Request, Resources
from rayasd.sweep.states import State, Sweep
from rayasd.sweep.store import RunStore
from rayasd.sweep.worker import Outcome
from rayasd.unit import RunDirectory, Unit

Turn = tuple[int, float, int]  # turn of the unit's seed, minus its cost, place in the plan
_POLL_SECONDS = 0.5
_LOOKS = 20  # within the time that a unit may be silent: a progress file may lie on a slow shared disk
_MAX_LOSSES = 20  # hosts that may be lost under one unit
_STRANDED_SECONDS = 300.0  # how long to wait for a node on which a unit fits, while nothing runs


def check_request(request: Request, nodes: Sequence[Resources]) -> None:
    """Make sure that some node can run a unit. Raises UserError: none can; names both."""
    wanted = request.of(next(iter(STAGES)))  # the first stage asks for most
    if not any(node.fits(wanted) for node in nodes):
        largest = max(nodes, key=lambda node: (node.gpus, node.cpus), default=Resources(0))
        raise UserError(
            f"a unit asks for {wanted}, but the largest node has {largest}: lower --cpus-per-unit or --gpus-per-unit"
        )


def drive(
    sweep: Sweep, store: RunStore, executor: Executor, request: Request, *, max_tries: int = 2, fail_fast: bool = False,
    hang_seconds: float = 0.0, costs: Mapping[Unit, float] | None = None,
    on_change: Callable[[Sweep], None] = lambda sweep: None,
) -> str | None:  # fmt: skip
    """Run every waiting unit of the sweep, until nothing waits or runs any more or the run is asked to stop.

    Later stages go first, so that a machine's inlier models start while other machines still train. A unit whose worker
    died or whose code raised is tried ``max_tries`` times; one that its own input makes impossible, once; one whose
    host was lost, on other hosts.

    After the first failed unit, nothing more starts with ``fail_fast``. A unit without a sign of life for
    ``hang_seconds`` (0: never) is ended and tried again. ``costs``: how long each unit takes, in any unit of measure:
    the longest of a stage and seed go first. ``on_change`` is called at least every half second.

    Returns why units are left that could still be done: asked to stop, or no node for them; None if there are none.
    Raises Interrupted: another process has taken the run over.
    """
    queue, heartbeats = Queue(sweep, costs or {}), Heartbeats(store.paths, hang_seconds)
    own, losses = Counter[Unit](), Counter[Unit]()  # tries that have ended; those that ended with their host
    running: dict[Unit, Resources] = {}
    halted: str | None = None  # why nothing more starts
    stranded_since = None
    while True:
        if not store.paths.catalog.exists():
            raise gone(store.paths.root)
        store.check_held()
        stopping = store.stop_file.exists()
        free = request.usable(executor.nodes)
        for held in running.values():
            free = free.plus(held, -1)
        for unit in [] if stopping else queue.take(free, request):
            running[unit] = request.of(unit.stage)
            sweep.move(unit, State.RUNNING)
            store.record("unit started", unit=str(unit), attempt=own[unit] + losses[unit] + 1)
            store.paths.progress(unit).unlink(missing_ok=True)
            outdated = [unit]
            for each in outdated:  # it, and all that builds on it: not done from now on, even if this driver is killed
                markers.forget(sweep.specs[each])
                outdated += sweep.dependents.get(each, ())
            executor.submit(sweep.specs[unit], running[unit])
        on_change(sweep)
        if not running and (stopping or not sweep.count(State.WAITING)):
            return "stopped as asked" if stopping and sweep.count(State.WAITING) else None
        if running or queue.pauses:
            stranded_since = None
        else:
            stranded_since = stranded_since or time.monotonic()
            if time.monotonic() - stranded_since > _STRANDED_SECONDS:
                return f"no node is left on which a unit fits (it asks for {request.of(queue.first.stage)})"
        outcomes = executor.wait(_POLL_SECONDS)
        ended = {outcome.unit for outcome in outcomes}
        for unit in heartbeats.silent([unit for unit in running if unit not in ended]):
            executor.cancel(unit)
            outcomes.append(Outcome(unit, f"ended after {hang_seconds:g} s without a sign of life"))
        for outcome in outcomes:
            unit = outcome.unit
            del running[unit]
            (losses if outcome.host_lost else own)[unit] += 1
            again = not outcome.hopeless and own[unit] < max_tries and losses[unit] <= _MAX_LOSSES
            _conclude(sweep, store, outcome, own[unit] + losses[unit], again=again, halted=halted)
            queue.pause(unit, outcome.pause_seconds)
            queue.offer(unit, *sweep.dependents.get(unit, ()))
            if sweep.states[unit] is State.FAILED and (fail_fast or outcome.hits_all):
                halted = outcome.error if outcome.hits_all else "stopped by --fail-fast"
                for waiting in sweep.units(State.WAITING):
                    sweep.move(waiting, State.BLOCKED, halted)


class Queue:
    """Units that may start: later stages first; within a stage seed by seed, the longest first, so that none ends late.

    ``costs``: how long each takes, in any unit of measure; without any, they come in the order of the plan.
    """

    def __init__(self, sweep: Sweep, costs: Mapping[Unit, float]) -> None:
        self._sweep = sweep
        seeds = {seed: turn for turn, seed in enumerate(dict.fromkeys(unit.seed for unit in sweep.specs))}
        self._place = {unit: (seeds[unit.seed], -costs.get(unit, 0.0), place) for place, unit in enumerate(sweep.specs)}
        self._heaps: dict[StageName, list[tuple[Turn, Unit]]] = {stage: [] for stage in reversed(list(STAGES))}
        self.pauses = False
        """Whether a unit that would fit waits for its next try."""
        self._not_before: dict[Unit, float] = {}
        self.offer(*sweep.units(State.WAITING))

    @property
    def first(self) -> Unit:
        """The unit whose turn it is."""
        return next(heap[0][1] for heap in self._heaps.values() if heap)

    def offer(self, *units: Unit) -> None:
        """Put those of the units in line that may start."""
        for unit in units:
            if self._sweep.may_start(unit):
                heappush(self._heaps[unit.stage], (self._place[unit], unit))

    def pause(self, unit: Unit, seconds: float) -> None:
        """Keep a unit in line for so long: what it lacked may be free then."""
        self._not_before[unit] = time.monotonic() + seconds

    def take(self, free: Resources, request: Request) -> Iterator[Unit]:
        """Take out the units that fit into what is free."""
        self.pauses = False
        for stage, heap in self._heaps.items():
            needed, later = request.of(stage), []
            while heap and free.fits(needed):
                place, unit = heappop(heap)
                if not self._sweep.may_start(unit):
                    continue  # blocked since it was put in line
                if time.monotonic() < self._not_before.get(unit, 0.0):
                    later.append((place, unit))
                    continue
                free = free.plus(needed, -1)
                yield unit
            for entry in later:
                heappush(heap, entry)
            self.pauses = self.pauses or bool(later)


class Heartbeats:
    """Watches the progress files of running units by this host's own clock: hosts' clocks may differ."""

    def __init__(self, paths: RunDirectory, hang_seconds: float) -> None:
        self.paths, self.hang_seconds = paths, hang_seconds
        self._last: dict[Unit, tuple[int, float]] = {}
        self._looked = 0.0

    def silent(self, running: Collection[Unit]) -> list[Unit]:
        """List units whose progress file has not changed for ``hang_seconds`` (0: none).

        A unit that has not begun yet has no such file: it waits in the executor's queue.
        """
        moment = time.monotonic()
        if not self.hang_seconds or moment - self._looked < self.hang_seconds / _LOOKS:
            return []
        self._looked = moment
        last, self._last = self._last, {}
        for unit in running:
            try:
                written = self.paths.progress(unit).stat().st_mtime_ns
            except OSError:
                continue
            before = last.get(unit)
            self._last[unit] = before if before and before[0] == written else (written, moment)
        return [unit for unit, (_, since) in self._last.items() if moment - since > self.hang_seconds]


def _conclude(sweep: Sweep, store: RunStore, outcome: Outcome, tries: int, *, again: bool, halted: str | None) -> None:
    unit, spec = outcome.unit, sweep.specs[outcome.unit]
    store.paths.progress(unit).unlink(missing_ok=True)
    if outcome.stopped:
        sweep.move(unit, State.WAITING)
        store.record("unit stopped", unit=str(unit))
    elif outcome.error is None or markers.is_done(spec):  # its worker may die after it has marked it done
        sweep.move(unit, State.DONE)
        store.record("unit done", unit=str(unit))
    elif again:
        sweep.move(unit, State.BLOCKED if halted else State.WAITING, halted)
        store.record("unit to be tried again", unit=str(unit), reason=outcome.error, tries=tries)
    else:
        if outcome.damaged:
            markers.forget(sweep.specs[outcome.damaged])
            sweep.damaged.add(outcome.damaged)
        elif outcome.hits_all:
            sweep.lacking.add(unit)
        else:
            markers.mark_failed(spec, outcome.error, outcome.details, tries)
        store.record("unit failed", unit=str(unit), reason=outcome.error, tries=tries)
        sweep.move(unit, State.FAILED, outcome.error)
