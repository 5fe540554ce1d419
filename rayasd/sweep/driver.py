"""The driver: keeps every slot busy, starts a unit once what it builds on stands, survives units that fail."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from rayasd.errors import UserError
from rayasd.sweep.executors import Executor, Request
from rayasd.sweep.plan import prerequisite
from rayasd.sweep.store import RunStore
from rayasd.sweep.worker import Outcome
from rayasd.unit import STAGES, Unit, UnitSpec

_POLL_SECONDS = 0.5


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


def check_request(request: Request, executor: Executor) -> None:
    """Make sure that some node can run a unit.

    Raises:
        UserError: none can; says what was asked and what there is.

    """
    wanted = request.of("train")
    if not any(node.fits(wanted) for node in executor.nodes):
        largest = max(executor.nodes, key=lambda node: (node.gpus, node.cpus))
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
    on_change: Callable[[Sweep], None] = lambda sweep: None,
) -> None:
    """Run every waiting unit of the sweep; returns when nothing waits or runs any more.

    Later stages go first, so that a machine's inlier models start while other machines still train. A unit whose worker
    died or whose code raised is tried ``max_tries`` times; one that its own input makes impossible, once.
    """
    free = request.usable(executor.nodes)
    tries: dict[Unit, int] = {}
    while True:
        for unit in _ready(sweep):
            needed = request.of(unit.stage)
            if free.fits(needed):
                free = free.plus(needed, -1)
                tries[unit] = tries.get(unit, 0) + 1
                sweep.states[unit] = State.RUNNING
                store.record("unit started", unit=str(unit), attempt=tries[unit])
                executor.submit(sweep.specs[unit], needed)
        on_change(sweep)
        if sweep.count(State.RUNNING) == 0:
            break
        for outcome in executor.wait(_POLL_SECONDS):
            free = free.plus(request.of(outcome.unit.stage))
            _conclude(sweep, store, outcome, tries[outcome.unit], max_tries)
            if outcome.error and fail_fast and sweep.states[outcome.unit] is State.FAILED:
                for unit in sweep.units(State.WAITING):
                    sweep.states[unit], sweep.reasons[unit] = State.BLOCKED, "stopped by --fail-fast"
            _block_dependents(sweep)


def _conclude(sweep: Sweep, store: RunStore, outcome: Outcome, tries: int, max_tries: int) -> None:
    unit, spec = outcome.unit, sweep.specs[outcome.unit]
    if outcome.error is None:
        sweep.states[unit] = State.DONE
        store.record("unit done", unit=str(unit))
    elif outcome.hopeless or tries >= max_tries:
        sweep.states[unit], sweep.reasons[unit] = State.FAILED, outcome.error
        store.mark_failed(spec, outcome.error, outcome.details, tries)
        store.record("unit failed", unit=str(unit), reason=outcome.error, tries=tries)
    else:
        sweep.states[unit] = State.WAITING
        store.record("unit to be tried again", unit=str(unit), reason=outcome.error, tries=tries)


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
