"""Clips pooled before the detector, and banks of a machine, through the detect stage."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayasd.config import Config
from rayasd.errors import UserError
from rayasd.exposure.embedding import embed
from rayasd.exposure.training import train
from rayasd.inlier.features import features
from rayasd.inlier.fusion import z_by_others
from rayasd.inlier.pooling import check_poolings, find_clip_pooling, level_of
from rayasd.inlier.scoring import detect
from tests.conftest import SpecOf
from tests.inlier.test_scoring import scored

CLIPS = np.random.default_rng(0).standard_normal((5, 7, 3))


@pytest.fixture
def config(small_config: Config) -> Config:
    """Statistics need no training."""
    return replace(small_config, network=replace(small_config.network, encoder="statistics", train="frozen"))


def by_hand(name: str, windows: np.ndarray) -> np.ndarray:
    """Pool the windows (T, D) of one clip by its formula."""
    mean = sum(windows) / len(windows)
    if name == "clip-mean":
        return mean
    if name == "clip-mean-std":
        return np.concatenate([mean, np.sqrt(sum((x - mean) ** 2 for x in windows) / len(windows))])
    p = float(name.rpartition("-")[2])
    if name.startswith("clip-gem"):
        return np.array([sum(max(x, 0) ** p for x in column) / len(column) for column in windows.T]) ** (1 / p)
    d = [np.sqrt(((x - mean) ** 2).sum()) for x in windows]
    weights = [(1 + each / max(d)) ** p for each in d]
    return sum(w * x for w, x in zip(weights, windows, strict=True)) / sum(weights)


@pytest.mark.parametrize(
    "name", ["clip-mean", "clip-mean-std", "clip-gem-3", "clip-gem-1.5", "clip-rdp-4", "clip-rdp-19"]
)
def test_clips_are_pooled_by_the_formulas(name: str):
    expected = [by_hand(name, windows) for windows in CLIPS]
    np.testing.assert_allclose(find_clip_pooling(name)(CLIPS), expected, rtol=1e-12)


@settings(deadline=None)
@given(order=st.permutations(range(7)), scale=st.floats(0.1, 100))
def test_order_of_the_windows_does_not_matter_and_scale_carries_over(order: list[int], scale: float):
    for name in ("clip-mean", "clip-mean-std", "clip-gem-3", "clip-rdp-4"):
        pool = find_clip_pooling(name)
        np.testing.assert_allclose(pool(CLIPS[:, order] * scale), pool(CLIPS) * scale, rtol=1e-9, atol=1e-9)


def test_limits_of_the_poolings():
    np.testing.assert_allclose(find_clip_pooling("clip-rdp-0")(CLIPS), CLIPS.mean(axis=1))
    np.testing.assert_allclose(find_clip_pooling("clip-gem-1")(np.abs(CLIPS)), np.abs(CLIPS).mean(axis=1))
    alike = np.ones((2, 4, 3))
    for name in ("clip-mean", "clip-gem-3", "clip-rdp-5000"):
        np.testing.assert_allclose(find_clip_pooling(name)(alike), np.ones((2, 3)))
    assert level_of("clip-rdp-4") == "clip-rdp-4"
    assert level_of("mean") == level_of("max") == "windows"
    check_poolings(["mean", "clip-mean", "clip-gem-2.5"])
    for name in ("clip-", "clip-median", "clip-gem", "clip-gem-0", "clip-rdp-x", "clip-os.system"):
        with pytest.raises(UserError, match="unknown pooling"):
            check_poolings([name])


DETECTORS = ("knn-1", "ldn-1", "varmin-1", "domain-nn", "z-min(knn-1, domain-nn)")


def bank_of(spec_of: SpecOf, section: str | None, split: str = "train") -> pa.Table:
    table = pq.read_table(spec_of("embed").run.table(spec_of("embed").unit))
    rows = pc.field("split") == "test" if split == "test" else pc.field("split") != "test"
    return table.filter(rows if section is None else rows & (pc.field("section") == section))


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_detectors_of_clips_beside_those_of_windows(spec_of: SpecOf, config: Config, metric: str):
    poolings = ("mean", "clip-mean", "clip-mean-std", "clip-gem-3", "clip-rdp-4")
    table = scored(spec_of, config, detectors=DETECTORS, poolings=poolings, fit_on="train", metric=metric)
    assert table.num_rows == (24 + 18) * len(DETECTORS) * len(poolings)
    assert table["score"].null_count == 0
    windows = scored(spec_of, config, detectors=DETECTORS, poolings=("mean",), fit_on="train", metric=metric)
    assert table.filter(pc.field("pooling") == "mean").to_pylist() == windows.to_pylist()
    of = (pc.field("section") == "03") & (pc.field("detector") == "knn-1") & (pc.field("pooling") == "clip-mean")
    rows = table.filter(of)

    def clips(split: str) -> np.ndarray:
        raw = features(bank_of(spec_of, "03", split), "embedding").reshape(-1, 3, 128).astype(float).mean(axis=1)
        return raw / np.linalg.norm(raw, axis=1, keepdims=True) if metric == "cosine" else raw

    normal, test = clips("train"), clips("test")
    among = np.linalg.norm(normal[:, None] - normal, axis=2)
    fold = np.arange(len(normal)) % 5
    among[fold[:, None] == fold] = np.inf
    expected = np.concatenate([np.linalg.norm(test[:, None] - normal, axis=2).min(axis=1), among.min(axis=1)])
    np.testing.assert_allclose(rows["score"].to_numpy(), expected, rtol=1e-4, atol=1e-5)


def test_a_fusion_of_detectors_of_clips_is_scaled_by_clips_scores(spec_of: SpecOf, config: Config):
    table = scored(spec_of, config, detectors=DETECTORS, poolings=("clip-rdp-4",), fit_on="train")

    def of(detector: str) -> np.ndarray:
        rows = table.filter((pc.field("section") == "00") & (pc.field("detector") == detector))
        return rows["score"].to_numpy()

    z = [(s - s[12:].mean()) / s[12:].std() for s in (of("knn-1"), of("domain-nn"))]
    np.testing.assert_allclose(of("z-min(knn-1, domain-nn)")[:12], np.minimum(*z)[:12])
    by_others = np.minimum(*(z_by_others(of(detector)[12:]) for detector in ("knn-1", "domain-nn")))
    np.testing.assert_allclose(of("z-min(knn-1, domain-nn)")[12:], by_others)


@pytest.mark.parametrize("pooling", ["min", "clip-mean"])
def test_a_bank_of_the_machine_holds_the_clips_of_all_sections(spec_of: SpecOf, config: Config, pooling: str):
    given_ = {"detectors": ("knn-1", "z-mean(knn-1, ldn-2)"), "poolings": (pooling,), "fit_on": "train"}
    table, own = scored(spec_of, config, per="machine", **given_), scored(spec_of, config, **given_)
    assert table.drop(["score"]).equals(own.drop(["score"]))  # the same clips, each once, under its own section
    assert table["score"].null_count == 0
    level = level_of(pooling)
    bank = features(bank_of(spec_of, None), "embedding", level=level, num_windows=3)
    for section in ("00", "03"):
        test = features(bank_of(spec_of, section, "test"), "embedding", level=level, num_windows=3)
        nearest = np.linalg.norm(test[:, None] - bank, axis=2).min(axis=1).reshape(12, -1).min(axis=1)
        of = (pc.field("section") == section) & (pc.field("split") == "test") & (pc.field("detector") == "knn-1")
        np.testing.assert_allclose(table.filter(of)["score"].to_numpy(), nearest, rtol=1e-4, atol=1e-5)
    test = pc.field("split") == "test"
    of_knn = pc.field("detector") == "knn-1"
    smaller = pc.less_equal(table.filter(test & of_knn)["score"], own.filter(test & of_knn)["score"])
    assert pc.all(smaller).as_py()


def test_outlier_exposure_alone_stays_with_its_section(spec_of: SpecOf, small_config: Config):
    trained = replace(small_config, exposure=replace(small_config.exposure, epochs=1))
    train(spec_of("train", config=trained))
    given_ = {"detectors": ("product-logit",), "poolings": ("mean", "clip-mean"), "fit_on": "train"}
    table, own = scored(spec_of, trained, per="machine", **given_), scored(spec_of, trained, **given_)
    assert table.equals(own)
    by_pooling = [table.filter(pc.field("pooling") == name)["score"].to_numpy() for name in ("mean", "clip-mean")]
    np.testing.assert_allclose(*by_pooling, rtol=1e-4, atol=1e-5)  # a mean of logits either way


@pytest.mark.parametrize("per", ["section", "machine"])
def test_a_bank_without_clips_is_a_reason(spec_of: SpecOf, config: Config, per: str):
    spec = spec_of("embed", config=config)
    embed(spec)
    path = spec.run.table(spec.unit)
    table = pq.read_table(path)
    pq.write_table(table.filter((pc.field("split") == "test") | (pc.field("section") == "03")), path)
    inlier = replace(config.inlier, detectors=("knn-1",), poolings=("mean", "clip-mean"), fit_on="train", per=per)
    spec = spec_of("detect", config=replace(config, inlier=inlier))
    detect(spec)
    rows = pq.read_table(spec.run.table(spec.unit)).filter(pc.field("section") == "00")
    assert rows.num_rows == 12 * 2  # no normal clips, and a bank of the other section or none
    reasons = {"section": {"the section has no normal clips to fit to"}, "machine": {None}}
    assert set(rows["reason"].to_pylist()) == reasons[per]
