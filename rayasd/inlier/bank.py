"""Normal clips of a section or of a machine, the detectors that are fitted to them, and their own honest scores."""

import inspect
import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from rayasd.arrays import Features, Indices, Scores
from rayasd.config import InlierConfig
from rayasd.errors import one_line
from rayasd.inlier.clip_pooling import WINDOWS
from rayasd.inlier.detectors import DetectorSpec, anomaly_scores, fit_detector
from rayasd.inlier.features import Samples, features_of, samples, windows_per_clip
from rayasd.inlier.neighbours import NeighbourSearch


@dataclass(frozen=True)
class Fold:
    """Samples to fit to, and others to score."""

    fit: Samples
    neighbours: NeighbourSearch
    clips: Indices
    """Clips that are scored."""
    X: Features
    """Their windows, clip by clip, or one row for each."""


class Bank:
    """Normal windows that detectors are fitted to, of one checkpoint.

    Windows of a clip lie together, and every clip has equally many.
    """

    def __init__(self, table: pa.Table, inlier: InlierConfig, most: int) -> None:
        self.table = table
        self.num_windows = windows_per_clip(table)
        self._inlier = inlier
        self._most = most
        self._folds: dict[tuple[str, str], list[Fold]] = {}
        self._fitted: dict[tuple[str, str, tuple[int, ...]], tuple[Any, Scores | str]] = {}

    @cached_property
    def num_folds(self) -> int:
        """Parts in which the normal clips are scored; 0 without training scores."""
        folds = min(self._inlier.calibration_folds, self.table.num_rows // self.num_windows)
        return folds if folds >= 2 else 0

    def fitted(self, spec: DetectorSpec, level: str, product: Indices) -> tuple[Any, Scores | str]:
        """Fit a detector to all clips, and to all but a fold of them, fold by fold.

        Args:
            spec: the detector.
            level: ``WINDOWS``, or a clip pooling.
            product: positions of the section's own product logits, for detectors that ask for them.

        Returns:
            The detector that is fitted to all, or the reason why there is none (a text); scores of the normal clips'
            windows (or of the clips) by the detectors that have not seen them, or the reason why there are none.

        """
        if self.table.num_rows == 0:
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
        try:
            whole, *folds = self._folds_of(features_of(spec, self._inlier.features), level)
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

    def _folds_of(self, which: str, level: str) -> list[Fold]:
        """All normal clips with none to score, then each part of them against the others."""
        if (which, level) not in self._folds:
            every = samples(self.table, which, self._inlier.metric, level)
            clips = np.arange(self.table.num_rows // self.num_windows)
            folds = [self._fold(every, np.empty(0, np.int64))]
            for k in range(self.num_folds):  # a domain's clips lie together: every part has some of each
                folds.append(self._fold(every, clips[clips % self.num_folds == k]))
            self._folds[which, level] = folds
        return self._folds[which, level]

    def _fold(self, every: Samples, scored: Indices) -> Fold:
        out = np.isin(every.groups, scored)
        fit = every.part(~out) if len(scored) else every
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
