"""Several anomaly scores made one: each is first brought to a common scale by the section's normal training clips.

The scale comes from training scores alone, so that a test clip's score does not depend on other test clips.
"""

from collections.abc import Callable

import numpy as np

from rayasd.arrays import Scores


def z_normalised(scores: Scores, training: Scores) -> Scores:
    """Score minus the training scores' mean, by their standard deviation.

    Raises ValueError: fewer than two training scores, or all of them alike.
    """
    if len(training) < 2 or np.ptp(training) == 0:
        raise ValueError(f"z-normalisation needs training scores that differ, there are {len(training)}")
    return (scores - training.mean()) / training.std()


def rank_normalised(scores: Scores, training: Scores) -> Scores:
    """Rank a score among the training scores: (number below + half the ties + 1/2) / (n + 1).

    So a score above all training scores ranks above the highest of these.

    Raises ValueError: there are no training scores.
    """
    if len(training) == 0:
        raise ValueError("rank normalisation needs training scores, there are none")
    ordered = np.sort(training)
    below = np.searchsorted(ordered, scores, "left") + np.searchsorted(ordered, scores, "right")
    return (below + 1) / (2 * len(ordered) + 2)


def z_by_others(training: Scores) -> Scores:
    """Normalise each training score by all others, as a test clip's is, which gives no part of the scale.

    By a scale that it is part of, a high score among few would come out lower than a test clip's: z-scores of n are at
    most sqrt(n - 1). Where the others are alike, by all.

    Raises ValueError: as ``z_normalised``.
    """
    by_all, rest = z_normalised(training, training), len(training) - 1
    centred = training - training.mean()
    means = -centred / rest
    variances = ((centred**2).sum() - centred**2) / rest - means**2
    alike = variances <= 1e-12 * training.var()
    return np.where(alike, by_all, (centred - means) / np.sqrt(np.where(alike, 1.0, variances)))


FUSIONS: dict[
    str, tuple[Callable[[Scores, Scores], Scores], Callable[[Scores], Scores], Callable[[Scores], Scores]]
] = {
    "z-mean": (z_normalised, z_by_others, lambda members: members.mean(axis=0)),
    "z-min": (z_normalised, z_by_others, lambda members: members.min(axis=0)),
    "z-max": (z_normalised, z_by_others, lambda members: members.max(axis=0)),
    "rank-mean": (
        rank_normalised,
        lambda training: rank_normalised(training, training),
        lambda members: members.mean(axis=0),
    ),
}
"""For each method, what normalises test scores, what normalises training scores, and what combines members."""


def fuse(method: str, members: list[tuple[Scores, Scores]]) -> tuple[Scores, Scores]:
    """Fuse members' scores by one of ``FUSIONS``.

    ``members``: for each, scores of the same test clips (m,) and of the same training clips (n,).

    Returns fused scores of test clips (m,) and of training clips (n,). Raises ValueError: a member's training scores
    give no scale.
    """
    normalise, by_others, combine = FUSIONS[method]
    test = np.stack([normalise(of_test, training) for of_test, training in members])
    return combine(test), combine(np.stack([by_others(training) for _, training in members]))
