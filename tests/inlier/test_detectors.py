import numpy as np
import pytest
from sklearn.covariance import LedoitWolf
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KernelDensity, LocalOutlierFactor
from sklearn.svm import OneClassSVM

from rayasd.config import InlierConfig
from rayasd.errors import UserError
from rayasd.inlier.detectors import (
    FAMILIES,
    FusionSpec,
    anomaly_scores,
    fit_detector,
    most_neighbours,
    parse_detectors,
)
from rayasd.inlier.fusion import FUSIONS, fuse, rank_normalised, z_by_others, z_normalised
from rayasd.inlier.pooling import POOLINGS, check_poolings, find_pooling, pool
from rayasd.presets import load

CONFIG = InlierConfig(grid=(1, 4))
RNG = np.random.default_rng(0)
X = RNG.standard_normal((60, 5)).astype(np.float32)
X_TEST = np.vstack([RNG.standard_normal((10, 5)), RNG.standard_normal((10, 5)) * 4]).astype(np.float32)


DOMAINS = np.array(["source"] * 56 + ["target"] * 4, dtype=object)


def scores_of(text: str) -> np.ndarray:
    (spec,) = parse_detectors([text], CONFIG)
    detector = spec.build()
    fit_detector(detector, X, domains=DOMAINS, product=2)
    return anomaly_scores(detector, X_TEST)


def test_families_spread_over_the_grid():
    names = [spec.name for spec in parse_detectors(["knn", "mahalanobis", "gmm-8"], CONFIG)]
    assert names == ["knn-1", "knn-4", "mahalanobis", "gmm-8"]


