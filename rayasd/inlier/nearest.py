"""rayasd's own detectors by distances to normal windows, or to normal clips where a clip's features are pooled before.

Interface and parameters of ``fit`` are those of ``rayasd.inlier.estimators``. Where a normal window's own neighbours
are asked for, windows of its own clip do not count (``NeighbourSearch.others``). D is the Euclidean distance.
"""

from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rayasd.arrays import Features, Scores
from rayasd.inlier.estimators import need_samples
from rayasd.inlier.neighbours import NeighbourSearch, few_rows

_SMALLEST = float(np.finfo(np.float32).eps)  # least divisor of distances: equal windows have no spacing


class MeanNeighbourDistance:
    """Mean Euclidean distance to the ``n_neighbors`` nearest normal windows.

    With ``smote`` > 0, the target domain's windows first grow to that share of the source domain's, by points on the
    lines between a window and one of its ``smote_neighbors`` nearest of other clips (Chawla et al. 2002).
    """

    def __init__(
        self, n_neighbors: int = 1, smote: float = 0.0, smote_neighbors: int = 2, random_state: int = 0
    ) -> None:
        self.n_neighbors = n_neighbors
        self.smote = smote
        self.smote_neighbors = smote_neighbors
        self.random_state = random_state

    def fit(self, X: Features, neighbours: NeighbourSearch | None = None, domains: ArrayLike = ()) -> Self:
        need_samples(X, self.n_neighbors)
        self.neighbours_ = neighbours or NeighbourSearch(X, self.n_neighbors)
        if self.smote > 0:
            in_target = _in_target(domains, X)
            missing = int(self.smote * (~in_target).sum()) - int(in_target.sum())
            more = _between(self.neighbours_.part(in_target), missing, self.smote_neighbors, self.random_state)
            self.neighbours_ = NeighbourSearch(np.concatenate([X, more]), self.n_neighbors)
        return self

    def score_samples(self, X: Features) -> Scores:
        return -self.neighbours_.nearest(X, self.n_neighbors)[0].mean(axis=1)


class LocalDensityDistance:
    """Smallest ratio, over all normal windows y, of D(x, y) to the mean distance of y to its K nearest others.

    Windows in a sparse region of the normal sounds (a target domain, say) are then not all anomalous. The y with the
    smallest ratio need not be the nearest one (Wilkinghoff et al., arXiv 2509.10951).
    """

    def __init__(self, n_neighbors: int = 4) -> None:
        self.n_neighbors = n_neighbors

    def fit(self, X: Features, neighbours: NeighbourSearch | None = None) -> Self:
        need_samples(X, self.n_neighbors + 1)
        self.neighbours_ = neighbours or NeighbourSearch(X, self.n_neighbors)
        spacing = self.neighbours_.others(self.n_neighbors)[0].mean(axis=1)
        self.spacing_ = np.maximum(spacing, _SMALLEST)
        return self

    def score_samples(self, X: Features) -> Scores:
        squared, factors = few_rows(self.neighbours_.squared_distances(X)), self.spacing_**-2
        return -np.sqrt(np.concatenate([(rows * factors).min(axis=1) for rows in squared]))


class VarianceMinimised:
    """Smallest difference, over all normal windows y, of D(x, y) and a b(y); b(y) is as in ``LocalDensityDistance``.

    The factor a minimises the variance of the scores that normal windows would have: with u the distance of each to its
    nearest other and v that one's b, a = Cov(u, v) / Var(v), or 0 where v does not vary (Matsumoto et al., DCASE
    Workshop 2025).
    """

    def __init__(self, n_neighbors: int = 4) -> None:
        self.n_neighbors = n_neighbors

    def fit(self, X: Features, neighbours: NeighbourSearch | None = None) -> Self:
        need_samples(X, self.n_neighbors + 1)
        self.neighbours_ = neighbours or NeighbourSearch(X, self.n_neighbors)
        distances, positions = self.neighbours_.others(self.n_neighbors)
        spacing = distances.mean(axis=1)
        u, v = distances[:, 0], spacing[positions[:, 0]]
        factor = np.mean((u - u.mean()) * (v - v.mean())) / v.var() if v.var() > 1e-12 else 0.0
        self.offsets_ = factor * spacing
        return self

    def score_samples(self, X: Features) -> Scores:
        squared = few_rows(self.neighbours_.squared_distances(X))
        return -np.concatenate([(np.sqrt(rows) - self.offsets_).min(axis=1) for rows in squared])


class DomainDistance:
    """Distance to the nearest normal window of each domain, in units of the domain; the smaller one counts.

    The unit is the median distance of the domain's windows to their nearest other of the domain. A domain of a single
    clip takes the other domain's. What is not of the target domain counts as source.
    """

    def fit(self, X: Features, domains: ArrayLike, neighbours: NeighbourSearch | None = None) -> Self:
        search, in_target = neighbours or NeighbourSearch(X, 1), _in_target(domains, X)
        self.parts_ = [search.part(rows) for rows in (~in_target, in_target) if rows.any()]
        units = [float(np.median(part.others(1)[0])) if part.num_others else None for part in self.parts_]
        known = [unit for unit in units if unit is not None]
        if not known:
            raise ValueError("needs two normal clips of one domain")
        self.units_ = [max(known[0] if unit is None else unit, _SMALLEST) for unit in units]
        return self

    def score_samples(self, X: Features) -> Scores:
        scaled = [part.nearest(X, 1)[0][:, 0] / unit for part, unit in zip(self.parts_, self.units_, strict=True)]
        return -np.min(scaled, axis=0)


