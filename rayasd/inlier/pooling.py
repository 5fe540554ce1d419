"""Window scores to a clip's score. They are anomaly scores: the upper half of normality is the lower half here."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from rayasd.errors import UserError, unknown

Scores = NDArray[np.float64]


def _lower_half_mean(windows: Scores) -> Scores:
    half = (windows.shape[1] + 1) // 2
    return np.sort(windows, axis=1)[:, :half].mean(axis=1)


def _upper_half_mean(windows: Scores) -> Scores:
    return -_lower_half_mean(-windows)


POOLINGS: dict[str, Callable[[Scores], Scores]] = {
    "mean": lambda windows: windows.mean(axis=1),
    "median": lambda windows: np.median(windows, axis=1),
    "max": lambda windows: windows.max(axis=1),
    "min": lambda windows: windows.min(axis=1),
    "upper-half-mean": _upper_half_mean,
    "lower-half-mean": _lower_half_mean,
}
"""Each maps scores (clips, windows) to (clips,)."""


def check_poolings(names: Sequence[str]) -> None:
    """Make sure that every pooling is known.

    Raises:
        UserError: one is not, or is named twice, or there is none.

    """
    if not names or len(set(names)) < len(names):
        raise UserError(f"inlier.poolings = {', '.join(names) or 'none'}: name at least one, each once")
    for name in names:
        if name not in POOLINGS:
            raise unknown("pooling", name, POOLINGS)
