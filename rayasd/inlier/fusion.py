"""Several anomaly scores made one: each is first brought to a common scale by the section's normal training clips.

The scale comes from training scores alone, so that a test clip's score does not depend on other test clips.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from rayasd.arrays import Scores


def z_normalised(scores: Scores, training: Scores) -> Scores:
    """Score minus the training scores' mean, by their standard deviation.

    Raises:
        ValueError: fewer than two training scores, or all of them alike.

    """
    if len(training) < 2 or np.ptp(training) == 0:
        raise ValueError(f"z-normalisation needs training scores that differ, there are {len(training)}")
    return (scores - training.mean()) / training.std()


def rank_normalised(scores: Scores, training: Scores) -> Scores:
    """Share of the training scores that lie below; ties count half.

    Raises:
        ValueError: there are no training scores.

    """
    if len(training) == 0:
        raise ValueError("rank normalisation needs training scores, there are none")
    ordered = np.sort(training)
    return (np.searchsorted(ordered, scores, "left") + np.searchsorted(ordered, scores, "right")) / (2 * len(ordered))


_Normalise = Callable[[Scores, Scores], Scores]
_Combine = Callable[[NDArray[np.float64]], Scores]

FUSIONS: dict[str, tuple[_Normalise, _Combine]] = {
    "z-mean": (z_normalised, lambda members: members.mean(axis=0)),
    "z-min": (z_normalised, lambda members: members.min(axis=0)),
    "z-max": (z_normalised, lambda members: members.max(axis=0)),
    "rank-mean": (rank_normalised, lambda members: members.mean(axis=0)),
}


def fuse(method: str, members: list[tuple[Scores, Scores]]) -> tuple[Scores, Scores]:
    """Fuse members' scores by one of ``FUSIONS``.

    Args:
        method: name.
        members: for each, scores of the same test clips (m,) and of the same training clips (n,).

    Returns:
        Fused scores of test clips (m,) and of training clips (n,).

    Raises:
        ValueError: a member's training scores give no scale.

    """
    normalise, combine = FUSIONS[method]
    test, training = (np.stack([normalise(member[i], member[1]) for member in members]) for i in (0, 1))
    return combine(test), combine(training)
