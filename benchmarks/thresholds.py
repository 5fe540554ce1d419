"""False alarms of thresholds set on n normal clips, where the wanted rate is 10 %.

A simulation with known answers: scores of normal clips are N(0, 1) under one operating condition; under two, every
fifth clip is of the second one, N(4, 0.7^2). The rate of each threshold is exact, from the distribution itself and not
from test clips; it is averaged over many draws of n clips. The conformal rank allows floor(0.1 (n + 1)) false alarms in
n + 1.

A second simulation fits the detector, too: clips are points of N(0, 1) in 8 dimensions, scores are distances to the
nearest, of normal clips to the nearest other one. Here the rule promises nothing exactly.
"""

import time

import numpy as np
from scipy.spatial.distance import cdist
from scipy.stats import norm

from benchmarks.measure import Figure
from rayasd.config import EvaluationConfig
from rayasd.evaluation.decisions import Decision
from rayasd.evaluation.scores import Calibration

COUNTS, WANTED = (9, 12, 30, 166), 0.1
DRAWS = {"conformal": 4000, "gamma": 200}
SHARE, APART, WIDTH = 0.2, 4.0, 0.7
"""Of clips under the second condition; how far it is from the first, and how wide, in the first one's deviations."""


def measure() -> list[Figure]:
    figures = []
    for conditions in (1, 2):
        for n in COUNTS:
            began = time.perf_counter()
            found = {rule: rates(rule, n, conditions) for rule in DRAWS}
            promised = 100 * int(WANTED * (n + 1) + 1e-9) / (n + 1)
            errors = {rule: rate.std() / np.sqrt(len(rate)) for rule, rate in found.items()}
            ours, other = (found[rule].mean() for rule in DRAWS)
            low, high = np.quantile(found["conformal"], [0.025, 0.975])
            note = (
                f"exact {promised:.1f}, ± {errors['conformal']:.2f} and {errors['gamma']:.2f}; a single threshold has "
            )
            note += f"{low:.0f} to {high:.0f} % (95 %); {time.perf_counter() - began:.1f} s"
            if abs(ours - promised) > 4 * errors["conformal"] + 0.01:
                note += "; not as promised"
            what = f"false alarms, {n} clips, {conditions} condition{'s' * (conditions > 1)}"
            quantile = "gamma quantile" if n >= 30 else "quantile"
            figures.append(Figure("thresholds", what, ours, "%", quantile, other, note=note))
    for n in COUNTS:
        found = fitted_rates(n)
        note = f"± {found.std() / np.sqrt(len(found)):.2f}, 8 dimensions, one clip left out at a time"
        figures.append(Figure("thresholds", f"false alarms of knn-1 fitted to {n} clips", found.mean(), "%", note=note))
    return figures


def rates(rule: str, n: int, conditions: int) -> np.ndarray:
    """False-alarm rate in percent of each draw of n normal clips, (draws,)."""
    rng, rules = np.random.default_rng(n), EvaluationConfig(threshold=rule, false_alarm_rate=WANTED)
    groups, share = np.arange(n).astype(object), SHARE if conditions == 2 else 0.0
    found = []
    for _ in range(DRAWS[rule]):
        second = rng.random(n) < share
        scores = np.where(second, APART + WIDTH * rng.standard_normal(n), rng.standard_normal(n))
        limit = Decision.of({"00": Calibration(scores, groups, "held-out")}, "00", rules).threshold
        found.append(100 * ((1 - share) * norm.sf(limit) + share * norm.sf((limit - APART) / WIDTH)))
    return np.array(found)


def fitted_rates(n: int) -> np.ndarray:
    """False-alarm rate in percent of knn-1 in each draw of n normal clips, (draws,), on 1000 new normal clips."""
    rng, rules = np.random.default_rng(n), EvaluationConfig(threshold="conformal", false_alarm_rate=WANTED)
    groups, found = np.arange(n).astype(object), []
    for _ in range(1000):
        clips, new = rng.standard_normal((n, 8)), rng.standard_normal((1000, 8))
        among = cdist(clips, clips)
        np.fill_diagonal(among, np.inf)
        limit = Decision.of({"00": Calibration(among.min(axis=1), groups, "leave-one-out")}, "00", rules).threshold
        found.append(100 * (cdist(new, clips).min(axis=1) > limit).mean())
    return np.array(found)
