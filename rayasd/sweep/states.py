"""Units of a sweep and the state of each: read from a run directory, changed by the driver alone."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from rayasd.files import read_record
from rayasd.stages import STAGES, StageName
from rayasd.sweep import markers
from rayasd.sweep.executors import Counts
from rayasd.sweep.plan import prerequisite
from rayasd.unit import RunDirectory, Unit, UnitSpec


class State(StrEnum):
    """State of a unit."""

    DONE = "done"
    WAITING = "waiting"
    RUNNING = "running"
    FAILED = "failed"
    BLOCKED = "blocked"  # a prerequisite failed or is missing, or the sweep stopped before it


@dataclass
class Sweep:
    """Units of a sweep and the state of each; only ``move`` changes it."""

    specs: Mapping[Unit, UnitSpec]
    states: dict[Unit, State] = field(default_factory=dict)
    reasons: dict[Unit, str] = field(default_factory=dict)  # why a unit failed or is blocked
    lacking: set[Unit] = field(default_factory=set)
    """Units that failed for want of storage or GPUs: the same command does them, once there are such."""
    damaged: set[Unit] = field(default_factory=set)  # units that were done, and whose files are damaged
    again: dict[Unit, str] = field(default_factory=dict)
    """Units that were done and are done again, and what has changed since."""
    moves: list[tuple[Unit, State]] = field(default_factory=list)
    """Every change of a state since the run directory was read, in order."""

    def __post_init__(self) -> None:
        self._counts: Counter[tuple[StageName, str]] = Counter(
            (unit.stage, state) for unit, state in self.states.items()
        )
        self.dependents: dict[Unit, list[Unit]] = {}
        for unit, spec in self.specs.items():
            if (needed := prerequisite(unit, spec.config)) is not None:
                self.dependents.setdefault(needed, []).append(unit)

    def move(self, unit: Unit, state: State, reason: str | None = None) -> None:
        """Change a unit's state. What waits for a unit that is not to be done is blocked with it."""
        if unit in self.states:
            self._counts[unit.stage, self.states[unit]] -= 1
        self._counts[unit.stage, state] += 1
        self.states[unit] = state
        self.moves.append((unit, state))
        if reason is not None:
            self.reasons[unit] = reason
        if state in (State.FAILED, State.BLOCKED):
            for dependent in self.dependents.get(unit, ()):
                if self.states.get(dependent) is State.WAITING:
                    self.move(dependent, State.BLOCKED, self.reasons[unit])

    def may_start(self, unit: Unit) -> bool:
        """Whether a unit waits for nothing but its turn."""
        needed = prerequisite(unit, self.specs[unit].config)
        return self.states[unit] is State.WAITING and (needed is None or self.states[needed] is State.DONE)

    def count(self, state: State) -> int:
        """Units in this state."""
        return sum(self._counts[stage, state] for stage in STAGES)

    @property
    def counts(self) -> Counts:
        """Units in each state, by stage."""
        return {(stage, state): self._counts[stage, state] for stage in STAGES for state in State}

    def units(self, state: State) -> list[Unit]:
        """List the units in this state, in the order of the plan."""
        return [unit for unit, s in self.states.items() if s is state]


def survey(
    specs: Mapping[Unit, UnitSpec], asked: Collection[Unit], *, retry_failed: bool, verify: bool = False
) -> Sweep:
    """See from the run directory which units are done, which failed before, and which are to be done.

    ``specs``: every unit of the plan, each after the one it builds on. Units that are not done and not ``asked`` for
    block those that build on them. Where nothing is asked for (a report), each unit counts by its own files: before a
    driver does a unit again, it removes the markers of all that build on it. ``retry_failed``: run units again that
    failed for good. ``verify``: compare checksums of finished units' files, not sizes alone.
    """
    sweep = Sweep(specs)
    for unit, spec in specs.items():
        needed = prerequisite(unit, spec.config)
        # what builds on something that is to be done again is done again, too
        upstream_done = not asked or needed is None or sweep.states[needed] is State.DONE
        if upstream_done and markers.is_done(spec) and not (verify and markers.why_unusable(spec)):
            sweep.move(unit, State.DONE)
        elif not (retry_failed and unit in asked) and (reason := markers.failure(spec)) is not None:
            sweep.move(unit, State.FAILED, reason)
        elif unit not in asked:
            sweep.move(unit, State.BLOCKED, f"{unit} has not been done")
        elif needed is not None and sweep.states[needed] in (State.FAILED, State.BLOCKED):
            sweep.move(unit, State.BLOCKED, sweep.reasons[needed])
        else:
            sweep.move(unit, State.WAITING)
        if unit in asked and sweep.states[unit] is not State.DONE:
            if why := markers.why_again(spec):
                sweep.again[unit] = why
            elif verify and upstream_done and markers.is_done(spec):
                sweep.again[unit] = "a file is damaged"
    if not asked:  # weights and embeddings that a copy of the run lacks: what was made from them is whole
        for unit in reversed(list(specs)):
            if (made := sweep.dependents.get(unit)) and all(sweep.states[each] is State.DONE for each in made):
                sweep.move(unit, State.DONE)
    sweep.moves.clear()
    return sweep


def read_progress(paths: RunDirectory, sweep: Sweep) -> dict[Unit, dict[str, Any]]:
    """Read how far each running unit is; empty for one that has not begun."""
    return {unit: read_record(paths.progress(unit)) for unit in sweep.units(State.RUNNING)}
