"""Detectors: scikit-learn estimators whose ``score_samples`` is higher for normal windows.

A detector is written as a family (``knn``: every h of the grid), a grid point (``knn-4``), or a call
(``knn(n_neighbors=3)``, ``sklearn.ensemble.IsolationForest(n_estimators=50)``). Any class with ``fit`` and
``score_samples`` or ``decision_function`` plugs in by its import path.
"""

import ast
import importlib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayasd.config import InlierConfig
from rayasd.errors import UserError, unknown

Features = NDArray[np.float32]

FAMILIES = {
    "knn": "rayasd.inlier.estimators.MeanNeighbourDistance",
    "lof": "rayasd.inlier.estimators.CheckedLocalOutlierFactor",
    "gmm": "sklearn.mixture.GaussianMixture",
    "ocsvm": "sklearn.svm.OneClassSVM",
    "kde": "sklearn.neighbors.KernelDensity",
    "banks": "rayasd.inlier.estimators.DomainBanks",
    "ldn": "rayasd.inlier.estimators.LocalDensityDistance",
    "kmeans": "rayasd.inlier.estimators.CentroidDistance",
    "pca": "rayasd.inlier.estimators.PrincipalResidual",
    "mahalanobis": "rayasd.inlier.estimators.Mahalanobis",
}
"""Names for import paths; scikit-learn is imported only when a detector is built."""

_GRID: dict[str, Callable[[int, InlierConfig], dict[str, Any]]] = {
    "knn": lambda h, config: {"n_neighbors": h},
    "lof": lambda h, config: {"n_neighbors": h},
    "gmm": lambda h, config: {"n_components": h, "covariance_type": config.gmm_covariance},
    "ocsvm": lambda h, config: {"nu": 1 / (2 * h)},
    "kde": lambda h, config: {"bandwidth": float(h)},
    "banks": lambda h, config: {"n_neighbors": h},
    "ldn": lambda h, config: {"n_neighbors": h},
    "kmeans": lambda h, config: {"n_clusters": h},
    "pca": lambda h, config: {"n_components": h},
}
"""What the grid value h means; in the reference's families, what it means there. Others have no grid."""


@dataclass(frozen=True)
class DetectorSpec:
    """A named detector, ready to build."""

    name: str
    path: str
    """Import path of the class."""
    parameters: Mapping[str, Any]

    def build(self) -> Any:
        """Make the estimator, not fitted yet; seeded with 0 unless a ``random_state`` is given.

        Raises:
            UserError: there is no such class, it is no detector, or it does not take these parameters.

        """
        module, _, name = self.path.rpartition(".")
        if not module:
            raise unknown("detector", self.path, FAMILIES)
        try:
            factory = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise UserError(f"detector {self.name}: {error}") from None
        if not hasattr(factory, "fit") or not (
            hasattr(factory, "score_samples") or hasattr(factory, "decision_function")
        ):
            raise UserError(f"detector {self.name}: needs fit, and score_samples or decision_function")
        seeded = {"random_state": 0} if "random_state" in inspect.signature(factory).parameters else {}
        try:
            return factory(**{**seeded, **self.parameters})
        except TypeError as error:
            raise UserError(f"detector {self.name}: {error}") from None


def parse_detectors(texts: Sequence[str], config: InlierConfig) -> list[DetectorSpec]:
    """Resolve the configuration's detector texts; families without a grid value spread over the grid.

    Raises:
        UserError: an unknown family, import path or parameter; two detectors of one name; none at all.

    """
    specs = [spec for text in texts for spec in _parse(text.strip(), config)]
    names = [spec.name for spec in specs]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise UserError(f"detector {doubled[0]} is named twice")
    if not specs:
        raise UserError("inlier.detectors is empty: name at least one, for example knn")
    return specs


def fit_detector(detector: Any, X: Features, domains: NDArray[np.object_]) -> None:
    """Fit to normal windows (n, D); detectors that declare ``uses_domains`` also get the windows' domains (n,)."""
    if getattr(detector, "uses_domains", False):
        detector.fit(X, domains)
    else:
        detector.fit(X)


def anomaly_scores(detector: Any, X: Features) -> NDArray[np.float64]:
    """Score windows (m, D); higher is more anomalous.

    Raises:
        ValueError: the detector gave something other than m finite numbers.

    """
    method = detector.score_samples if hasattr(detector, "score_samples") else detector.decision_function
    scores = -np.asarray(method(X), dtype=np.float64)
    if scores.shape != (len(X),):
        raise ValueError(f"gave scores of shape {scores.shape} for {len(X)} windows")
    if not np.isfinite(scores).all():
        raise ValueError("gave scores that are not finite")
    return scores


def _parse(text: str, config: InlierConfig) -> list[DetectorSpec]:
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
    path, parameters = _call(text)
    spec = DetectorSpec(text, FAMILIES.get(path, path), parameters)
    spec.build()  # refuse what cannot be built before anything runs
    return [spec]


def _call(text: str) -> tuple[str, dict[str, Any]]:
    try:
        node = ast.parse(text, mode="eval").body
        if not isinstance(node, ast.Call):
            return text, {}
        if node.args or any(keyword.arg is None for keyword in node.keywords):
            raise ValueError
        return ast.unparse(node.func), {str(k.arg): ast.literal_eval(k.value) for k in node.keywords}
    except (SyntaxError, ValueError):
        raise UserError(
            f"detector {text!r}: write a family ({', '.join(FAMILIES)}), a grid point such as knn-4, or "
            "package.Class(parameter=value)"
        ) from None
