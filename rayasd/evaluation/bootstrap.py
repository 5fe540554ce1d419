"""How sure a score is: bootstrap over test clips, drawn within each cell and label, for one system or two in pairs."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rayasd.errors import UserError
from rayasd.evaluation.metrics import auc, official_score, partial_auc
from rayasd.randomness import generator

NUM_REPLICATES = 1000
CONFIDENCE = 0.95

Cell = tuple[str, str, str]
"""machine, section, domain"""


@dataclass(frozen=True)
class CellScores:
    """Scores of one system in one cell."""

    clips: tuple[str, ...]
    """Sorted."""
    anomalous: NDArray[np.bool_]
    """(clips,)"""
    scores: NDArray[np.float64]
    """(seeds, clips), higher is more anomalous."""


def official_replicates(cells: Mapping[Cell, CellScores], num_replicates: int = NUM_REPLICATES) -> NDArray[np.float64]:
    """Draw the official score of a system again and again.

    In each replicate, every cell's normal and anomalous clips are drawn with replacement among themselves (Efron 1979,
    stratified), the same clips for all seeds; the official score of each seed is averaged. The draws come from the
    cell's name alone, so that two systems scored on the same clips are compared in pairs.

    Returns:
        (replicates,), fractions of 1.

    """
    reciprocals: NDArray[np.float64] = np.zeros((1, 1))
    for cell, of_cell in sorted(cells.items()):
        drawn = _draws(cell, of_cell.anomalous, num_replicates)
        labels = of_cell.anomalous[drawn[0]]  # anomalous clips take the same places in every replicate
        values = [metric(labels, scores[drawn]) for scores in of_cell.scores for metric in (auc, partial_auc)]
        floored = np.maximum(np.stack(values).reshape(len(of_cell.scores), 2, num_replicates), np.finfo(float).eps)
        reciprocals = reciprocals + (1 / floored).sum(axis=1)
    return (2 * len(cells) / reciprocals).mean(axis=0)


@dataclass(frozen=True)
class Comparison:
    """One system against another on the same clips."""

    first: float
    """Official score, mean over seeds."""
    second: float
    low: float
    """95 % interval of the first's lead."""
    high: float
    share: float
    """Share of the draws in which the first leads; ties count half."""

    @property
    def lead(self) -> float:
        """The first's score minus the second's."""
        return self.first - self.second

    @property
    def sure(self) -> bool:
        """Whether the interval of the lead leaves out zero."""
        return self.low > 0 or self.high < 0


def compare(first: Mapping[Cell, CellScores], second: Mapping[Cell, CellScores]) -> Comparison:
    """Compare two systems by a paired bootstrap: both are scored on the same draws of the same clips.

    Raises:
        UserError: they were not scored on the same clips with the same labels.

    """
    for cell in sorted(first.keys() | second.keys()):
        a, b = first.get(cell), second.get(cell)
        name = " ".join(cell)
        if a is None or b is None:
            raise UserError(f"only one of the two has scores of {name}: both need the same machines and sections")
        if a.clips != b.clips or not np.array_equal(a.anomalous, b.anomalous):
            raise UserError(f"the two were not scored on the same clips, or labels, of {name}")
    draws = [official_replicates(system) for system in (first, second)]
    lead = draws[0] - draws[1]
    low, high = interval(lead)
    share = float(np.mean(lead > 0) + np.mean(lead == 0) / 2)
    return Comparison(_official(first), _official(second), low, high, share)


def _official(cells: Mapping[Cell, CellScores]) -> float:
    """Official score, mean over seeds."""
    num_seeds = min(len(cell.scores) for cell in cells.values())
    metrics = [[metric(c.anomalous, c.scores) for c in cells.values()] for metric in (auc, partial_auc)]
    return float(np.mean([official_score(*([v[s] for v in of] for of in metrics)) for s in range(num_seeds)]))


def interval(replicates: NDArray[np.float64], confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Percentile interval of replicates."""
    low, high = np.quantile(replicates, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _draws(cell: Cell, anomalous: NDArray[np.bool_], num_replicates: int) -> NDArray[np.int64]:
    """Clips of each replicate, (replicates, clips): the normal ones first."""
    rng = generator("bootstrap", *cell)
    parts = [np.flatnonzero(~anomalous), np.flatnonzero(anomalous)]
    return np.hstack([part[rng.integers(0, len(part), (num_replicates, len(part)))] for part in parts])
