"""rayasd's own detectors, with the interface of scikit-learn's: higher ``score_samples`` is more normal.

Those by distances to single windows are in ``rayasd.inlier.nearest``. ``fit(X)`` takes the normal windows of one
section, (n, D), ``score_samples(X)`` returns (m,) for windows (m, D); at clip level a row is a clip, and "window" means
that. Further parameters of ``fit`` are given by their names: ``domains``, (n,) strings source, target or unknown;
``neighbours``, a search in X that other detectors share; ``product``, the positions of the section's own product
logits.
"""

from typing import Self

import numpy as np
from numpy.typing import ArrayLike

from rayasd.arrays import Features, Scores


class MedianDistance:
    """Euclidean distance to the median of the normal windows, dimension by dimension."""

    def fit(self, X: Features) -> Self:
        need_samples(X, 1)
        self.median_ = np.median(X.astype(np.float64), axis=0)
        return self

    def score_samples(self, X: Features) -> Scores:
        return -np.linalg.norm(X - self.median_, axis=1)


class PrincipalResidual:
    """Squared length of what the first ``n_components`` principal components of the normal windows do not explain."""

    def __init__(self, n_components: int = 8) -> None:
        self.n_components = n_components

    def fit(self, X: Features) -> Self:
        from sklearn.decomposition import PCA

        need_samples(X, self.n_components + 1)
        self.components_ = PCA(self.n_components, svd_solver="full").fit(X.astype(np.float64))
        return self

    def score_samples(self, X: Features) -> Scores:
        explained = self.components_.inverse_transform(self.components_.transform(X))
        return -np.square(X - explained).sum(axis=1)


class Mahalanobis:
    """Squared Mahalanobis distance under a Ledoit–Wolf shrunk covariance of the normal windows.

    With ``per_domain``, source and target have means of their own under one covariance of both, and the smaller
    distance counts.
    """

    def __init__(self, per_domain: bool = False) -> None:
        self.per_domain = per_domain

    def fit(self, X: Features, domains: ArrayLike) -> Self:
        from sklearn.covariance import LedoitWolf

        need_samples(X, 2)
        wide, domain = X.astype(np.float64), np.asarray(domains)
        groups = [domain == name for name in np.unique(domain)] if self.per_domain else [np.ones(len(X), bool)]
        self.means_ = [wide[group].mean(axis=0) for group in groups]
        centred = np.concatenate([wide[g] - mean for g, mean in zip(groups, self.means_, strict=True)])
        self.covariance_ = LedoitWolf(assume_centered=True).fit(centred)
        return self

    def score_samples(self, X: Features) -> Scores:
        return -np.min([self.covariance_.mahalanobis(X - mean) for mean in self.means_], axis=0)


class OwnProductLogit:
    """Outlier exposure alone: the largest product logit of the section itself, with no inlier model."""

    features = "logits"

    def fit(self, X: Features, product: ArrayLike) -> Self:
        """Keep which of the K logits of normal windows (n, K) are the section's own; nothing is learned."""
        self.product_ = np.atleast_1d(product)
        if not len(self.product_):
            raise ValueError("the section has no product logit")
        return self

    def score_samples(self, X: Features) -> Scores:
        return X[:, self.product_].max(axis=1).astype(np.float64)


class MachineLogit:
    """Outlier exposure alone: the machine logit, with no inlier model."""

    features = "machine_logit"

    def fit(self, X: Features) -> Self:
        return self

    def score_samples(self, X: Features) -> Scores:
        return X[:, 0].astype(np.float64)


def need_samples(X: Features, wanted: int) -> None:
    """Make sure that there are enough normal windows, or clips, to fit to. Raises ValueError: there are fewer."""
    if len(X) < wanted:
        raise ValueError(f"needs {wanted} normal windows or clips, there are {len(X)}")
