"""Detectors by distances, each against a few lines of numpy written from its published formula."""

from collections.abc import Callable
from copy import copy
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from sklearn.neighbors import KernelDensity as SklearnKernelDensity
from sklearn.neighbors import LocalOutlierFactor, NearestNeighbors

from rayasd.inlier import neighbours
from rayasd.inlier.detectors import fit_detector
from rayasd.inlier.estimators import PrincipalResidual
from rayasd.inlier.nearest import (
    CentroidDistance,
    DomainDistance,
    KernelDensity,
    LocalDensityDistance,
    MeanNeighbourDistance,
    OutlierFactor,
    VarianceMinimised,
)
from rayasd.inlier.neighbours import NeighbourSearch

RNG = np.random.default_rng(0)
SOURCE = RNG.standard_normal((50, 4))
TARGET = RNG.standard_normal((6, 4)) * 0.3 + 8
X = np.concatenate([SOURCE, TARGET])
DOMAINS = np.array(["source"] * 50 + ["target"] * 6)
CLIPS = np.repeat(np.arange(28), 2)
NEW = RNG.standard_normal((30, 4)) * 5

K = 4


def distance(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.sqrt(((x - y) ** 2).sum()))


def own_neighbours(bank: np.ndarray, clips: np.ndarray) -> list[list[tuple[float, int]]]:
    """Distance and position of each window's neighbours of other clips, nearest first."""
    numbers = range(len(bank))
    return [sorted((distance(bank[i], bank[j]), j) for j in numbers if clips[j] != clips[i]) for i in numbers]


def nn(x: np.ndarray, bank: np.ndarray, clips: np.ndarray) -> float:
    return min(distance(x, y) for y in bank)


def ldn(x: np.ndarray, bank: np.ndarray, clips: np.ndarray) -> float:
    near = own_neighbours(bank, clips)
    spacing = [np.mean([d for d, _ in near[i][:K]]) for i in range(len(bank))]
    return min(distance(x, bank[i]) / spacing[i] for i in range(len(bank)))


def varmin(x: np.ndarray, bank: np.ndarray, clips: np.ndarray) -> float:
    near = own_neighbours(bank, clips)
    b = [np.mean([d for d, _ in near[i][:K]]) for i in range(len(bank))]
    u = [near[i][0][0] for i in range(len(bank))]
    v = [b[near[i][0][1]] for i in range(len(bank))]
    alpha = np.cov(u, v)[0, 1] / np.var(v, ddof=1)
    return min(distance(x, bank[i]) - alpha * b[i] for i in range(len(bank)))


def domain_nn(x: np.ndarray, bank: np.ndarray, clips: np.ndarray) -> float:
    scaled = []
    for name in ("source", "target"):
        rows = np.flatnonzero(name == DOMAINS)
        unit = np.median([near[0][0] for near in own_neighbours(bank[rows], clips[rows])])
        scaled.append(min(distance(x, bank[i]) for i in rows) / unit)
    return min(scaled)


FORMULAS: dict[str, tuple[Any, Callable[[np.ndarray, np.ndarray, np.ndarray], float]]] = {
    "nn": (MeanNeighbourDistance(1), nn),
    "ldn": (LocalDensityDistance(K), ldn),
    "varmin": (VarianceMinimised(K), varmin),
    "domain-nn": (DomainDistance(), domain_nn),
}


def scores(estimator: Any, bank: np.ndarray, new: np.ndarray, **more: np.ndarray) -> np.ndarray:
    detector = copy(estimator)
    groups = more.get("groups")
    fit_detector(detector, bank, domains=more.get("domains", DOMAINS), neighbours=NeighbourSearch(bank, 8, groups))
    return -detector.score_samples(new)


