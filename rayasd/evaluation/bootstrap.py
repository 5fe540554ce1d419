"""How sure a score is: bootstrap over test clips, drawn within domain and label, for one system or two in pairs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rayasd.arrays import Indices
from rayasd.errors import UserError
from rayasd.evaluation.metrics import METRICS
from rayasd.evaluation.years import official_score
from rayasd.randomness import generator

NUM_REPLICATES = 1000
CONFIDENCE = 0.95

Cell = tuple[str, str, str]  # machine, section, domain


@dataclass(frozen=True)
class CellScores:
    """Scores of one system in one cell."""

    clips: tuple[str, ...]  # sorted
    anomalous: NDArray[np.bool_]  # (clips,)
    scores: NDArray[np.float64]  # (seeds, clips), higher is more anomalous
    domains: NDArray[np.object_]  # (clips,)
    groups: NDArray[np.object_]  # group of each clip, (clips,); a clip without a group is its own
    metrics: tuple[str, ...] = ("auc", "pauc")  # metrics that the year's score takes from this cell: AUC, pAUC or both

    @property
    def strata(self) -> dict[tuple[str, bool], Indices]:
        """Clips of each domain and label, among which draws are made."""
        places = [(domain, anomalous) for domain in sorted(set(self.domains)) for anomalous in (False, True)]
        found = {at: np.flatnonzero((self.domains == at[0]) & (self.anomalous == at[1])) for at in places}
        return {at: clips for at, clips in found.items() if len(clips)}

    @property
    def is_drawable(self) -> bool:
        """Whether no stratum is of one group of several clips, whose draws would all be alike."""
        return all(len(clips) == 1 or len(set(self.groups[clips])) > 1 for clips in self.strata.values())


Replicates = NDArray[np.float64]  # (seeds, replicates)
MetricReplicates = Mapping[Cell, Mapping[str, Replicates]]  # one value for each metric of each cell


def metric_replicates(
    cells: Mapping[Cell, CellScores], num_replicates: int = NUM_REPLICATES
) -> dict[Cell, dict[str, Replicates]]:
    """Draw the AUC and pAUC of a system's cells again and again.

    In each replicate, a section's clips are drawn with replacement among those of their domain and label (Efron 1979,
    stratified), the same clips for all seeds. Groups are drawn as a whole, until there are as many clips. The draws
    come from the names of machine, section and domain alone, so that two systems scored on the same clips are compared
    in pairs.
    """
    found: dict[Cell, dict[str, Replicates]] = {}
    for cell, of_cell in sorted(cells.items()):
        drawn = _draws(cell, of_cell, num_replicates)
        labels = of_cell.anomalous[drawn[0]]  # a stratum's clips take the same places in every replicate
        found[cell] = {
            name: np.stack([METRICS[name](labels, scores[drawn]) for scores in of_cell.scores])
            for name in of_cell.metrics
        }
    return found


def official_replicates(metrics: MetricReplicates, year: int) -> NDArray[np.float64]:
    """Compute the year's official score of each replicate, averaged over seeds: (replicates,), fractions of 1."""
    named = [(cell[0], values) for cell, of_cell in metrics.items() for values in of_cell.values()]
    machines = [machine for machine, _ in named]
    num_seeds = min(len(values) for _, values in named)
    return np.mean([official_score(year, machines, [v[s] for _, v in named]) for s in range(num_seeds)], axis=0)


def mean_replicates(metrics: MetricReplicates, name: str) -> NDArray[np.float64]:
    """Compute the arithmetic mean over cells and seeds of AUC or pAUC of each replicate: (replicates,)."""
    return np.concatenate([of_cell[name] for of_cell in metrics.values() if name in of_cell]).mean(axis=0)


@dataclass(frozen=True)
class Comparison:
    """One system against another on the same clips."""

    first: float  # its score, mean over seeds
    second: float
    low: float  # 95 % interval of the first's lead
    high: float
    share: float  # share of the draws in which the first leads; ties count half
    ties: float = 0.0  # share of the draws in which both have the same score

    @property
    def lead(self) -> float:
        """The first's score minus the second's."""
        return self.first - self.second

    @property
    def sure(self) -> bool:
        """Whether the interval of the lead leaves out zero, and the share of draws with this leader agrees."""
        first, enough = self.share - self.ties / 2, (1 + CONFIDENCE) / 2
        return (self.low > 0 and first >= enough) or (self.high < 0 and 1 - first - self.ties >= enough)


