import numpy as np

from rayasd.inlier.estimators import MachineLogit, Mahalanobis, OwnProductLogit, PrincipalResidual

RNG = np.random.default_rng(0)
SOURCE = RNG.standard_normal((50, 4)).astype(np.float32)
TARGET = (RNG.standard_normal((4, 4)) * 0.1 + 8).astype(np.float32)
X = np.concatenate([SOURCE, TARGET])
DOMAINS = np.array(["source"] * 50 + ["target"] * 4)
NEW = (RNG.standard_normal((30, 4)) * 5).astype(np.float32)


def test_residual_is_what_the_components_leave():
    plane = np.zeros((40, 4), np.float32)
    plane[:, :2] = RNG.standard_normal((40, 2))
    off = np.array([[0.3, -0.2, 3.0, 4.0], [1.0, 1.0, 0.0, 0.0]], np.float32)
    scores = PrincipalResidual(2).fit(plane).score_samples(off)
    np.testing.assert_allclose(-scores, [25.0, 0.0], atol=1e-5)


def test_mahalanobis_per_domain_judges_each_by_its_own_mean():
    together = Mahalanobis().fit(X, DOMAINS).score_samples(TARGET)
    apart = Mahalanobis(per_domain=True).fit(X, DOMAINS).score_samples(TARGET)
    assert (apart > together).all()
    one = Mahalanobis(per_domain=True).fit(SOURCE, DOMAINS[:50]).score_samples(NEW)
    np.testing.assert_allclose(one, Mahalanobis().fit(SOURCE, DOMAINS[:50]).score_samples(NEW))


def test_outlier_exposure_alone_is_the_logit_of_the_sections_own_product():
    logits = np.array([[0.1, 2.0], [-1.0, 3.0]], np.float32)
    own = OwnProductLogit().fit(logits, product=0)  # though the other is larger on its normal windows
    np.testing.assert_allclose(own.score_samples(np.array([[9.0, -4.0]], np.float32)), [9.0])
    np.testing.assert_allclose(MachineLogit().fit(logits[:, :1]).score_samples(logits[:, :1]), [0.1, -1.0], rtol=1e-6)
