"""The reference's whole grid on one machine's sections, against one scikit-learn fit after another and CSV files."""

import csv
import tempfile
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks import plain
from benchmarks.measure import Figure, in_turn
from rayasd.config import InlierConfig
from rayasd.inlier.detectors import anomaly_scores, fit_detector, most_neighbours, parse_detectors
from rayasd.inlier.neighbours import NeighbourSearch

FAMILIES, GRID = ("lof", "gmm", "knn", "ocsvm", "kde"), (1, 2, 4, 8, 16, 32)
BANK, TEST, WINDOWS, DIM = 167, 400, 10, 128
"""A DCASE 2021 section: a sixth of 1003 training clips held out to fit to, 2 x 200 test clips."""


def measure() -> list[Figure]:
    rng = np.random.default_rng(0)
    centres = 2 * rng.standard_normal((8, DIM))

    def windows(num_clips: int) -> np.ndarray:
        clips = centres[rng.integers(0, 8, num_clips)] + 0.5 * rng.standard_normal((num_clips, DIM))
        every = clips[:, None] + 0.3 * rng.standard_normal((num_clips, WINDOWS, DIM))
        return every.reshape(-1, DIM).astype(np.float32)

    bank, test = windows(BANK), windows(TEST)
    figures = []
    for family in FAMILIES:
        found: dict[str, list[np.ndarray]] = {"ours": [], "plain": []}

        def ours(family: str = family, found: dict[str, list[np.ndarray]] = found) -> None:
            specs = parse_detectors([family], InlierConfig(grid=GRID))
            search = NeighbourSearch(bank, most_neighbours(specs))
            with threadpool_limits(1):  # units run side by side, one a core
                for spec in specs:
                    detector = spec.build()
                    fit_detector(detector, bank, neighbours=search)
                    found["ours"].append(anomaly_scores(detector, test))

        def scikit_learn(family: str = family, found: dict[str, list[np.ndarray]] = found) -> None:
            with tempfile.TemporaryDirectory() as folder:
                np.savetxt(Path(folder) / "bank.csv", bank, delimiter=",")
                np.savetxt(Path(folder) / "test.csv", test, delimiter=",")
                X = np.loadtxt(Path(folder) / "bank.csv", delimiter=",", dtype=np.float32)
                T = np.loadtxt(Path(folder) / "test.csv", delimiter=",", dtype=np.float32)
                for h in GRID:
                    found["plain"].append(plain.detector_scores(family, h, X, T))
                    with (Path(folder) / f"{h}.csv").open("w", newline="") as file:
                        csv.writer(file).writerows(found["plain"][-1].reshape(-1, WINDOWS).mean(axis=1)[:, None])

        seconds = in_turn(ours, scikit_learn, repeat=1)
        worst = max(np.abs(a / b - 1).max() for a, b in zip(found["ours"], found["plain"], strict=True))
        figures.append(
            Figure("inlier", f"{family}, 6 grid points, one section", seconds[0], "s", "scikit-learn, one by one",
                   seconds[1], note=f"scores differ by {worst:.0e} at most; ours on one thread, the other on all")
        )  # fmt: skip
    total = Figure(
        "inlier", "whole grid, one section", sum(f.ours for f in figures), "s", "scikit-learn, one by one",
        sum(f.other or 0.0 for f in figures), 8, "and ours does as many sections at once as there are cores",
    )  # fmt: skip
    return [*figures, total]