def compare(
    first: Mapping[Cell, CellScores], second: Mapping[Cell, CellScores], year: int
) -> tuple[Comparison, Comparison]:
    """Compare two systems by a paired bootstrap: both are scored on the same draws of the same clips.

    Where only one knows which clips belong together, it is so for both.

    Returns by the official score, and by the mean AUC, which is steadier where cells have few clips. Raises UserError:
    they were not scored on the same clips with the same labels.
    """
    for cell in sorted(first.keys() | second.keys()):
        a, b = first.get(cell), second.get(cell)
        name = " ".join(cell)
        if a is None or b is None:
            raise UserError(f"only one of the two has scores of {name}: both need the same machines and sections")
        if a.clips != b.clips or not np.array_equal(a.anomalous, b.anomalous):
            raise UserError(f"the two were not scored on the same clips, or labels, of {name}")
    groups = {name: (of.groups, second[name].groups) for name, of in first.items()}
    coarse = {name: min(both, key=lambda of_clips: len(set(of_clips))) for name, both in groups.items()}
    first, second = ({n: replace(of, groups=coarse[n]) for n, of in system.items()} for system in (first, second))
    drawn = [metric_replicates(system) for system in (first, second)]
    whole = [undrawn(system) for system in (first, second)]

    def comparison(measure: Callable[[MetricReplicates], NDArray[np.float64]]) -> Comparison:
        lead = measure(drawn[0]) - measure(drawn[1])
        ties = float(np.mean(lead == 0))
        share = float(np.mean(lead > 0)) + ties / 2
        a, b = (float(measure(each)[0]) for each in whole)
        return Comparison(a, b, *interval(lead, a - b, least=-1.0), share, ties)

    return comparison(lambda m: official_replicates(m, year)), comparison(lambda m: mean_replicates(m, "auc"))


def undrawn(cells: Mapping[Cell, CellScores]) -> dict[Cell, dict[str, Replicates]]:
    """Compute the metrics of all clips, as one replicate."""
    return {
        cell: {name: METRICS[name](of.anomalous, of.scores)[:, None] for name in of.metrics}
        for cell, of in cells.items()
    }


def interval(replicates: NDArray[np.float64], estimate: float, *, least: float = 0.0) -> tuple[float, float]:
    """95 % interval of replicates, moved by their bias: resampling leaves out clips, and pAUC rises with that.

    It holds the estimate, and stays within what a score can be.

    ``replicates``: of the score, (replicates,); ``estimate``: the score of all clips as they are; ``least``: its lowest
    possible value.
    """
    low, high = np.quantile(replicates, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    bias = float(np.mean(replicates)) - estimate
    return max(least, min(float(low) - bias, estimate)), min(1.0, max(float(high) - bias, estimate))


def _draws(cell: Cell, of_cell: CellScores, num_replicates: int) -> NDArray[np.int64]:
    """Clips of each replicate, (replicates, clips): stratum after stratum."""
    drawn = []
    for (domain, anomalous), stratum in of_cell.strata.items():
        rng = generator("bootstrap", cell[0], cell[1], domain, int(anomalous))
        drawn.append(stratum[_of_groups(rng, of_cell.groups[stratum], num_replicates)])
    return np.hstack(drawn)


def _of_groups(rng: np.random.Generator, groups: NDArray[np.object_], num_replicates: int) -> NDArray[np.int64]:
    """Draw whole groups until there are as many clips as the stratum has, (replicates, clips); the last one is cut."""
    names, numbers = np.unique(groups.astype(str), return_inverse=True)
    if len(names) == len(groups):
        return rng.integers(0, len(groups), (num_replicates, len(groups)))
    members = [np.flatnonzero(numbers == number) for number in range(len(names))]
    enough = -(-len(groups) // min(map(len, members)))
    drawn = rng.integers(0, len(names), (num_replicates, enough))
    return np.stack([np.concatenate([members[n] for n in row])[: len(groups)] for row in drawn])
