"""rayasd's own detectors, as scikit-learn estimators: higher ``score_samples`` is more normal.

``fit(X)`` takes the normal windows of one section, (n, D). Further parameters of ``fit`` are given by their names:
``domains``, (n,) strings source, target or unknown; ``neighbours``, a search in X that other detectors share;
``product``, the positions of the section's own product logits.
"""

from collections.abc import Iterable, Iterator
from typing import Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.cluster import KMeans
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import LocalOutlierFactor, NearestNeighbors

from rayasd.arrays import Features, Scores
from rayasd.inlier.neighbours import NeighbourSearch

_CACHED = 100_000  # distances


class MeanNeighbourDistance(BaseEstimator):
    """Mean Euclidean distance to the ``n_neighbors`` nearest normal windows."""

    def __init__(self, n_neighbors: int = 1) -> None:
        self.n_neighbors = n_neighbors

    def fit(self, X: Features, neighbours: NeighbourSearch | None = None) -> Self:
        """Keep the normal windows (n, D)."""
        need_samples(X, self.n_neighbors)
        self.neighbours_ = neighbours or NeighbourSearch(X, self.n_neighbors)
        return self

    def score_samples(self, X: Features) -> Scores:
        """Score windows (m, D) as (m,)."""
        return -self.neighbours_.nearest(X, self.n_neighbors)[0].mean(axis=1)


class DomainBanks(BaseEstimator):
    """Mean distance to the nearest windows of a source bank and of a target bank, the smaller of the two.

    The few target-domain clips get a bank of their own, so that a target-domain sound is not judged by source ones.
    With ``smote`` > 0, the target bank grows to that share of the source bank by points on the lines between target
    windows and their neighbours (Chawla et al. 2002). Without target clips it is ``MeanNeighbourDistance``.
    """

    def __init__(self, n_neighbors: int = 1, smote: float = 0.0, random_state: int = 0) -> None:
        self.n_neighbors = n_neighbors
        self.smote = smote
        self.random_state = random_state

    def fit(self, X: Features, domains: ArrayLike, neighbours: NeighbourSearch | None = None) -> Self:
        """Keep normal windows (n, D) of both domains (n,) apart."""
        in_target = np.asarray(domains) == "target"
        search = neighbours or NeighbourSearch(X, self.n_neighbors)
        banks = [search.part(rows) for rows in (~in_target, in_target) if rows.any()]
        grown = _oversampled(X[in_target], int(self.smote * (~in_target).sum()), self.random_state)
        if len(grown) > in_target.sum():
            banks[-1] = NeighbourSearch(grown, self.n_neighbors)
        self.banks_ = [MeanNeighbourDistance(self.n_neighbors).fit(bank.bank, bank) for bank in banks]
        return self

    def score_samples(self, X: Features) -> Scores:
        """Score windows (m, D) as (m,)."""
        return np.max([bank.score_samples(X) for bank in self.banks_], axis=0)


class LocalDensityDistance(BaseEstimator):
    """Distance to the nearest normal window, relative to how close that one's own neighbours are.

    The distance is divided by the reference window's mean distance to its ``n_neighbors`` neighbours, so that windows
    in a sparse region of the normal sounds (a target domain, say) are not all anomalous.
    """

    def __init__(self, n_neighbors: int = 4) -> None:
        self.n_neighbors = n_neighbors

    def fit(self, X: Features, neighbours: NeighbourSearch | None = None) -> Self:
        """Keep the normal windows (n, D) and the spacing around each."""
        need_samples(X, self.n_neighbors + 1)
        self.neighbours_ = neighbours or NeighbourSearch(X, self.n_neighbors)
        spacing = self.neighbours_.within(self.n_neighbors)[0].mean(axis=1)
        self.spacing_ = np.maximum(spacing, np.finfo(np.float32).eps)
        return self

    def score_samples(self, X: Features) -> Scores:
        """Score windows (m, D) as (m,)."""
        distances, nearest = self.neighbours_.nearest(X, 1)
        return -distances[:, 0] / self.spacing_[nearest[:, 0]]


