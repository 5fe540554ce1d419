"""Gaussian mixtures as a detector."""

from typing import Self

import numpy as np
from sklearn.mixture import GaussianMixture

from rayasd.arrays import Features, Scores


class Mixture(GaussianMixture):
    """scikit-learn's Gaussian mixture in double precision: in single, full covariances of many components fail."""

    def fit(self, X: Features, y: None = None) -> Self:
        """Fit to normal windows (n, D)."""
        return super().fit(X.astype(np.float64))

    def score_samples(self, X: Features) -> Scores:
        """Return log-likelihoods of windows (m, D), (m,)."""
        return super().score_samples(X.astype(np.float64))
