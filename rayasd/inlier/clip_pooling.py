"""Features of a clip's windows pooled to one vector of the clip, so that detectors see clips instead of windows.

Such a pooling is named in ``inlier.poolings``: ``clip-mean``, ``clip-mean-std``, ``clip-gem-3`` or ``clip-rdp-4``.
All poolings take (clips, windows, D), compute in float64 and return (clips, D), ``clip-mean-std`` (clips, 2 D).
"""

import re
from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from rayasd.errors import unknown

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
