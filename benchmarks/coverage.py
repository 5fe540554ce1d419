"""How often 95 % intervals hold the truth: normal scores of known separation, two minutes.

python -m benchmarks.coverage
"""

import numpy as np
from scipy.integrate import quad
from scipy.stats import hmean, norm

from rayasd.evaluation.bootstrap import (
    CellScores,
    MetricReplicates,
    interval,
    mean_replicates,
    metric_replicates,
    official_replicates,
    undrawn,
)
from rayasd.evaluation.metrics import MAX_FPR

TRIALS, REPLICATES = 100, 400


def truth(separation: float) -> tuple[float, float]:
    """AUC and pAUC of normal scores N(0, 1) against anomalous N(separation, 1)."""
    area, _ = quad(lambda fpr: norm.sf(norm.isf(fpr) - separation), 0, MAX_FPR)
    smallest = MAX_FPR**2 / 2
    return norm.cdf(separation / np.sqrt(2)), 0.5 * (1 + (area - smallest) / (MAX_FPR - smallest))


def measures(metrics: MetricReplicates) -> dict[str, np.ndarray]:
    means = {name: mean_replicates(metrics, name) for name in ("auc", "pauc")}
    return means | {"official": official_replicates(metrics, 2021)}


def coverage(clips: int, num_cells: int) -> dict[str, float]:
    """Share of trials whose intervals hold the truth; ``clips``: normal, and as many anomalous, in each cell."""
    separations = np.random.default_rng(5).uniform(0.3, 1.6, num_cells)
    true = np.array([truth(separation) for separation in separations])
    wanted = {"auc": true[:, 0].mean(), "pauc": true[:, 1].mean(), "official": hmean(true.ravel())}
    names, domains = tuple(f"{clip:04}" for clip in range(2 * clips)), np.full(2 * clips, "source", dtype=object)
    anomalous, held = np.arange(2 * clips) % 2 == 1, dict.fromkeys(wanted, 0)
    for trial in range(TRIALS):
        rng = np.random.default_rng(trial)
        cells = {
            (f"machine {trial}", f"{i:02}", "source"): CellScores(
                names,
                anomalous,
                (rng.standard_normal(2 * clips) + separation * anomalous)[None],
                domains,
                np.array(names, dtype=object),
            )
            for i, separation in enumerate(separations)
        }
        drawn, whole = measures(metric_replicates(cells, REPLICATES)), measures(undrawn(cells))
        for name, value in wanted.items():
            low, high = interval(drawn[name], float(whole[name][0]))
            held[name] += low <= value <= high
    return {name: count / TRIALS for name, count in held.items()}


if __name__ == "__main__":
    for clips, num_cells in ((100, 42), (10, 42), (5, 16)):
        print(f"{clips} + {clips} clips in each of {num_cells} cells:", coverage(clips, num_cells))
