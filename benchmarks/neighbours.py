"""What it is worth to search neighbours once a section and share them over detectors and grid points.

Random embeddings of one section as DCASE 2021 has them: 1003 normal and 400 test clips of 10 windows, D = 128;
detectors fitted to all training clips (10030 windows) or to a sixth of them.
"""

import time

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.measure import Figure
from rayasd.config import InlierConfig
from rayasd.inlier.detectors import anomaly_scores, fit_detector, most_neighbours, parse_detectors
from rayasd.inlier.neighbours import NeighbourSearch

WINDOWS, DIM, TEST_CLIPS = 10, 128, 400
DETECTORS = ("knn", "lof", "ldn", "domain-nn")


def seconds(bank: np.ndarray, test: np.ndarray, *, shared: bool) -> tuple[float, list[np.ndarray]]:
    specs = parse_detectors(DETECTORS, InlierConfig())
    domains = np.array(["source"] * (len(bank) - 3 * WINDOWS) + ["target"] * 3 * WINDOWS, dtype=object)
    began, scores = time.perf_counter(), []
    search = NeighbourSearch(bank, most_neighbours(specs)) if shared else None
    for spec in specs:
        detector = spec.build()
        fit_detector(detector, bank, domains=domains, **({"neighbours": search} if shared else {}))
        scores.append(anomaly_scores(detector, test))
    return time.perf_counter() - began, scores


def measure() -> list[Figure]:
    rng = np.random.default_rng(0)
    test = rng.standard_normal((TEST_CLIPS * WINDOWS, DIM)).astype(np.float32)
    figures = []
    for clips in (167, 1003):
        bank = rng.standard_normal((clips * WINDOWS, DIM)).astype(np.float32)
        with threadpool_limits(1):
            alone, one = seconds(bank, test, shared=False)
            together, other = seconds(bank, test, shared=True)
        for a, b in zip(one, other, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4)
        what = f"neighbours of {len(bank)} windows, 4 detectors, 19 grid points"
        figures.append(Figure("neighbours", what, together, "s", "a search for each", alone, note="one thread"))
    return figures
