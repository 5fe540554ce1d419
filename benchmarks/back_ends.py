"""What back ends that level two domains are worth where the target domain has few clips and is spread more widely.

A simulation with known answers: a bank of 990 source clips from N(0, I) and 10 target clips from N(5, 4 I) in 16
dimensions; test clips of both domains, anomalous ones displaced by 4 standard deviations of their domain in a random
direction. AUC of each domain as DCASE counts it from 2022 on: its normal clips against the anomalous clips of both.
"""

import time

import numpy as np
from sklearn.metrics import roc_auc_score

from benchmarks.measure import Figure
from rayasd.config import InlierConfig
from rayasd.inlier.detectors import anomaly_scores, fit_detector, single_detector
from rayasd.inlier.neighbours import NeighbourSearch

DIM, SEEDS, TEST = 16, 20, 200
DOMAINS = {"source": (0.0, 1.0, 990), "target": (5.0, 2.0, 10)}
"""Mean in every dimension, standard deviation and clips of the bank."""
EXPECTED = {
    "knn-1": (94.2, 43.8),
    "ldn-4": (83.5, 87.0),
    "varmin-4": (87.5, 79.6),
    "domain-nn": (87.2, 87.9),
}
"""AUC of source and target, in percent, that another implementation of the published formulas gave."""
WITHIN = 2.0


def measure() -> list[Figure]:
    figures = []
    for name, expected in EXPECTED.items():
        began = time.perf_counter()
        found = aucs(name)
        seconds = time.perf_counter() - began
        errors = found.std(axis=0) / np.sqrt(SEEDS)
        for domain, ours, error, wanted in zip(DOMAINS, found.mean(axis=0), errors, expected, strict=True):
            note = f"± {error:.1f} over {SEEDS} seeds, {seconds:.1f} s"
            if abs(ours - wanted) > WITHIN:
                note += f"; more than {WITHIN:g} points apart"
            figures.append(
                Figure("back ends", f"{name}, {domain} AUC", ours, "%", "other implementation", wanted, note=note)
            )
    return figures


def aucs(detector: str, seeds: int = SEEDS) -> np.ndarray:
    """AUC of source and target in percent, (seeds, 2)."""
    return 100 * np.array([_one(detector, seed) for seed in range(seeds)])


def _one(name: str, seed: int) -> list[float]:
    rng = np.random.default_rng(seed)
    spec = single_detector(name, InlierConfig())
    bank = np.concatenate([_clips(rng, domain, count) for domain, (_, _, count) in DOMAINS.items()])
    domains = np.repeat(list(DOMAINS), [count for _, _, count in DOMAINS.values()])
    detector = spec.build()
    fit_detector(detector, bank, domains=domains, neighbours=NeighbourSearch(bank, 4))
    normal = {domain: anomaly_scores(detector, _clips(rng, domain, TEST)) for domain in DOMAINS}
    anomalous = np.concatenate([anomaly_scores(detector, _clips(rng, domain, TEST, 4.0)) for domain in DOMAINS])
    label = np.repeat([0, 1], [TEST, len(anomalous)])
    return [roc_auc_score(label, np.concatenate([normal[domain], anomalous])) for domain in DOMAINS]


def _clips(rng: np.random.Generator, domain: str, count: int, displaced: float = 0.0) -> np.ndarray:
    """Draw clips (count, DIM), displaced by so many standard deviations of the domain."""
    mean, deviation, _ = DOMAINS[domain]
    drawn = rng.standard_normal((count, DIM))
    direction = rng.standard_normal((count, DIM))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    return (mean + deviation * (drawn + displaced * direction)).astype(np.float32)