def test_each_family_is_what_the_reference_uses():
    distances = np.sort(np.linalg.norm(X_TEST[:, None] - X[None], axis=2), axis=1)
    np.testing.assert_allclose(scores_of("knn-4"), distances[:, :4].mean(axis=1), rtol=1e-5)
    machine = OneClassSVM(nu=1 / 8).fit(X)
    expected = {
        "lof-4": -LocalOutlierFactor(n_neighbors=4, novelty=True).fit(X).score_samples(X_TEST),
        "gmm-4": -GaussianMixture(4, random_state=0).fit(X.astype(float)).score_samples(X_TEST.astype(float)),
        "ocsvm-4": -machine.score_samples(X_TEST) / machine.dual_coef_.sum(),
        "kde-4": -KernelDensity(bandwidth=4.0).fit(X).score_samples(X_TEST),
        "mahalanobis": LedoitWolf().fit(X.astype(float)).mahalanobis(X_TEST),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(scores_of(name), values, rtol=1e-6, err_msg=name)


def test_scores_of_a_support_vector_machine_do_not_depend_on_the_number_of_windows():
    (spec,) = parse_detectors(["ocsvm-4"], CONFIG)
    rng = np.random.default_rng(0)
    windows, new = rng.standard_normal((2, 400, 4)).astype(np.float32)
    medians = [np.median(spec.build().fit(windows[:n]).score_samples(new)) for n in (100, 400)]
    assert medians[0] == pytest.approx(medians[1], rel=0.2)


@pytest.mark.slow
def test_a_mixture_of_many_full_covariances_is_fitted_where_single_precision_fails():
    rng = np.random.default_rng(0)
    plane = rng.standard_normal((6, 128)) * 10.0
    bank = (rng.standard_normal((800, 6)) @ plane + 1e-3 * rng.standard_normal((800, 128))).astype(np.float32)
    with pytest.raises(ValueError, match="ill-defined empirical covariance"):
        GaussianMixture(16, random_state=0).fit(bank)
    (spec,) = parse_detectors(["gmm-16"], CONFIG)
    detector = spec.build()
    fit_detector(detector, bank)
    assert np.isfinite(anomaly_scores(detector, bank)).all()


POOR_BANKS = {
    "three windows": X[:3],
    "one window": X[:1],
    "all the same": np.ones((60, 5), np.float32),
    "two values": np.repeat(X[:2], 30, axis=0),
    "a line (singular covariance)": np.outer(X[:, 0], np.ones(5)).astype(np.float32),
    "tiny and huge": X * np.float32([1e-18, 1e18, 1, 1, 1]),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("bank", POOR_BANKS)
def test_a_poor_bank_gives_finite_scores_or_a_reason(bank: str):
    for spec in parse_detectors(sorted(FAMILIES), InlierConfig(grid=(1, 4, 32))):
        detector = spec.build()
        try:
            fit_detector(detector, POOR_BANKS[bank], domains=DOMAINS[: len(POOR_BANKS[bank])], product=2)
            scores = anomaly_scores(detector, X_TEST)
        except ValueError:
            continue
        assert np.isfinite(scores).all()


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_higher_is_more_anomalous(family: str):
    if family.endswith("-logit"):
        logits = scores_of(family)  # of windows whose logits these are: a smaller one is more anomalous
        column = 2 if family == "product-logit" else 0
        np.testing.assert_array_equal(logits, -X_TEST[:, column].astype(float))
        return
    scores = scores_of(family if family in ("mahalanobis", "median", "domain-nn") else f"{family}-4")
    assert scores[10:].mean() > scores[:10].mean()


def test_any_estimator_plugs_in_by_import_path():
    text = "sklearn.ensemble.IsolationForest(n_estimators=20, max_features=0.5)"
    scores = scores_of(text)
    assert scores[10:].mean() > scores[:10].mean()
    np.testing.assert_array_equal(scores, scores_of(text))  # seeded, though nobody said so
    config = load("demo", [f"inlier.detectors=knn, {text},gmm-1"])
    assert config.inlier.detectors == ("knn", text, "gmm-1")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kn", "unknown detector 'kn': did you mean 'knn'"),
        ("knn-0", "must be at least 1"),
        ("mahalanobis-3", "unknown detector 'mahalanobis'"),
        ("knn(neighbours=3)", "unexpected keyword argument 'neighbours'"),
        ("knn(3)", "write a name, or package.name"),
        ("knn(", "write a name, or package.name"),
        ("sklearn.ensemble.Forest", "has no attribute 'Forest'"),
        ("no.such.module.Class", "No module named 'no'"),
        ("collections.OrderedDict", "needs fit"),
        ("z-mean(knn-1)", "a fusion is of two or more single detectors"),
        ("z-mean(knn-1, z-min(knn-1, knn-4))", "a fusion is of two or more single detectors"),
        ("z-median(knn-1, knn-4)", "detector"),
        ("tests.inlier.broken.Detector", "RuntimeError: at import"),
        ("sklearn.svm.OneClassSVM(nu='x', kernal=1)", "unexpected keyword argument 'kernal'"),
        ("__import__('os').system('true')", "detector"),
    ],
)
def test_a_wrong_detector_is_refused_in_one_line(text: str, said: str):
    with pytest.raises(UserError) as caught:
        parse_detectors([text], CONFIG)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_doubled_or_no_detectors_are_refused():
    with pytest.raises(UserError, match="knn-4 is named twice"):
        parse_detectors(["knn", "knn-4"], CONFIG)
    with pytest.raises(UserError, match="empty"):
        parse_detectors([], CONFIG)


def test_a_detector_that_gives_nonsense_is_caught():
    class Nonsense:
        def score_samples(self, X):
            return np.full(len(X), np.nan)

    with pytest.raises(ValueError, match="not finite"):
        anomaly_scores(Nonsense(), X_TEST)


def test_poolings():
    windows = np.array([[3.0, 1.0, 2.0, 10.0], [0.0, 0.0, 0.0, 0.0]])
    found = {name: pool(windows)[0] for name, pool in POOLINGS.items()}
    assert found == {
        "mean": 4.0, "median": 2.5, "max": 10.0, "min": 1.0, "upper-half-mean": 6.5, "lower-half-mean": 1.5,
    }  # fmt: skip
    for decay, by_hand in (
        ("0", 10.0),
        ("0.5", (10 + 3 / 2 + 2 / 4 + 1 / 8) / (1 + 1 / 2 + 1 / 4 + 1 / 8)),
        ("1", 4.0),
    ):
        assert find_pooling(f"gwrp-{decay}")(windows)[0] == pytest.approx(by_hand)
    for name in ("gwrp-1.5", "gwrp-", "gwrp--1", "average", "gwrp-0.5.1"):
        with pytest.raises(UserError, match="unknown pooling"):
            find_pooling(name)
    for names in ((), ("mean", "mean")):
        with pytest.raises(UserError, match="at least one, each once"):
            check_poolings(names)
    odd = np.array([[1.0, 2.0, 6.0]])
    assert POOLINGS["lower-half-mean"](odd)[0] == 1.5  # the median counts to both halves
    assert POOLINGS["upper-half-mean"](odd)[0] == 4.0


