"""The one-class support vector machine as a detector."""

from sklearn.svm import OneClassSVM

from rayasd.arrays import Features, Scores


class SupportVectors(OneClassSVM):
    """scikit-learn's one-class SVM with the mean of the kernel over the support vectors as score.

    scikit-learn's own is the sum, which grows with the number of windows: scores by all of them and by a fold would not
    compare. Within a fit the order is the same.
    """

    def score_samples(self, X: Features) -> Scores:
        """Return the mean kernel of windows (m, D) with the support vectors, by weight, (m,)."""
        return super().score_samples(X) / self.dual_coef_.sum()
