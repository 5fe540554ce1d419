import numpy as np
import pytest
from sklearn.base import clone
from sklearn.neighbors import KernelDensity as SklearnKernelDensity
from sklearn.neighbors import LocalOutlierFactor, NearestNeighbors

from rayasd.inlier import neighbours
from rayasd.inlier.estimators import (
    CentroidDistance,
    DomainBanks,
    KernelDensity,
    LocalDensityDistance,
    MachineLogit,
    Mahalanobis,
    MeanNeighbourDistance,
    OutlierFactor,
    OwnProductLogit,
    PrincipalResidual,
)
from rayasd.inlier.neighbours import NeighbourSearch

RNG = np.random.default_rng(0)
SOURCE = RNG.standard_normal((50, 4)).astype(np.float32)
TARGET = (RNG.standard_normal((4, 4)) * 0.1 + 8).astype(np.float32)
X = np.concatenate([SOURCE, TARGET])
DOMAINS = np.array(["source"] * 50 + ["target"] * 4)
NEW = (RNG.standard_normal((30, 4)) * 5).astype(np.float32)


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.linalg.norm(a[:, None] - b[None], axis=2)


def test_banks_take_the_smaller_of_source_and_target():
    scores = DomainBanks(n_neighbors=2).fit(X, DOMAINS).score_samples(NEW)
    by_hand = [np.sort(distances(NEW, bank), axis=1)[:, :2].mean(axis=1) for bank in (SOURCE, TARGET)]
    np.testing.assert_allclose(-scores, np.minimum(*by_hand), rtol=1e-5)


@pytest.mark.parametrize("block", [20_000_000, 100])
def test_kernel_densities_are_scikit_learns(block: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(neighbours, "_BLOCK", block)  # all at once, and row by row
    search = NeighbourSearch(X, 1)
    for bandwidth in (0.5, 1.0, 32.0):
        scores = KernelDensity(bandwidth).fit(X, search).score_samples(NEW)
        reference = SklearnKernelDensity(bandwidth=bandwidth, rtol=0).fit(X).score_samples(NEW)
        np.testing.assert_allclose(scores, reference, rtol=1e-9)
    assert len(search._squared) == (block > 100)


def test_banks_without_target_clips_are_neighbour_distances():
    scores = DomainBanks(n_neighbors=2).fit(SOURCE, DOMAINS[:50]).score_samples(NEW)
    np.testing.assert_array_equal(scores, MeanNeighbourDistance(2).fit(SOURCE).score_samples(NEW))


def test_smote_fills_the_target_bank_between_its_points():
    detector = DomainBanks(n_neighbors=1, smote=0.5).fit(X, DOMAINS)
    bank = detector.banks_[1].neighbours_.bank
    assert len(bank) == 25  # half of the source bank
    np.testing.assert_array_equal(bank[:4], TARGET)
    assert (bank >= TARGET.min(axis=0) - 1e-5).all()
    assert (bank <= TARGET.max(axis=0) + 1e-5).all()
    assert len(np.unique(bank, axis=0)) == 25
    again = DomainBanks(n_neighbors=1, smote=0.5).fit(X, DOMAINS)
    np.testing.assert_array_equal(again.score_samples(NEW), detector.score_samples(NEW))


def test_a_single_target_clip_cannot_be_interpolated():
    detector = DomainBanks(smote=1.0).fit(X[:51], DOMAINS[:51])
    assert len(detector.banks_[1].neighbours_.bank) == 1


def test_local_density_divides_by_the_references_own_spacing():
    scores = LocalDensityDistance(n_neighbors=4).fit(X).score_samples(NEW)
    among = np.sort(distances(X, X), axis=1)[:, 1:5].mean(axis=1)
    to = distances(NEW, X)
    expected = to.min(axis=1) / among[to.argmin(axis=1)]
    np.testing.assert_allclose(-scores, expected, rtol=1e-4)
    equal = LocalDensityDistance(2).fit(np.zeros((5, 4), np.float32)).score_samples(NEW)
    assert np.isfinite(equal).all()  # equal windows have no spacing


def test_centroids_of_one_cluster_are_the_mean():
    scores = CentroidDistance(1).fit(X).score_samples(NEW)
    np.testing.assert_allclose(-scores, np.linalg.norm(NEW - X.mean(axis=0), axis=1), rtol=1e-5)


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


@pytest.mark.parametrize(
    "estimator",
    [
        MeanNeighbourDistance(9), OutlierFactor(9), LocalDensityDistance(9), CentroidDistance(9),
        PrincipalResidual(9),
    ],
)  # fmt: skip
def test_too_few_windows_are_refused_and_parameters_are_kept(estimator):
    with pytest.raises(ValueError, match=r"needs \d+ windows, the section has 3"):
        clone(estimator).fit(X[:3])
    assert 9 in clone(estimator).get_params().values()


@pytest.mark.parametrize("bank", [X, np.repeat(X[:9], 3, axis=0)], ids=["different", "doubled"])
def test_shared_neighbours_give_what_each_estimator_finds_alone(bank: np.ndarray):
    shared = NeighbourSearch(bank, most=8)
    for estimator in (MeanNeighbourDistance(8), MeanNeighbourDistance(2), OutlierFactor(3), LocalDensityDistance(4)):
        alone = clone(estimator).fit(bank).score_samples(NEW)
        np.testing.assert_allclose(clone(estimator).fit(bank, shared).score_samples(NEW), alone, rtol=1e-6)
    plain = LocalOutlierFactor(n_neighbors=3, novelty=True, algorithm="brute").fit(bank)
    if bank is X:  # among equal windows, who is whose neighbour is open
        np.testing.assert_allclose(OutlierFactor(3).fit(bank).score_samples(NEW), plain.score_samples(NEW), rtol=1e-5)


def test_neighbours_are_searched_once(monkeypatch: pytest.MonkeyPatch):
    searches = []
    found = NearestNeighbors.kneighbors
    monkeypatch.setattr(NearestNeighbors, "kneighbors", lambda *a: searches.append(a[2]) or found(*a))
    shared = NeighbourSearch(X, most=16)
    for k in (1, 2, 4, 8, 16):
        MeanNeighbourDistance(k).fit(X, shared).score_samples(NEW)
        LocalDensityDistance(k).fit(X, shared).score_samples(NEW)
    assert searches == [16, 16]  # of the new windows, and among the bank's own
    shared.nearest(NEW, 20)  # more than was said: searched again, not cut short
    assert searches[2:] == [20]


def test_outlier_exposure_alone_is_the_logit_of_the_sections_own_product():
    logits = np.array([[0.1, 2.0], [-1.0, 3.0]], np.float32)
    own = OwnProductLogit().fit(logits, product=0)  # though the other is larger on its normal windows
    np.testing.assert_allclose(own.score_samples(np.array([[9.0, -4.0]], np.float32)), [9.0])
    np.testing.assert_allclose(MachineLogit().fit(logits[:, :1]).score_samples(logits[:, :1]), [0.1, -1.0], rtol=1e-6)
