"""Detectors: scikit-learn estimators whose ``score_samples`` is higher for normal windows.

A detector is written as a family (``knn``: every h of the grid), a grid point (``knn-4``), or a call
(``knn(n_neighbors=3)``, ``sklearn.ensemble.IsolationForest(n_estimators=50)``). Any class with ``fit`` and
``score_samples`` or ``decision_function`` plugs in by its import path.
"""

import ast
import importlib
import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from rayasd.config import InlierConfig
from rayasd.errors import UserError, unknown

Features = NDArray[np.float32]


class Detector(Protocol):
    """What rayasd needs of a detector."""

    def fit(self, X: Features) -> Any:
        """Learn from normal windows (n, D)."""


@dataclass(frozen=True)
class DetectorSpec:
    """A named detector, ready to build."""

    name: str
    build: Callable[[], Detector]


class NearestNeighbours:
    """Mean Euclidean distance to the ``n_neighbors`` nearest normal windows (a negative one, so higher is normal)."""

    def __init__(self, n_neighbors: int = 1) -> None:
        self.n_neighbors = n_neighbors

    def fit(self, X: Features) -> Self:
        """Keep the normal windows (n, D)."""
        from sklearn.neighbors import NearestNeighbors

        _need_samples(X, self.n_neighbors, "neighbours")
        self.index_ = NearestNeighbors(n_neighbors=self.n_neighbors, algorithm="brute").fit(X)
        return self

    def score_samples(self, X: Features) -> NDArray[np.float64]:
        """Score windows (m, D) as (m,)."""
        distances, _ = self.index_.kneighbors(X)
        return -distances.mean(axis=1)


class Mahalanobis:
    """Negative squared Mahalanobis distance under a Ledoit–Wolf shrunk covariance."""

    def fit(self, X: Features) -> Self:
        """Estimate mean and covariance of normal windows (n, D)."""
        from sklearn.covariance import LedoitWolf

        _need_samples(X, 2, "windows")
        self.covariance_ = LedoitWolf().fit(X.astype(np.float64))
        return self

    def score_samples(self, X: Features) -> NDArray[np.float64]:
        """Score windows (m, D) as (m,)."""
        return -self.covariance_.mahalanobis(X)


def _lof(n_neighbors: int = 20, **parameters: Any) -> Detector:
    from sklearn.neighbors import LocalOutlierFactor

    class CheckedLocalOutlierFactor(LocalOutlierFactor):  # type: ignore[misc]
        def fit(self, X: Features) -> Self:
            _need_samples(X, n_neighbors + 1, "windows")  # scikit-learn would silently take fewer neighbours
            return super().fit(X)

    return CheckedLocalOutlierFactor(n_neighbors=n_neighbors, novelty=True, **parameters)


def _gmm(n_components: int = 1, covariance_type: str = "full", **parameters: Any) -> Detector:
    from sklearn.mixture import GaussianMixture

    return GaussianMixture(n_components, covariance_type=covariance_type, **{"random_state": 0, **parameters})


def _ocsvm(nu: float = 0.5, **parameters: Any) -> Detector:
    from sklearn.svm import OneClassSVM

    return OneClassSVM(nu=nu, **{"kernel": "rbf", "gamma": "scale", **parameters})


def _kde(bandwidth: float = 1.0, **parameters: Any) -> Detector:
    from sklearn.neighbors import KernelDensity

    return KernelDensity(bandwidth=bandwidth, **{"kernel": "gaussian", **parameters})


def _at_grid_point(family: str, h: int, config: InlierConfig) -> dict[str, Any]:
    """Parameters that the grid value h sets, as in the reference."""
    parameters: dict[str, dict[str, Any]] = {
        "knn": {"n_neighbors": h},
        "lof": {"n_neighbors": h},
        "gmm": {"n_components": h, "covariance_type": config.gmm_covariance},
        "ocsvm": {"nu": 1 / (2 * h)},
        "kde": {"bandwidth": float(h)},
    }
    return parameters[family]


FAMILIES: dict[str, Callable[..., Detector]] = {
    "knn": NearestNeighbours,
    "lof": _lof,
    "gmm": _gmm,
    "ocsvm": _ocsvm,
    "kde": _kde,
    "mahalanobis": Mahalanobis,
}
WITHOUT_GRID = frozenset({"mahalanobis"})


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
    if text in FAMILIES:
        if text in WITHOUT_GRID:
            return [DetectorSpec(text, FAMILIES[text])]
        return [spec for h in config.grid for spec in _parse(f"{text}-{h}", config)]
    if match := re.fullmatch(r"([a-z]+)-(\d+)", text):
        family, h = match[1], int(match[2])
        if family not in FAMILIES or family in WITHOUT_GRID:
            raise unknown("detector", family, set(FAMILIES) - WITHOUT_GRID)
        if h < 1:
            raise UserError(f"detector {text}: the grid value must be at least 1")
        parameters = _at_grid_point(family, h, config)
        return [DetectorSpec(text, lambda: FAMILIES[family](**parameters))]
    path, parameters = _call(text)
    factory = FAMILIES.get(path) or _imported(path)
    try:
        signature = inspect.signature(factory)
        if path not in FAMILIES and "random_state" in signature.parameters:
            parameters = {"random_state": 0, **parameters}
        signature.bind(**parameters)
    except (TypeError, ValueError) as error:
        raise UserError(f"detector {text}: {error}") from None
    return [DetectorSpec(text, lambda: factory(**parameters))]


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


def _imported(path: str) -> Callable[..., Detector]:
    module, _, name = path.rpartition(".")
    if not module:
        raise unknown("detector", path, FAMILIES)
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"detector {path}: {error}") from None
    if not hasattr(found, "fit") or not (hasattr(found, "score_samples") or hasattr(found, "decision_function")):
        raise UserError(f"detector {path}: needs fit, and score_samples or decision_function")
    return found


def _need_samples(X: Features, wanted: int, what: str) -> None:
    if len(X) < wanted:
        raise ValueError(f"needs {wanted} {what}, the section has {len(X)}")
