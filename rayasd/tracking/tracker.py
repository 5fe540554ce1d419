"""What a tracker is told: a training's epochs as they come, its end, and the ranked systems."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from rayasd.unit import Unit, UnitSpec

Row = Mapping[str, Any]


class Tracker(ABC):
    """Takes each epoch once, whoever drove the sweep when it was trained."""

    name: str

    def __init__(self) -> None:
        self._held: dict[Unit, int] = {}
        self.ended: set[Unit] = set()
        """Trainings of which nothing more is to come."""

    def follow(self, spec: UnitSpec, history: Sequence[Row], ended: str | None) -> None:
        """Take what a training's history holds beyond what was taken, and its end: done, failed or None."""
        unit = spec.unit
        if unit not in self._held:
            self._held[unit] = self.begin(spec)
        if new := history[self._held[unit] :]:
            self.log(unit, new)
            self._held[unit] = len(history)
        if ended:
            self.end(unit, ended)
            self.ended.add(unit)

    @abstractmethod
    def begin(self, spec: UnitSpec) -> int:
        """Open a training's record, or find it again; returns how many epochs it holds."""

    @abstractmethod
    def log(self, unit: Unit, rows: Sequence[Row]) -> None:
        """Add epochs: rows of history.jsonl."""

    @abstractmethod
    def end(self, unit: Unit, how: str) -> None:
        """Note that a training is done or has failed."""

    @abstractmethod
    def results(self, entries: Sequence[Row]) -> None:
        """Take the ranked systems: rows of leaderboard.parquet, instead of those of an earlier report."""


def metrics(row: Row) -> dict[str, float]:
    """Pick the finite numbers of a row."""
    numbers = {key: float(value) for key, value in row.items() if isinstance(value, int | float)}
    return {key: value for key, value in numbers.items() if math.isfinite(value)}
