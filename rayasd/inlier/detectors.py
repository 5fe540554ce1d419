"""Detectors: scikit-learn estimators whose ``score_samples`` is higher for normal windows.

A detector is written as a family (``knn``: every h of the grid), a grid point (``knn-4``), a call
(``knn(n_neighbors=3)``, ``sklearn.ensemble.IsolationForest(n_estimators=50)``), or a fusion of others
(``z-mean(knn-4, mahalanobis)``). Any class with ``fit`` and ``score_samples`` or ``decision_function`` plugs in by its
import path.
"""

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayasd.arrays import Features
from rayasd.config import InlierConfig
from rayasd.errors import UserError, unknown
from rayasd.inlier.fusion import FUSIONS
from rayasd.nested import split_list
from rayasd.registry import error_line, find, parse_call

FAMILIES = {
    "knn": "rayasd.inlier.nearest.MeanNeighbourDistance",
    "lof": "rayasd.inlier.nearest.OutlierFactor",
    "gmm": "rayasd.inlier.mixtures.Mixture",
    "ocsvm": "rayasd.inlier.support_vectors.SupportVectors",
    "kde": "rayasd.inlier.nearest.KernelDensity",
    "ldn": "rayasd.inlier.nearest.LocalDensityDistance",
    "varmin": "rayasd.inlier.nearest.VarianceMinimised",
    "domain-nn": "rayasd.inlier.nearest.DomainDistance",
    "kmeans": "rayasd.inlier.nearest.CentroidDistance",
    "median": "rayasd.inlier.estimators.MedianDistance",
    "pca": "rayasd.inlier.estimators.PrincipalResidual",
    "mahalanobis": "rayasd.inlier.estimators.Mahalanobis",
    "product-logit": "rayasd.inlier.estimators.OwnProductLogit",
    "machine-logit": "rayasd.inlier.estimators.MachineLogit",
}
"""Names for import paths; scikit-learn is imported only when a detector is built."""

_GRID: dict[str, Callable[[int, InlierConfig], dict[str, Any]]] = {
    "knn": lambda h, config: {"n_neighbors": h},
    "lof": lambda h, config: {"n_neighbors": h},
    "gmm": lambda h, config: {"n_components": h, "covariance_type": config.gmm_covariance},
    "ocsvm": lambda h, config: {"nu": 1 / (2 * h)},
    "kde": lambda h, config: {"bandwidth": float(h)},
    "ldn": lambda h, config: {"n_neighbors": h},
    "varmin": lambda h, config: {"n_neighbors": h},
    "kmeans": lambda h, config: {"n_clusters": h},
    "pca": lambda h, config: {"n_components": h},
}
"""What the grid value h means; in the reference's families, what it means there. Others have no grid."""


@dataclass(frozen=True)
class DetectorSpec:
    """A named detector, ready to build."""

    name: str
    path: str  # import path of the class
    parameters: Mapping[str, Any]

    def build(self) -> Any:
        """Make the estimator, not fitted yet; seeded with 0 unless a ``random_state`` is given.

        Raises UserError: there is no such class, it is no detector, or it does not take these parameters.
        """
        factory = find("detector", self.path, FAMILIES)
        if not hasattr(factory, "fit") or not (
            hasattr(factory, "score_samples") or hasattr(factory, "decision_function")
        ):
            raise UserError(f"detector {self.name}: needs fit, and score_samples or decision_function")
        seeded = {"random_state": 0} if "random_state" in inspect.signature(factory).parameters else {}
        try:
            return factory(**{**seeded, **self.parameters})
        except Exception as error:  # whatever a constructor raises
            raise UserError(f"detector {self.name}: {error_line(error)}") from None


@dataclass(frozen=True)
class FusionSpec:
    """A named fusion of detectors' clip scores."""

    name: str
    method: str  # one of ``FUSIONS``
    members: tuple[DetectorSpec, ...]


def parse_detectors(texts: Sequence[str], config: InlierConfig) -> list[DetectorSpec | FusionSpec]:
    """Resolve the configuration's detector texts; families without a grid value spread over the grid.

    Raises UserError: an unknown family, import path or parameter; two detectors of one name; none at all.
    """
    specs = [spec for text in texts for spec in _parse(text.strip(), config)]
    names = [spec.name for spec in specs]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise UserError(f"detector {doubled[0]} is named twice")
    if not specs:
        raise UserError("inlier.detectors is empty: name at least one, for example knn")
    return specs


def single_detector(text: str, config: InlierConfig) -> DetectorSpec:
    """Resolve one detector that needs no others. Raises UserError: it is unknown, several, or a fusion."""
    first, *others = parse_detectors([text], config)
    if others or isinstance(first, FusionSpec):
        raise UserError(f"{text} needs the scores of others: name a single detector to score with")
    return first


def most_neighbours(specs: Iterable[DetectorSpec | FusionSpec]) -> int:
    """Largest number of neighbours that any of these asks for."""
    single = [member for spec in specs for member in (spec.members if isinstance(spec, FusionSpec) else [spec])]
    wanted = [spec.parameters.get("n_neighbors") for spec in single]
    return max((number for number in wanted if isinstance(number, int)), default=1)


def fit_detector(detector: Any, X: Features, **more: Any) -> None:
    """Fit to normal windows (n, D), and give ``fit`` what else it has parameters for: domains (n,), neighbours."""
    taken = inspect.signature(detector.fit).parameters
    detector.fit(X, **{name: value for name, value in more.items() if name in taken})


def anomaly_scores(detector: Any, X: Features) -> NDArray[np.float64]:
    """Score windows (m, D); higher is more anomalous.

    Raises ValueError: the detector gave something other than m finite numbers.
    """
    method = detector.score_samples if hasattr(detector, "score_samples") else detector.decision_function
    scores = -np.asarray(method(X), dtype=np.float64)
    if scores.shape != (len(X),):
        raise ValueError(f"gave scores of shape {scores.shape} for {len(X)} windows")
    if not np.isfinite(scores).all():
        raise ValueError("gave scores that are not finite")
    return scores


def _parse(text: str, config: InlierConfig) -> list[DetectorSpec | FusionSpec]:
    if match := re.fullmatch(rf"({'|'.join(FUSIONS)})\((.*)\)", text):
        if config.calibration_folds < 2:
            raise UserError(f"detector {text} needs training scores: inlier.calibration_folds of at least 2")
        members = parse_detectors(split_list(match[2]), config)
        if len(members) < 2 or any(isinstance(member, FusionSpec) for member in members):
            raise UserError(f"detector {text}: a fusion is of two or more single detectors")
        return [FusionSpec(text, match[1], tuple(members))]  # type: ignore[arg-type]
    if text in _GRID:
        return [spec for h in config.grid for spec in _parse(f"{text}-{h}", config)]
    if match := re.fullmatch(r"([a-z]+)-(\d+)", text):
        family, h = match[1], int(match[2])
        if family not in _GRID:
            raise unknown("detector", family, _GRID)
        if h < 1:
            raise UserError(f"detector {text}: the grid value must be at least 1")
        return [DetectorSpec(text, FAMILIES[family], _GRID[family](h, config))]
    if text in FAMILIES:
        return [DetectorSpec(text, FAMILIES[text], {})]
    path, parameters = parse_call("detector", text)
    spec = DetectorSpec(text, path, parameters)
    spec.build()  # refuse what cannot be built before anything runs
    return [spec]
