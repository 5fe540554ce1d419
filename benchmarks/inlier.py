"""The reference's whole grid on one machine's sections, against one scikit-learn fit after another and CSV files."""

import csv
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks import plain
from benchmarks.measure import Figure, in_turn
from rayasd.config import InlierConfig
from rayasd.host import usable_cpus
from rayasd.inlier.detectors import anomaly_scores, fit_detector, most_neighbours, parse_detectors
from rayasd.inlier.neighbours import NeighbourSearch

FAMILIES, GRID = ("lof", "gmm", "knn", "ocsvm", "kde"), (1, 2, 4, 8, 16, 32)
BANK, TEST, WINDOWS, DIM = 167, 400, 10, 128
"""A DCASE 2021 section: a sixth of 1003 training clips held out to fit to, 2 x 200 test clips."""


def measure() -> list[Figure]:
    cpus = usable_cpus()
    figures = []
    for family in FAMILIES:
        ours, other = in_turn(lambda family=family: our_way(0, family), lambda family=family: plain_way(0, family))
        figures.append(
            Figure("inlier", f"{family}, 6 grid points, one section", ours, "s", "scikit-learn, one by one", other,
                   note="ours on one thread, the other on all")
        )  # fmt: skip
    with ProcessPoolExecutor(cpus, get_context("spawn")) as pool:  # as units run: one a core
        list(pool.map(our_way, range(cpus), ["knn"] * cpus))  # imports
        began = time.perf_counter()
        list(pool.map(our_way, range(cpus)))
        ours = time.perf_counter() - began
        list(pool.map(plain_way, [0], ["knn"]))
        began = time.perf_counter()
        pool.submit(_all_plain, cpus).result()
        other = time.perf_counter() - began
    return [*figures, Figure("inlier", f"whole grid, {cpus} sections", ours, "s", "scikit-learn, one by one", other, 8)]


def our_way(section: int, *families: str) -> list[np.ndarray]:
    """Window scores (windows,) of each grid point."""
    bank, test = windows(section)
    specs = parse_detectors(families or FAMILIES, InlierConfig(grid=GRID))
    search, scores = NeighbourSearch(bank, most_neighbours(specs)), []
    with threadpool_limits(1):
        for spec in specs:
            detector = spec.build()
            fit_detector(detector, bank, neighbours=search)
            scores.append(anomaly_scores(detector, test))
    return scores


def plain_way(section: int, *families: str) -> list[np.ndarray]:
    """Window scores (windows,) of each grid point."""
    bank, test = windows(section)
    scores = []
    with tempfile.TemporaryDirectory() as folder:
        np.savetxt(Path(folder) / "bank.csv", bank, delimiter=",")
        np.savetxt(Path(folder) / "test.csv", test, delimiter=",")
        X = np.loadtxt(Path(folder) / "bank.csv", delimiter=",", dtype=np.float32)
        T = np.loadtxt(Path(folder) / "test.csv", delimiter=",", dtype=np.float32)
        for family in families or FAMILIES:
            for h in GRID:
                scores.append(plain.detector_scores(family, h, X, T))
                with (Path(folder) / f"{family}-{h}.csv").open("w", newline="") as file:
                    csv.writer(file).writerows(scores[-1].reshape(-1, WINDOWS).mean(axis=1)[:, None])
    return scores


def _all_plain(sections: int) -> None:
    for section in range(sections):
        plain_way(section)


def windows(section: int) -> tuple[np.ndarray, np.ndarray]:
    """Windows (n, D) to fit to and windows (m, D) to score."""
    rng = np.random.default_rng(section)
    centres = 2 * rng.standard_normal((8, DIM))

    def of(num_clips: int) -> np.ndarray:
        clips = centres[rng.integers(0, 8, num_clips)] + 0.5 * rng.standard_normal((num_clips, DIM))
        every = clips[:, None] + 0.3 * rng.standard_normal((num_clips, WINDOWS, DIM))
        return every.reshape(-1, DIM).astype(np.float32)

    return of(BANK), of(TEST)