class CentroidDistance(BaseEstimator):
    """Distance to the nearest of ``n_clusters`` k-means centroids of the normal windows."""

    def __init__(self, n_clusters: int = 1, random_state: int = 0) -> None:
        self.n_clusters = n_clusters
        self.random_state = random_state

    def fit(self, X: Features) -> Self:
        """Cluster the normal windows (n, D)."""
        need_samples(X, self.n_clusters)
        self.clusters_ = KMeans(self.n_clusters, n_init=3, random_state=self.random_state).fit(X)
        return self

    def score_samples(self, X: Features) -> Scores:
        """Score windows (m, D) as (m,)."""
        return -self.clusters_.transform(X).min(axis=1)


class MedianDistance(BaseEstimator):
    """Euclidean distance to the median of the normal windows, dimension by dimension."""

    def fit(self, X: Features) -> Self:
        """Find the median of the normal windows (n, D)."""
        need_samples(X, 1)
        self.median_ = np.median(X.astype(np.float64), axis=0)
        return self

    def score_samples(self, X: Features) -> Scores:
        """Score windows (m, D) as (m,)."""
        return -np.linalg.norm(X - self.median_, axis=1)


class PrincipalResidual(BaseEstimator):
    """Squared length of what the first ``n_components`` principal components of the normal windows do not explain."""

    def __init__(self, n_components: int = 8) -> None:
        self.n_components = n_components

    def fit(self, X: Features) -> Self:
        """Find the components of the normal windows (n, D)."""
        need_samples(X, self.n_components + 1)
        self.components_ = PCA(self.n_components, svd_solver="full").fit(X.astype(np.float64))
        return self

    def score_samples(self, X: Features) -> Scores:
        """Score windows (m, D) as (m,)."""
        explained = self.components_.inverse_transform(self.components_.transform(X))
        return -np.square(X - explained).sum(axis=1)


class Mahalanobis(BaseEstimator):
    """Squared Mahalanobis distance under a Ledoit–Wolf shrunk covariance of the normal windows.

    With ``per_domain``, source and target have means of their own under one covariance of both, and the smaller
    distance counts.
    """

    def __init__(self, per_domain: bool = False) -> None:
        self.per_domain = per_domain

    def fit(self, X: Features, domains: ArrayLike) -> Self:
        """Estimate mean and covariance of normal windows (n, D) of both domains (n,)."""
        need_samples(X, 2)
        wide, domain = X.astype(np.float64), np.asarray(domains)
        groups = [domain == name for name in np.unique(domain)] if self.per_domain else [np.ones(len(X), bool)]
        self.means_ = [wide[group].mean(axis=0) for group in groups]
        centred = np.concatenate([wide[g] - mean for g, mean in zip(groups, self.means_, strict=True)])
        self.covariance_ = LedoitWolf(assume_centered=True).fit(centred)
        return self

    def score_samples(self, X: Features) -> Scores:
        """Score windows (m, D) as (m,)."""
        return -np.min([self.covariance_.mahalanobis(X - mean) for mean in self.means_], axis=0)


class OutlierFactor(BaseEstimator):
    """Local outlier factor of new windows (scikit-learn's), on neighbours that are shared."""

    def __init__(self, n_neighbors: int = 20) -> None:
        self.n_neighbors = n_neighbors

    def fit(self, X: Features, neighbours: NeighbourSearch | None = None) -> Self:
        """Keep the normal windows (n, D) and their densities; refuses a bank that scikit-learn would quietly accept."""
        need_samples(X, self.n_neighbors + 1)
        self.neighbours_ = neighbours or NeighbourSearch(X, self.n_neighbors)
        self.factor_ = LocalOutlierFactor(n_neighbors=self.n_neighbors, metric="precomputed", novelty=True)
        self.factor_.fit(self.neighbours_.graph_within(self.n_neighbors))
        return self

    def score_samples(self, X: Features) -> Scores:
        """Score windows (m, D) as (m,)."""
        return self.factor_.score_samples(self.neighbours_.graph(X, self.n_neighbors))


