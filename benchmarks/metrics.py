"""AUC and pAUC of 10,000 systems, and a bootstrap, against scikit-learn in a loop."""

import numpy as np

from benchmarks import plain
from benchmarks.measure import Figure, in_turn
from rayasd.evaluation.metrics import auc, partial_auc

CELLS, SYSTEMS, CLIPS = 40, 250, 200
"""7 machines x 3 sections x 2 domains, of which detectors, grid points and poolings each have a row."""


def measure() -> list[Figure]:
    rng = np.random.default_rng(0)
    labels = np.repeat([False, True], CLIPS // 2)
    cells = [rng.standard_normal((SYSTEMS, CLIPS)) + 0.8 * labels for _ in range(CELLS)]
    cells = [np.round(cell, 2) for cell in cells]  # with ties
    found: dict[str, np.ndarray] = {}

    def ours() -> None:
        found["ours"] = np.concatenate([np.column_stack([auc(labels, c), partial_auc(labels, c)]) for c in cells])

    def scikit_learn() -> None:
        found["plain"] = np.concatenate([plain.metrics(labels, cell) for cell in cells])

    seconds = in_turn(ours, scikit_learn, repeat=1)
    np.testing.assert_allclose(found["ours"], found["plain"], rtol=1e-12)
    drawn = rng.integers(0, CLIPS // 2, (1000, CLIPS)) + np.repeat([0, CLIPS // 2], CLIPS // 2)
    resampled = cells[0][0][drawn]
    boot = in_turn(lambda: (auc(labels, resampled), partial_auc(labels, resampled)),
                   lambda: plain.metrics(labels, resampled), repeat=1)  # fmt: skip
    what = f"AUC and pAUC of {CELLS * SYSTEMS} systems"
    return [
        Figure("metrics", what, seconds[0], "s", "scikit-learn in a loop", seconds[1], 20, "equal to 1e-12"),
        Figure("metrics", "bootstrap, 1000 draws", boot[0], "s", "scikit-learn in a loop", boot[1], 20),
    ]
