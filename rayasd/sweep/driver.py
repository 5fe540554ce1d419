"""The driver: keeps every slot busy, starts a unit once what it builds on stands, survives units that fail."""

import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from rayasd.errors import UserError
from rayasd.sweep.executors import Executor, Request, Resources
from rayasd.sweep.heartbeats import Heartbeats
from rayasd.sweep.plan import prerequisite
from rayasd.sweep.store import RunStore
from rayasd.sweep.worker import Outcome
from rayasd.unit import STAGES, Unit, UnitSpec

_POLL_SECONDS = 0.5
_MAX_LOSSES = 20  # hosts that may be lost under one unit
_STRANDED_SECONDS = 300.0  # how long to wait for a node on which a unit fits, while nothing runs


class State(StrEnum):
    """Where a unit stands."""

    DONE = "done"
    WAITING = "waiting"
    RUNNING = "running"
    FAILED = "failed"
    BLOCKED = "blocked"
    """What it builds on failed, is missing, or the sweep stopped before it."""


@dataclass
class Sweep:
    """Units of a sweep and where each stands."""

    specs: Mapping[Unit, UnitSpec]
    states: dict[Unit, State]
    reasons: dict[Unit, str] = field(default_factory=dict)
    """Why a unit failed or is blocked."""

    def count(self, state: State) -> int:
        """Units in this state."""
        return sum(s is state for s in self.states.values())

    def units(self, state: State) -> list[Unit]:
        """List the units in this state, in the order of the plan."""
        return [unit for unit, s in self.states.items() if s is state]


def survey(store: RunStore, specs: Mapping[Unit, UnitSpec], asked: Collection[Unit], *, retry_failed: bool) -> Sweep:
    """See from the run directory which units are done, which failed before, and which are to be done.

    Args:
        store: the run.
        specs: every unit of the run's plan, each after the one it builds on.
        asked: units to do if they are not done; others that are not done block those that build on them.
        retry_failed: run units again that failed for good in an earlier sweep.

    """
    sweep = Sweep(specs, {})
    for unit, spec in specs.items():
        needed = prerequisite(unit, spec.config)
        # what stands on something that is to be done again is to be done again too
        if (needed is None or sweep.states[needed] is State.DONE) and store.is_done(spec):
            sweep.states[unit] = State.DONE
        elif not (retry_failed and unit in asked) and (reason := store.failure(spec)) is not None:
            sweep.states[unit], sweep.reasons[unit] = State.FAILED, reason
        elif unit in asked:
            sweep.states[unit] = State.WAITING
        else:
            sweep.states[unit], sweep.reasons[unit] = State.BLOCKED, f"{unit} has not been done"
    _block_dependents(sweep)
    return sweep


def check_request(request: Request, nodes: Sequence[Resources]) -> None:
    """Make sure that some node can run a unit.

    Raises:
        UserError: none can; says what was asked and what there is.

    """
    wanted = request.of("train")
    if not any(node.fits(wanted) for node in nodes):
        largest = max(nodes, key=lambda node: (node.gpus, node.cpus), default=Resources(0))
        raise UserError(
            f"a unit asks for {wanted}, but the largest node has {largest}: lower --cpus-per-unit or --gpus-per-unit"
        )