@pytest.mark.parametrize("few", [0, 200_000], ids=["scikit-learn", "numpy"])
def test_many_windows_and_few_find_the_same_neighbours(few: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(neighbours, "_FEW", few)
    bank = RNG.standard_normal((300, 16)).astype(np.float32)
    new = np.concatenate([RNG.standard_normal((20, 16)).astype(np.float32), bank[:3]])
    distances, positions = NeighbourSearch(bank, 5).nearest(new, 5)
    every = np.linalg.norm(new[:, None].astype(np.float64) - bank, axis=2)
    np.testing.assert_array_equal(positions, np.argsort(every, axis=1, kind="stable")[:, :5])
    np.testing.assert_allclose(distances, np.sort(every, axis=1)[:, :5], rtol=1e-9, atol=1e-6)


@pytest.mark.parametrize("clips", [np.arange(56), CLIPS], ids=["clips", "windows"])
@pytest.mark.parametrize("name", FORMULAS)
def test_back_ends_are_their_formulas(name: str, clips: np.ndarray):
    estimator, formula = FORMULAS[name]
    expected = [formula(x, X, clips) for x in NEW]
    np.testing.assert_allclose(scores(estimator, X, NEW, groups=clips), expected, rtol=1e-12)


@pytest.mark.parametrize("name", FORMULAS)
@settings(max_examples=20, deadline=None)
@given(order=st.permutations(range(56)), scale=st.floats(0.1, 100))
def test_order_of_the_bank_and_scale_of_features_do_not_matter(name: str, order: list[int], scale: float):
    estimator, _ = FORMULAS[name]
    plain = scores(estimator, X, NEW, groups=CLIPS)
    moved = scores(estimator, X[order], NEW, groups=CLIPS[order], domains=DOMAINS[order])
    np.testing.assert_allclose(moved, plain, rtol=1e-9, atol=1e-12)
    factor = scale if name in ("nn", "varmin") else 1.0  # the others are ratios
    np.testing.assert_allclose(scores(estimator, X * scale, NEW * scale, groups=CLIPS), plain * factor, rtol=1e-9)


def test_with_one_domain_domain_nn_ranks_as_nn():
    for domains in (np.full(56, "source"), np.full(56, "target"), np.full(56, "unknown")):
        ratio = scores(DomainDistance(), X, NEW, domains=domains) / scores(MeanNeighbourDistance(1), X, NEW)
        np.testing.assert_allclose(ratio, ratio[0], rtol=1e-12)


def test_a_domain_of_one_clip_takes_the_unit_of_the_other():
    one = DomainDistance().fit(X[:51], DOMAINS[:51])
    assert one.units_[0] == one.units_[1]
    with pytest.raises(ValueError, match="two normal clips of one domain"):
        DomainDistance().fit(X[:2], DOMAINS[:2], NeighbourSearch(X[:2], 1, np.zeros(2, np.int64)))


def test_neighbours_of_a_window_are_never_of_its_own_clip():
    clips = RNG.integers(0, 12, 56)
    search = NeighbourSearch(X, 8, clips)
    distances, positions = search.others(5)
    assert (clips[positions] != clips[:, None]).all()
    for i, near in enumerate(own_neighbours(X, clips)):
        np.testing.assert_allclose(distances[i], [d for d, _ in near[:5]], rtol=1e-12)
    few = NeighbourSearch(X[:6], 1, np.array([0, 0, 0, 1, 1, 2]))
    assert few.others(3)[0].shape == (6, 3)
    with pytest.raises(ValueError, match=r"needs 4 normal windows or clips besides each one's own, there are 3"):
        few.others(4)
    part = search.part(clips < 6)
    np.testing.assert_array_equal(part.groups, clips[clips < 6])


def test_equal_windows_have_no_spacing_but_a_score():
    same = np.zeros((8, 4))
    for estimator, _ in FORMULAS.values():
        assert np.isfinite(scores(estimator, same, NEW, domains=DOMAINS[-12:-4])).all()


def test_smote_fills_the_target_domain_between_its_clips():
    detector = MeanNeighbourDistance(smote=0.5).fit(X, domains=DOMAINS)
    bank = detector.neighbours_.bank
    assert len(bank) == 50 + 25  # half of the source domain
    np.testing.assert_array_equal(bank[:56], X)
    added = bank[56:]
    assert ((added >= TARGET.min(axis=0) - 1e-5) & (added <= TARGET.max(axis=0) + 1e-5)).all()
    assert len(np.unique(added, axis=0)) == len(added)
    again = MeanNeighbourDistance(smote=0.5).fit(X, domains=DOMAINS)
    np.testing.assert_array_equal(again.score_samples(NEW), detector.score_samples(NEW))
    windows = MeanNeighbourDistance(smote=0.5).fit(X, NeighbourSearch(X, 1, np.repeat([0, 1, 2], [50, 3, 3])), DOMAINS)
    lines = [(a, b) for a in TARGET[:3] for b in TARGET[3:]]
    for point in windows.neighbours_.bank[56:]:  # on a line between windows of two clips
        assert min(distance(point, a) + distance(point, b) - distance(a, b) for a, b in lines) < 1e-6
    single = MeanNeighbourDistance(smote=1.0).fit(X[:51], domains=DOMAINS[:51])
    assert len(single.neighbours_.bank) == 51  # nothing to interpolate with
    with pytest.raises(ValueError, match="needs the domain of each of 56"):
        MeanNeighbourDistance(smote=0.5).fit(X)


def test_centroids_of_one_cluster_are_the_mean():
    expected = np.linalg.norm(NEW - X.mean(axis=0), axis=1)
    np.testing.assert_allclose(scores(CentroidDistance(1), X, NEW), expected, rtol=1e-5)


def test_centroids_are_of_the_source_domain_where_target_clips_are_kept_raw():
    centroids = KMeans(3, n_init=3, random_state=0).fit(SOURCE).cluster_centers_
    expected = [min(distance(x, y) for y in (*centroids, *TARGET)) for x in NEW]
    np.testing.assert_allclose(scores(CentroidDistance(3, raw_target=True), X, NEW), expected, rtol=1e-12)
    source = scores(CentroidDistance(3, raw_target=True), SOURCE, NEW, domains=DOMAINS[:50])
    np.testing.assert_array_equal(source, scores(CentroidDistance(3), SOURCE, NEW, domains=DOMAINS[:50]))


def test_an_outlier_factor_may_leave_out_the_windows_of_a_clip():
    doubled, clips = np.repeat(X, 2, axis=0), np.repeat(np.arange(56), 2)
    factor = scores(OutlierFactor(4, other_clips=True), doubled, NEW, groups=clips)
    assert (factor < 1e6).all()
    assert scores(OutlierFactor(1), doubled, NEW, groups=clips).max() > 1e6  # a window's only neighbour is its double
    single = scores(OutlierFactor(4, other_clips=True), X, NEW)
    np.testing.assert_array_equal(single, scores(OutlierFactor(4), X, NEW))


@pytest.mark.parametrize("block", [20_000_000, 100])
def test_kernel_densities_are_scikit_learns(block: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(neighbours, "_BLOCK", block)  # all at once, and row by row
    search = NeighbourSearch(X, 1)
    for bandwidth in (0.5, 1.0, 32.0):
        scores = KernelDensity(bandwidth).fit(X, search).score_samples(NEW)
        reference = SklearnKernelDensity(bandwidth=bandwidth, rtol=0).fit(X).score_samples(NEW)
        np.testing.assert_allclose(scores, reference, rtol=1e-9)
    assert len(search._squared) == (block > 100)


@pytest.mark.parametrize(
    "estimator",
    [
        MeanNeighbourDistance(9), OutlierFactor(9), LocalDensityDistance(9), CentroidDistance(9),
        PrincipalResidual(9), VarianceMinimised(9),
    ],
)  # fmt: skip
def test_too_few_windows_are_refused_and_parameters_are_kept(estimator):
    with pytest.raises(ValueError, match=r"needs \d+ normal windows or clips, there are 3"):
        copy(estimator).fit(X[:3])
    assert 9 in vars(estimator).values()


@pytest.mark.parametrize("bank", [X, np.repeat(X[:9], 3, axis=0)], ids=["different", "doubled"])
def test_shared_neighbours_give_what_each_estimator_finds_alone(bank: np.ndarray):
    shared = NeighbourSearch(bank, most=8)
    for estimator in (MeanNeighbourDistance(8), MeanNeighbourDistance(2), OutlierFactor(3), LocalDensityDistance(4),
                      VarianceMinimised(4)):  # fmt: skip
        alone = copy(estimator).fit(bank).score_samples(NEW)
        np.testing.assert_allclose(copy(estimator).fit(bank, shared).score_samples(NEW), alone, rtol=1e-6)
    plain = LocalOutlierFactor(n_neighbors=3, novelty=True, algorithm="brute").fit(bank)
    if bank is X:  # among equal windows, who is whose neighbour is open
        np.testing.assert_allclose(OutlierFactor(3).fit(bank).score_samples(NEW), plain.score_samples(NEW), rtol=1e-5)


def test_neighbours_are_searched_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(neighbours, "_FEW", 0)
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
