"""Normal clips of a section or of a machine, the detectors that are fitted to them, and their own honest scores."""

import inspect
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayasd.arrays import Features, Indices, Scores
from rayasd.config import InlierConfig
from rayasd.errors import one_line
from rayasd.inlier.detectors import DetectorSpec, anomaly_scores, fit_detector
from rayasd.inlier.features import Samples, features_of, group_numbers, samples, windows_per_clip
from rayasd.inlier.neighbours import NeighbourSearch
from rayasd.inlier.pooling import WINDOWS

FEW = 60  # groups of normal clips up to which cheap detectors leave out one at a time


@dataclass(frozen=True)
class Fold:
    """Samples to fit to, and others to score."""

    fit: Samples
    neighbours: NeighbourSearch
    clips: Indices  # clips that are scored
    X: Features  # their windows, clip by clip, or one row for each


class Bank:
    """Normal windows of one checkpoint: detectors are fitted to them, and each is scored by one that has not seen it.

    Windows of a clip lie together, and every clip has equally many. With ``inlier.fit_on = "source"``, those of target
    clips are scored alone. Clips of a group (``data.groups``) are left out together.
    """

    def __init__(self, table: pa.Table, inlier: InlierConfig, most: int) -> None:
        self.table = table
        self.num_windows = windows_per_clip(table)
        self._inlier = inlier
        self._most = most
        of_clips = table.filter(pc.field("window") == 0)
        self._groups = group_numbers(of_clips)
        self._num_groups = len(set(self._groups))
        self._fitted_to = np.ones(of_clips.num_rows, bool)
        if inlier.fit_on == "source":
            self._fitted_to = pc.equal(of_clips["domain"], "source").to_numpy(zero_copy_only=False)
        self._folds: dict[tuple[str, str, int], list[Fold]] = {}
        self._fitted: dict[tuple[str, str, tuple[int, ...]], tuple[Any, Scores | str]] = {}

    @property
    def num_folds(self) -> int:
        """Parts in which the normal clips are scored; 0 without training scores."""
        folds = min(self._inlier.calibration_folds, self._num_groups)
        return folds if folds >= 2 else 0

    def fitted(self, spec: DetectorSpec, level: str, product: Indices) -> tuple[Any, Scores | str]:
        """Fit a detector to all clips, and to all but a fold of them, fold by fold.

        ``level``: ``WINDOWS``, or a clip pooling; ``product``: positions of the section's own product logits.

        Returns the detector that is fitted to all, or the reason why there is none (a text); scores of the normal
        clips' windows (or of the clips) by the detectors that have not seen them, or the reason why there are none.
        """
        if not self._fitted_to.any():
            return ("the section has no normal clips to fit to",) * 2
        asks = "product" in inspect.signature(spec.build().fit).parameters  # the one thing that differs by section
        key = (spec.name, level, tuple(map(int, product)) if asks else ())
        if key not in self._fitted:
            self._fitted[key] = self._fit(spec, level, product)
        return self._fitted[key]

    def forget(self) -> None:
        """Drop what was found for windows outside the bank, which may be many over time."""
        for folds in self._folds.values():
            for fold in folds:
                fold.neighbours.forget()

    def _fit(self, spec: DetectorSpec, level: str, product: Indices) -> tuple[Any, Scores | str]:
        num_folds = self.num_folds
        if num_folds and self._num_groups <= FEW and "neighbours" in inspect.signature(spec.build().fit).parameters:
            num_folds = self._num_groups  # where groups are few and the detector is cheap, leave out one at a time
        try:
            whole, *folds = self._folds_of(features_of(spec, self._inlier.features), level, num_folds)
        except ValueError as error:
            return (reason(error),) * 2
        detector = _fit_fold(spec, whole, product)
        if isinstance(detector, str):
            return detector, detector
        if not folds:
            return detector, "no training scores: fewer than two folds of normal clips"
        width = self.num_windows if level == WINDOWS else 1
        normal = np.empty((self.table.num_rows // self.num_windows, width))
        for fold in folds:
            of_others = _fit_fold(spec, fold, product)
            scores = of_others if isinstance(of_others, str) else scores_or_reason(of_others, fold.X)
            if isinstance(scores, str):
                return detector, scores
            normal[fold.clips] = scores.reshape(-1, width)
        return detector, normal.ravel()

    def _folds_of(self, which: str, level: str, num_folds: int) -> list[Fold]:
        """All normal clips with none to score, then each part of them against the others."""
        if (which, level, num_folds) not in self._folds:
            every = samples(self.table, which, self._inlier.metric, level)
            folds = [self._fold(every, np.empty(0, np.int64))]
            for k in range(num_folds):  # a domain's clips lie together: every part has some of each
                folds.append(self._fold(every, np.flatnonzero(self._groups % num_folds == k)))
            self._folds[which, level, num_folds] = folds
        return self._folds[which, level, num_folds]

    def _fold(self, every: Samples, scored: Indices) -> Fold:
        clips = len(self._groups)
        of_clip = np.arange(len(every.X)) // (len(every.X) // clips)
        out = np.isin(of_clip, scored)
        fit = every.part(~out & self._fitted_to[of_clip])
        return Fold(fit, NeighbourSearch(fit.X, self._most, fit.groups), scored, every.X[out])


def scores_or_reason(detector: Any, X: Features) -> Scores | str:
    """Score windows or clips (m, D) as (m,); or return the reason why there are no scores."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return anomaly_scores(detector, X)
    except Exception as error:  # any class may be plugged in: whatever it raises is its cells' reason
        return reason(error)


def reason(error: Exception) -> str:
    """Write an error as the reason of failed cells, in one line."""
    return one_line(f"{type(error).__name__}: {error}", 300)


def _fit_fold(spec: DetectorSpec, fold: Fold, product: Indices) -> Any:
    """Return the fitted detector, or the reason why there is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # convergence and duplicate warnings, once a grid point
            detector = spec.build()
            fit = fold.fit
            fit_detector(detector, fit.X, domains=fit.domains, neighbours=fold.neighbours, product=product)
            return detector
    except Exception as error:  # any class may be plugged in: whatever it raises is its cells' reason
        return reason(error)
