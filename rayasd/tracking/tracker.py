"""Interface of trackers: they receive a training's epochs, its end, and the ranked systems."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from rayasd.unit import Unit, UnitSpec

TrackedRow = Mapping[str, Any]


class Tracker(ABC):
    """Takes each epoch once, whoever drove the sweep when it was trained."""

    place: str  # address or folder to open

    def __init__(self) -> None:
        self._held: dict[Unit, int] = {}
        self.closed: set[Unit] = set()
        """Trainings that have ended and are complete here."""
        self.failed: set[Unit] = set()
        """Trainings that could not be handed over last time."""
        self.leaderboard_time = 0

    def follow(self, spec: UnitSpec, history: Sequence[TrackedRow], ended: str | None) -> None:
        """Take what a training's history holds beyond what was taken, and its end: done, failed or None."""
        unit = spec.unit
        held = self._held.pop(unit, None)  # known again once all went well: half of it may have been taken
        if held is None and (held := self.begin(spec)) is None:
            self.closed.add(unit)
            return
        if new := history[held:]:
            self.log(unit, new)
        if ended:
            self.end(unit, ended)
            self.closed.add(unit)
        self._held[unit] = max(held, len(history))

    @abstractmethod
    def begin(self, spec: UnitSpec) -> int | None:
        """Open a training's record, or find it again; returns how many epochs it holds, None if it is closed."""

    @abstractmethod
    def log(self, unit: Unit, rows: Sequence[TrackedRow]) -> None:
        """Add epochs: rows of history.jsonl."""

    @abstractmethod
    def end(self, unit: Unit, how: str) -> None:
        """Note that a training is done or has failed."""

    @abstractmethod
    def results(self, entries: Sequence[TrackedRow]) -> None:
        """Take the ranked systems: rows of leaderboard.parquet, which replace those of an earlier report."""


def metrics(row: TrackedRow) -> dict[str, float]:
    """Pick the finite numbers of a row, except its epoch."""
    numbers = {key: float(value) for key, value in row.items() if isinstance(value, int | float) and key != "epoch"}
    return {key: value for key, value in numbers.items() if math.isfinite(value)}