class KernelDensity(BaseEstimator):
    """Log-density of a sum of Gaussians of one width, one on each normal window (Parzen 1962).

    All bandwidths share one distance matrix. Not scikit-learn's: its sums begin at the bound of a whole tree and lose
    what is 1e-16 below it, so that windows far from all others, the anomalous ones, come out too near.
    """

    def __init__(self, bandwidth: float = 1.0) -> None:
        self.bandwidth = bandwidth

    def fit(self, X: Features, neighbours: NeighbourSearch | None = None) -> Self:
        """Keep the normal windows (n, D)."""
        need_samples(X, 1)
        self.neighbours_ = neighbours or NeighbourSearch(X, 1)
        return self

    def score_samples(self, X: Features) -> Scores:
        """Score windows (m, D) as (m,)."""
        n, dim = self.neighbours_.bank.shape
        norm = np.log(n) + dim * np.log(self.bandwidth) + dim / 2 * np.log(2 * np.pi)
        blocks = self.neighbours_.squared_distances(X)
        return np.concatenate([_log_sum_exp(rows, -0.5 / self.bandwidth**2) for rows in _few_rows(blocks)]) - norm


class Mixture(GaussianMixture):
    """scikit-learn's Gaussian mixture in double precision: in single, full covariances of many components fail."""

    def fit(self, X: Features, y: None = None) -> Self:
        """Fit to the normal windows (n, D)."""
        return super().fit(X.astype(np.float64))

    def score_samples(self, X: Features) -> Scores:
        """Score windows (m, D) as (m,)."""
        return super().score_samples(X.astype(np.float64))


class OwnProductLogit(BaseEstimator):
    """Outlier exposure alone: the largest product logit of the section itself, with no inlier model."""

    features = "logits"

    def fit(self, X: Features, product: ArrayLike) -> Self:
        """Keep which of the K logits of normal windows (n, K) are the section's own; nothing is learned."""
        self.product_ = np.atleast_1d(product)
        if not len(self.product_):
            raise ValueError("the section has no product logit")
        return self

    def score_samples(self, X: Features) -> Scores:
        """Score windows (m, K) as (m,)."""
        return X[:, self.product_].max(axis=1).astype(np.float64)


class MachineLogit(BaseEstimator):
    """Outlier exposure alone: the machine logit, with no inlier model."""

    features = "machine_logit"

    def fit(self, X: Features) -> Self:
        """Learn nothing from normal windows (n, 1)."""
        return self

    def score_samples(self, X: Features) -> Scores:
        """Score windows (m, 1) as (m,)."""
        return X[:, 0].astype(np.float64)


def need_samples(X: Features, wanted: int) -> None:
    """Make sure that a section has enough normal windows.

    Raises:
        ValueError: it has fewer.

    """
    if len(X) < wanted:
        raise ValueError(f"needs {wanted} windows, the section has {len(X)}")


def _few_rows(blocks: Iterable[Scores]) -> Iterator[Scores]:
    """Cut blocks of distances so that what is worked on stays in a processor's cache."""
    for block in blocks:
        rows = max(1, _CACHED // block.shape[1])
        for begin in range(0, len(block), rows):
            yield block[begin : begin + rows]


def _log_sum_exp(squared: Scores, factor: float) -> Scores:
    """Logarithm of the sum over each row of exp(factor * squared), factor < 0."""
    nearest = squared.min(axis=1, keepdims=True)
    exponents = (squared - nearest) * factor
    return np.log(np.exp(exponents, out=exponents).sum(axis=1)) + nearest[:, 0] * factor


def _oversampled(X: Features, wanted: int, random_state: int) -> Features:
    """Add points between windows and their nearest neighbours until there are ``wanted``."""
    extra = wanted - len(X)
    if extra <= 0 or len(X) < 2:
        return X
    rng = np.random.default_rng(random_state)
    neighbours = NearestNeighbors(n_neighbors=min(5, len(X) - 1)).fit(X).kneighbors(return_distance=False)
    start = rng.integers(0, len(X), extra)
    towards = neighbours[start, rng.integers(0, neighbours.shape[1], extra)]
    step = rng.random((extra, 1), dtype=np.float32)
    return np.concatenate([X, X[start] + step * (X[towards] - X[start])])
