"""Window scores to a clip's score. They are anomaly scores: the upper half of normality is the lower half here."""

import re
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from rayasd.arrays import Scores
from rayasd.errors import UserError
from rayasd.inlier.clip_pooling import find_clip_pooling, is_clip_level
from rayasd.registry import find

Pooling = Callable[[Scores], Scores]  # maps scores (clips, windows) to (clips,)


def _lower_half_mean(windows: Scores) -> Scores:
    half = (windows.shape[1] + 1) // 2
    return np.sort(windows, axis=1)[:, :half].mean(axis=1)


def _weighted_rank(windows: Scores, decay: float) -> Scores:
    weights = decay ** np.arange(windows.shape[1])
    return np.sort(windows, axis=1)[:, ::-1] @ (weights / weights.sum())


POOLINGS: dict[str, Pooling] = {
    "mean": lambda windows: windows.mean(axis=1),
    "median": lambda windows: np.median(windows, axis=1),
    "max": lambda windows: windows.max(axis=1),
    "min": lambda windows: windows.min(axis=1),
    "upper-half-mean": lambda windows: -_lower_half_mean(-windows),
    "lower-half-mean": _lower_half_mean,
}


def find_pooling(name: str) -> Pooling:
    """Look a pooling up by its name.

    ``gwrp-0.5`` is generalised weighted rank pooling: the windows' scores in falling order, weighted by powers of 0.5;
    gwrp-0 is the maximum and gwrp-1 the mean. ``package.function(parameter=3)`` is one of a user's own.

    Raises UserError: there is none of this name.
    """
    if match := re.fullmatch(r"gwrp-(0(?:\.\d+)?|1(?:\.0)?)", name):
        return partial(_weighted_rank, decay=float(match[1]))
    pooling: Pooling = find("pooling", name, POOLINGS)
    return pooling


def pool(name: str, windows: Scores) -> Scores:
    """Pool window scores (clips, windows) to (clips,).

    Raises ValueError: the pooling gave something other than one finite number a clip.
    """
    pooled = np.asarray(find_pooling(name)(windows), dtype=np.float64)
    if pooled.shape != (len(windows),) or not np.isfinite(pooled).all():
        raise ValueError(f"pooling {name} gave no finite number for each of {len(windows)} clips")
    return pooled


def check_poolings(names: Sequence[str]) -> None:
    """Make sure that every pooling is known, of window scores or of clips' features.

    Raises UserError: one is not, or is named twice, or there is none.
    """
    if not names or len(set(names)) < len(names):
        raise UserError(f"inlier.poolings = {', '.join(names) or 'none'}: name at least one, each once")
    for name in names:
        find_clip_pooling(name) if is_clip_level(name) else find_pooling(name)