def test_a_fusion_takes_families_and_calls_with_commas():
    (fusion,) = parse_detectors(["z-min(knn, knn(n_neighbors=2, smote=0.1))"], CONFIG)
    assert isinstance(fusion, FusionSpec)
    assert fusion.method == "z-min"
    assert [member.name for member in fusion.members] == ["knn-1", "knn-4", "knn(n_neighbors=2, smote=0.1)"]
    config = load("demo", ["inlier.detectors=knn-1,z-mean(knn-1, knn(n_neighbors=2, smote=0.1)),lof-8"])
    assert len(config.inlier.detectors) == 3
    assert most_neighbours([fusion]) == 4
    with pytest.raises(UserError, match="inlier.calibration_folds of at least 2"):
        parse_detectors(["z-mean(knn-1, knn-4)"], InlierConfig(calibration_folds=0))


def test_fusions_by_hand():
    a, b = (np.array([1.0, 5.0]), np.array([0.0, 2.0])), (np.array([10.0, 0.0]), np.array([10.0, 30.0]))
    expected = {
        "z-mean": [(0.0 - 1.0) / 2, (4.0 - 2.0) / 2],
        "z-min": [-1.0, -2.0],
        "z-max": [0.0, 4.0],
        "rank-mean": [(3 / 6 + 2 / 6) / 2, (5 / 6 + 1 / 6) / 2],
    }
    assert set(expected) == set(FUSIONS)
    for method, values in expected.items():
        np.testing.assert_allclose(fuse(method, [a, b])[0], values, err_msg=method)
    with pytest.raises(ValueError, match="training scores that differ"):
        fuse("z-mean", [a, (b[0], np.array([3.0, 3.0]))])


def test_training_scores_are_normalised_by_the_others():
    rng = np.random.default_rng(0)
    training = 1e6 + rng.gamma(2.0, size=9)
    rests = [np.delete(training, n) for n in range(9)]
    z = [(score - rest.mean()) / rest.std() for score, rest in zip(training, rests, strict=True)]
    np.testing.assert_allclose(z_by_others(training), z, rtol=1e-6)
    ranks = rank_normalised(training, training)
    assert rank_normalised(np.array([training.max() + 1]), training)[0] > ranks.max()  # an alarm is possible
    assert sorted(ranks) == pytest.approx(np.arange(1, 10) / 10)
    few = np.array([1.0, 1.0, 5.0])  # without the last, there is no scale
    assert z_by_others(few)[2] == z_normalised(few, few)[2]


def test_the_highest_fused_training_score_is_as_often_the_highest_as_any():
    """Of seven exchangeable scores, each is the highest in a seventh of all draws."""
    rng, higher = np.random.default_rng(0), 0
    for _ in range(2000):
        members = [(scores[6:], scores[:6]) for scores in rng.normal(size=(2, 7))]
        test, training = fuse("z-mean", members)
        higher += test[0] > training.max()
    assert higher / 2000 < 1 / 7  # 0.23 where each is part of its own scale


def test_a_pooling_of_ones_own_by_import_path():
    windows = np.arange(12.0).reshape(3, 4)
    np.testing.assert_array_equal(pool("numpy.ptp(axis=1)", windows), [3.0] * 3)
    for name, said in (("numpy.ptp(axis=0)", "no finite number for each of 3 clips"), ("numpy.log", "no finite")):
        with pytest.raises(ValueError, match=said), np.errstate(divide="ignore"):
            pool(name, windows)