def drive(
    sweep: Sweep,
    store: RunStore,
    executor: Executor,
    request: Request,
    *,
    max_tries: int = 2,
    fail_fast: bool = False,
    hang_seconds: float = 0.0,
    on_change: Callable[[Sweep], None] = lambda sweep: None,
) -> str | None:
    """Run every waiting unit of the sweep, until nothing waits or runs any more or the run is asked to stop.

    Later stages go first, so that a machine's inlier models start while other machines still train. A unit whose worker
    died or whose code raised is tried ``max_tries`` times; one that its own input makes impossible, once; one whose
    host was lost, on other hosts.

    Args:
        sweep: brought up to date as units end.
        store: the run.
        executor: where units run.
        request: what a unit gets.
        max_tries: of one unit, at its own fault.
        fail_fast: start nothing more after the first failed unit.
        hang_seconds: a unit without a sign of life for so long is ended and tried again; 0: never.
        on_change: called at least every half second.

    Returns:
        Why units are left that could still be done: asked to stop, or no node for them; None if there are none.

    """
    tries = _Tries(max_tries)
    heartbeats = Heartbeats(store.paths, hang_seconds)
    stranded_since = None
    while True:
        running = sweep.units(State.RUNNING)
        stopping = store.stop_file.exists()
        ready = [] if stopping else _ready(sweep)
        free = request.usable(executor.nodes)
        for unit in running:
            free = free.plus(request.of(unit.stage), -1)
        for unit in ready:
            needed = request.of(unit.stage)
            if free.fits(needed) and not tries.pausing(unit):
                free = free.plus(needed, -1)
                sweep.states[unit] = State.RUNNING
                running.append(unit)
                store.record("unit started", unit=str(unit), attempt=tries.of(unit) + 1)
                store.paths.progress(unit).unlink(missing_ok=True)
                executor.submit(sweep.specs[unit], needed)
        on_change(sweep)
        if not running and not ready:
            return "stopped as asked" if stopping and sweep.count(State.WAITING) else None
        if running or any(map(tries.pausing, ready)):
            stranded_since = None
        else:
            stranded_since = stranded_since or time.monotonic()
            if time.monotonic() - stranded_since > _STRANDED_SECONDS:
                return f"no node is left on which a unit fits (it asks for {request.of(ready[0].stage)})"
        outcomes = executor.wait(_POLL_SECONDS)
        ended = {outcome.unit for outcome in outcomes}
        for unit in heartbeats.silent([unit for unit in running if unit not in ended]):
            executor.cancel(unit)
            outcomes.append(Outcome(unit, f"ended after {hang_seconds:g} s without a sign of life"))
        for outcome in outcomes:
            again = tries.note(outcome)
            _conclude(sweep, store, outcome, tries.of(outcome.unit), again=again)
            if outcome.error and fail_fast and sweep.states[outcome.unit] is State.FAILED:
                for unit in sweep.units(State.WAITING):
                    sweep.states[unit], sweep.reasons[unit] = State.BLOCKED, "stopped by --fail-fast"
            _block_dependents(sweep)


@dataclass
class _Tries:
    """How often each unit was tried, and when it may be tried again."""

    max_tries: int
    own: Counter[Unit] = field(default_factory=Counter)
    losses: Counter[Unit] = field(default_factory=Counter)
    """Tries that ended with their host: not the unit's fault, but not for ever."""
    not_before: dict[Unit, float] = field(default_factory=dict)

    def of(self, unit: Unit) -> int:
        """Count the tries that have ended."""
        return self.own[unit] + self.losses[unit]

    def pausing(self, unit: Unit) -> bool:
        """Whether it is too early to try the unit again."""
        return self.not_before.get(unit, 0.0) > time.monotonic()

    def note(self, outcome: Outcome) -> bool:
        """Count a try that has ended; tells whether there may be another."""
        (self.losses if outcome.host_lost else self.own)[outcome.unit] += 1
        self.not_before[outcome.unit] = time.monotonic() + outcome.pause_seconds
        return (
            not outcome.hopeless
            and self.own[outcome.unit] < self.max_tries
            and self.losses[outcome.unit] <= _MAX_LOSSES
        )


def _conclude(sweep: Sweep, store: RunStore, outcome: Outcome, tries: int, *, again: bool) -> None:
    unit, spec = outcome.unit, sweep.specs[outcome.unit]
    store.paths.progress(unit).unlink(missing_ok=True)
    if outcome.stopped:
        sweep.states[unit] = State.WAITING
        store.record("unit stopped", unit=str(unit))
    elif outcome.error is None:
        sweep.states[unit] = State.DONE
        store.record("unit done", unit=str(unit))
    elif again:
        sweep.states[unit] = State.WAITING
        store.record("unit to be tried again", unit=str(unit), reason=outcome.error, tries=tries)
    else:
        sweep.states[unit], sweep.reasons[unit] = State.FAILED, outcome.error
        store.mark_failed(spec, outcome.error, outcome.details, tries)
        store.record("unit failed", unit=str(unit), reason=outcome.error, tries=tries)


def _ready(sweep: Sweep) -> list[Unit]:
    ready = []
    for unit in sweep.units(State.WAITING):
        needed = prerequisite(unit, sweep.specs[unit].config)
        if needed is None or sweep.states[needed] is State.DONE:
            ready.append(unit)
    return sorted(ready, key=lambda unit: -STAGES.index(unit.stage))  # stable: the plan's order within a stage


def _block_dependents(sweep: Sweep) -> None:
    for unit in sweep.units(State.WAITING):
        needed = prerequisite(unit, sweep.specs[unit].config)
        if needed is not None and sweep.states[needed] in (State.FAILED, State.BLOCKED):
            sweep.states[unit], sweep.reasons[unit] = State.BLOCKED, sweep.reasons[needed]
