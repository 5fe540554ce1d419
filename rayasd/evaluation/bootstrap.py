"""How sure a score is: bootstrap over test clips, drawn within each cell and label, for one system or two in pairs."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rayasd.evaluation.metrics import auc, partial_auc
from rayasd.randomness import generator

NUM_REPLICATES = 1000
CONFIDENCE = 0.95

Cell = tuple[str, str, str]
"""machine, section, domain"""


@dataclass(frozen=True)
class CellScores:
    """Scores of one system in one cell."""

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


def interval(replicates: NDArray[np.float64], confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Percentile interval of replicates."""
    low, high = np.quantile(replicates, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _draws(cell: Cell, anomalous: NDArray[np.bool_], num_replicates: int) -> NDArray[np.int64]:
    """Clips of each replicate, (replicates, clips): the normal ones first."""
    rng = generator("bootstrap", *cell)
    parts = [np.flatnonzero(~anomalous), np.flatnonzero(anomalous)]
    return np.hstack([part[rng.integers(0, len(part), (num_replicates, len(part)))] for part in parts])