class CentroidDistance:
    """Distance to the nearest of ``n_clusters`` k-means centroids of the normal windows.

    With ``raw_target``, centroids are of the source domain alone, and every target-domain window is a further one
    (Wilkinghoff, ICASSP 2023).
    """

    def __init__(self, n_clusters: int = 1, raw_target: bool = False, random_state: int = 0) -> None:
        self.n_clusters = n_clusters
        self.raw_target = raw_target
        self.random_state = random_state

    def fit(self, X: Features, neighbours: NeighbourSearch | None = None, domains: ArrayLike = ()) -> Self:
        from sklearn.cluster import KMeans

        raw = _in_target(domains, X) if self.raw_target else np.zeros(len(X), bool)
        need_samples(X[~raw], self.n_clusters)
        self.clusters_ = KMeans(self.n_clusters, n_init=3, random_state=self.random_state).fit(X[~raw])
        self.raw_ = (neighbours or NeighbourSearch(X, 1)).part(raw) if raw.any() else None
        return self

    def score_samples(self, X: Features) -> Scores:
        distance = self.clusters_.transform(X).min(axis=1)
        return -distance if self.raw_ is None else -np.minimum(distance, self.raw_.nearest(X, 1)[0][:, 0])


class OutlierFactor:
    """Local outlier factor of new windows (scikit-learn's), on neighbours that are shared.

    With ``other_clips``, the neighbours of a normal window are windows of other clips; without, as in the paper's
    method, any others.
    """

    def __init__(self, n_neighbors: int = 20, other_clips: bool = False) -> None:
        self.n_neighbors = n_neighbors
        self.other_clips = other_clips

    def fit(self, X: Features, neighbours: NeighbourSearch | None = None) -> Self:
        from sklearn.neighbors import LocalOutlierFactor

        need_samples(X, self.n_neighbors + 1)  # scikit-learn would quietly accept fewer
        self.neighbours_ = neighbours or NeighbourSearch(X, self.n_neighbors)
        self.factor_ = LocalOutlierFactor(n_neighbors=self.n_neighbors, metric="precomputed", novelty=True)
        self.factor_.fit(self.neighbours_.graph_within(self.n_neighbors, other_groups=self.other_clips))
        return self

    def score_samples(self, X: Features) -> Scores:
        return self.factor_.score_samples(self.neighbours_.graph(X, self.n_neighbors))


class KernelDensity:
    """Log-density of a sum of Gaussians of one width, one on each normal window (Parzen 1962).

    All bandwidths share one distance matrix. Not scikit-learn's: its sums begin at the bound of a whole tree and lose
    what is 1e-16 below it, so that windows far from all others, the anomalous ones, come out too near.
    """

    def __init__(self, bandwidth: float = 1.0) -> None:
        self.bandwidth = bandwidth

    def fit(self, X: Features, neighbours: NeighbourSearch | None = None) -> Self:
        need_samples(X, 1)
        self.neighbours_ = neighbours or NeighbourSearch(X, 1)
        return self

    def score_samples(self, X: Features) -> Scores:
        n, dim = self.neighbours_.bank.shape
        norm = np.log(n) + dim * np.log(self.bandwidth) + dim / 2 * np.log(2 * np.pi)
        blocks = self.neighbours_.squared_distances(X)
        return np.concatenate([_log_sum_exp(rows, -0.5 / self.bandwidth**2) for rows in few_rows(blocks)]) - norm


def _log_sum_exp(squared: Scores, factor: float) -> Scores:
    """Logarithm of the sum over each row of exp(factor * squared), factor < 0."""
    nearest = squared.min(axis=1, keepdims=True)
    exponents = (squared - nearest) * factor
    return np.log(np.exp(exponents, out=exponents).sum(axis=1)) + nearest[:, 0] * factor


def _in_target(domains: ArrayLike, X: Features) -> NDArray[np.bool_]:
    """Return which windows are of the target domain, (n,). Raises ValueError: not one domain per window."""
    in_target: NDArray[np.bool_] = np.asarray(domains) == "target"
    if in_target.shape != (len(X),):
        raise ValueError(f"needs the domain of each of {len(X)} windows or clips")
    return in_target


def _between(search: NeighbourSearch, wanted: int, num_neighbours: int, random_state: int) -> Features:
    """Draw ``wanted`` points on the lines between windows and their nearest of other clips; none of a single clip."""
    bank, k = search.bank, min(num_neighbours, search.num_others)
    if wanted <= 0 or k < 1:
        return bank[:0]
    rng = np.random.default_rng(random_state)
    start = rng.integers(0, len(bank), wanted)
    towards = search.others(k)[1][start, rng.integers(0, k, wanted)]
    step = rng.random((wanted, 1), dtype=np.float32)
    return bank[start] + step * (bank[towards] - bank[start])
