"""Poolings: one value of a clip from its windows, of their anomaly scores or, before the detector, of their features.

Anomaly scores: the upper half of normality is the lower half here. Poolings of features are ``clip-mean``,
``clip-mean-std``, ``clip-gem-3`` and ``clip-rdp-4``: they take (clips, windows, D), compute in float64 and return
(clips, D), ``clip-mean-std`` (clips, 2 D).
"""

import re
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from rayasd.arrays import Scores
from rayasd.errors import UserError, unknown
from rayasd.registry import find

WINDOWS = "windows"  # the level of detectors that see windows; any other level is the name of a clip pooling

_Windows = NDArray[np.float64]
_NUMBER = r"(\d+(?:\.\d+)?)"


def is_clip_level(pooling: str) -> bool:
    """Whether a pooling is of features, before the detector, and not of window scores."""
    return pooling.startswith("clip-")


def level_of(pooling: str) -> str:
    """Return what detectors see under a pooling: ``WINDOWS``, or clips by the pooling of this name."""
    return pooling if is_clip_level(pooling) else WINDOWS


def find_clip_pooling(name: str) -> Callable[[_Windows], _Windows]:
    """Look a pooling of features up by its name. Raises UserError: there is none of this name."""
    if name == "clip-mean":
        return lambda windows: windows.mean(axis=1)
    if name == "clip-mean-std":
        return lambda windows: np.concatenate([windows.mean(axis=1), windows.std(axis=1)], axis=1)
    if (match := re.fullmatch(f"clip-gem-{_NUMBER}", name)) and float(match[1]) > 0:
        return partial(gem, p=float(match[1]))
    if match := re.fullmatch(f"clip-rdp-{_NUMBER}", name):
        return partial(rdp, gamma=float(match[1]))
    raise unknown("pooling", name, ("clip-mean", "clip-mean-std", "clip-gem-3", "clip-rdp-4"))


def gem(windows: _Windows, p: float) -> _Windows:
    """Generalised mean, (mean max(x, 0)^p)^(1/p) in each dimension (Radenović et al. 2019)."""
    return (np.maximum(windows, 0) ** p).mean(axis=1) ** (1 / p)


def rdp(windows: _Windows, gamma: float) -> _Windows:
    """Relative deviation pooling: windows far from the clip's mean have more weight (arXiv 2603.04605).

    With d_t the distance of window t to the mean, divided by the largest of the clip, weights are proportional to
    (1 + d_t)^gamma.
    """
    distance = np.linalg.norm(windows - windows.mean(axis=1, keepdims=True), axis=2)
    farthest = distance.max(axis=1, keepdims=True)
    base = 1 + np.divide(distance, farthest, out=np.zeros_like(distance), where=farthest > 0)
    weights = (base / base.max(axis=1, keepdims=True)) ** gamma  # at most 1: a large gamma does not overflow
    weights /= weights.sum(axis=1, keepdims=True)
    return (weights[:, :, None] * windows).sum(axis=1)


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
