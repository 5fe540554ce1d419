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
        held = self._held.pop(unit, None)  # known again once all went well: half of it may have been taken
        if held is None and (held := self.begin(spec)) is None:
            self.ended.add(unit)
            return
        if new := history[held:]:
            self.log(unit, new)
        if ended:
            self.end(unit, ended)
            self.ended.add(unit)
        self._held[unit] = max(held, len(history))

    @abstractmethod
    def begin(self, spec: UnitSpec) -> int | None:
        """Open a training's record, or find it again; returns how many epochs it holds, None if it is closed."""

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
    """Pick the finite numbers of a row, but for the epoch that they are of."""
    numbers = {key: float(value) for key, value in row.items() if isinstance(value, int | float) and key != "epoch"}
    return {key: value for key, value in numbers.items() if math.isfinite(value)}
