"""AUC, partial AUC and the means that DCASE builds its scores from."""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

MAX_FPR = 0.1  # false-positive rate up to which DCASE integrates pAUC


def auc(labels: ArrayLike, scores: ArrayLike) -> NDArray[np.float64]:
    """Area under the ROC curve of many score vectors at once.

    Args:
        labels: (clips,), true for anomalous.
        scores: (systems, clips), higher is more anomalous, finite; ties count half.

    Returns (systems,); NaN where one class is absent.
    """
    return partial_auc(labels, scores, max_fpr=1.0)


def partial_auc(labels: ArrayLike, scores: ArrayLike, max_fpr: float = MAX_FPR) -> NDArray[np.float64]:
    """Standardised partial AUC (McClish 1989): 0.5 is chance, 1 is perfect; ``max_fpr=1`` is the plain AUC.

    Equal to scikit-learn's ``roc_auc_score(labels, scores, max_fpr=max_fpr)`` for every row of ``scores``.
    """
    anomalous = np.asarray(labels, dtype=bool)
    values = np.atleast_2d(np.asarray(scores, dtype=np.float64))
    num_anomalous, num_normal = int(anomalous.sum()), int((~anomalous).sum())
    if num_anomalous == 0 or num_normal == 0:
        return np.full(len(values), np.nan)
    order = np.argsort(-values, axis=1, kind="stable")
    ranked = np.take_along_axis(values, order, axis=1)
    hits = anomalous[order]
    # The ROC curve has a corner only where a run of equal scores ends; elsewhere the last corner counts.
    corner = np.ones_like(hits)
    corner[:, :-1] = ranked[:, 1:] != ranked[:, :-1]
    position = np.maximum.accumulate(np.where(corner, np.arange(1, hits.shape[1] + 1), 0), axis=1)
    start = np.zeros((len(values), 1))
    tpr = np.take_along_axis(np.hstack([start, np.cumsum(hits, axis=1)]), position, axis=1) / num_anomalous
    fpr = np.take_along_axis(np.hstack([start, np.cumsum(~hits, axis=1)]), position, axis=1) / num_normal
    left, right = np.hstack([start, fpr[:, :-1]]), fpr
    low, high = np.hstack([start, tpr[:, :-1]]), tpr
    cut = np.minimum(right, max_fpr)
    width = np.maximum(cut - left, 0.0)
    slope = np.divide(high - low, right - left, out=np.zeros_like(width), where=right > left)
    area = (width * (low + slope * width / 2)).sum(axis=1)
    if max_fpr == 1.0:
        return area
    smallest, largest = max_fpr**2 / 2, max_fpr
    return 0.5 * (1 + (area - smallest) / (largest - smallest))


def harmonic_mean(values: ArrayLike) -> NDArray[np.float64]:
    """Harmonic means over the first axis, every value floored at the float epsilon, as in the official score.

    Returns NaN where there is no value.
    """
    array = np.asarray(values, dtype=np.float64)
    if len(array) == 0:
        return np.full(array.shape[1:], np.nan)
    return np.asarray(len(array) / np.sum(1.0 / np.maximum(array, np.finfo(np.float64).eps), axis=0))


METRICS: dict[str, Callable[[ArrayLike, ArrayLike], NDArray[np.float64]]] = {"auc": auc, "pauc": partial_auc}
"""Metrics of a cell, by their column's name: labels (clips,), scores (systems, clips) to (systems,)."""
