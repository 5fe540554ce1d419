from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from rayasd.config import Config
from rayasd.errors import UserError
from rayasd.exposure.embedding import embed
from rayasd.exposure.training import train
from rayasd.inlier.features import features
from rayasd.inlier.scoring import detect
from tests.conftest import SpecOf


@pytest.fixture
def config(small_config: Config) -> Config:
    """Statistics need no training."""
    return replace(small_config, network=replace(small_config.network, encoder="statistics", train="frozen"))


def scored(spec_of: SpecOf, config: Config, **inlier: object) -> pa.Table:
    config = replace(config, inlier=replace(config.inlier, **inlier))  # type: ignore[arg-type]
    embed(spec_of("embed", config=config))
    spec = spec_of("detect", config=config)
    detect(spec)
    return pq.read_table(spec.run.table(spec.unit))


def test_one_row_a_test_clip_detector_and_pooling(spec_of: SpecOf, config: Config):
    table = scored(spec_of, config, detectors=("knn-1", "mahalanobis"), poolings=("mean", "max"))
    assert table.num_rows == (24 + 18) * 2 * 2
    assert table["score"].null_count == 0
    keys = zip(*(table[name].to_pylist() for name in ("clip", "detector", "pooling")), strict=True)
    assert len(set(keys)) == table.num_rows
    splits = table["split"].to_pylist()
    assert {split: splits.count(split) for split in set(splits)} == {"test": 96, "train": 64, "validation": 8}
    assert set(table["checkpoint"].to_pylist()) == {0}


def test_normal_clips_are_scored_by_models_that_have_not_seen_them(spec_of: SpecOf, config: Config):
    table = scored(spec_of, config, detectors=("knn-1", "gmm-1"), poolings=("mean",))
    normal = table.filter((pc.field("split") != "test") & (pc.field("detector") == "knn-1"))
    embeddings = pq.read_table(spec_of("embed").run.table(spec_of("embed").unit))
    bank = embeddings.filter((pc.field("split") != "test") & (pc.field("section") == "00"))
    X = features(bank, "embedding").reshape(-1, 3, 128)
    by_hand = []
    for clip in range(len(X)):
        others = X[np.arange(len(X)) % 5 != clip % 5].reshape(-1, 128)
        by_hand.append(np.linalg.norm(X[clip][:, None] - others[None], axis=2).min(axis=1).mean())
    of_section = normal.filter(pc.field("section") == "00")
    assert of_section["clip"].to_pylist() == bank.filter(pc.field("window") == 0)["clip"].to_pylist()
    np.testing.assert_allclose(of_section["score"].to_numpy(), by_hand, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("exposure", "read"),
    [({}, {"knn-1", "product-logit", "machine-logit"}),
     ({"lambda_product": 0.0}, {"knn-1", "machine-logit"}),
     ({"lambda_machine": 0.0}, {"knn-1", "product-logit"}),
     ({"epochs": 0}, {"knn-1"})],
)  # fmt: skip
def test_no_detector_reads_a_head_that_was_not_trained(
    spec_of: SpecOf, small_config: Config, exposure: dict[str, float], read: set[str]
):
    config = replace(small_config, exposure=replace(small_config.exposure, epochs=1))
    config = replace(config, exposure=replace(config.exposure, **exposure))  # type: ignore[arg-type]
    train(spec_of("train", config=config))
    table = scored(spec_of, config, detectors=("knn-1", "product-logit", "machine-logit"), poolings=("mean",))
    assert set(table["detector"].to_pylist()) == read


def test_without_folds_there_are_no_training_scores(spec_of: SpecOf, config: Config):
    table = scored(spec_of, config, detectors=("knn-1",), poolings=("mean",), calibration_folds=0)
    assert set(table["split"].to_pylist()) == {"test"}
    assert table["score"].null_count == 0


def test_a_fusion_is_of_scores_scaled_by_the_sections_training_scores(spec_of: SpecOf, config: Config):
    table = scored(
        spec_of, config, detectors=("knn-1", "z-mean(knn-1, mahalanobis)", "z-min(knn-1, gmm-500)"), poolings=("max",)
    )
    alone = scored(spec_of, config, detectors=("knn-1", "mahalanobis"), poolings=("max",))

    def z(detector: str) -> np.ndarray:
        rows = alone.filter((pc.field("detector") == detector) & (pc.field("section") == "03"))
        training = rows.filter(pc.field("split") != "test")["score"].to_numpy()
        return (rows.filter(pc.field("split") == "test")["score"].to_numpy() - training.mean()) / training.std()

    fused = table.filter(pc.starts_with(pc.cast(table["detector"], pa.string()), "z-mean"))
    found = fused.filter((pc.field("section") == "03") & (pc.field("split") == "test"))["score"].to_numpy()
    np.testing.assert_allclose(found, (z("knn-1") + z("mahalanobis")) / 2)
    failed = table.filter(pc.starts_with(pc.cast(table["detector"], pa.string()), "z-min"))
    assert failed["score"].null_count == failed.num_rows
    assert failed["reason"][0].as_py().startswith("gmm-500: ValueError")
    assert set(table["detector"].to_pylist()) == {"knn-1", "z-mean(knn-1, mahalanobis)", "z-min(knn-1, gmm-500)"}


def test_a_pooling_that_raises_is_its_rows_reason(spec_of: SpecOf, config: Config):
    table = scored(spec_of, config, detectors=("knn-1",), poolings=("mean", "numpy.ptp(axis=0)"))
    wrong = table.filter(pc.field("pooling") == "numpy.ptp(axis=0)")
    assert wrong["score"].null_count == wrong.num_rows > 0
    assert "no finite number for each" in wrong["reason"][0].as_py()
    assert table.filter(pc.field("pooling") == "mean")["score"].null_count == 0


def test_anomalies_of_another_tone_score_higher(spec_of: SpecOf, config: Config):
    table = scored(spec_of, config, detectors=("knn-1",), poolings=("mean",), fit_on="train")
    table = table.filter(pc.field("split") == "test")
    mean = {label: pc.mean(table.filter(pc.field("label") == label)["score"]).as_py() for label in (0, 1)}
    assert mean[1] > mean[0]


def test_a_section_is_scored_against_its_own_normal_clips(spec_of: SpecOf, config: Config):
    on_train = scored(spec_of, config, detectors=("knn-1",), poolings=("mean",), fit_on="train")
    on_source = scored(spec_of, config, detectors=("knn-1",), poolings=("mean",), fit_on="source")
    on_validation = scored(spec_of, config, detectors=("knn-1",), poolings=("mean",), fit_on="validation")
    on_train, on_source, on_validation = (
        table.filter(pc.field("split") == "test") for table in (on_train, on_source, on_validation)
    )
    # a bank that is part of another never has a nearer neighbour
    assert pc.all(pc.less_equal(on_train["score"], on_source["score"])).as_py()
    assert pc.all(pc.less_equal(on_source["score"], on_validation["score"])).as_py()
    assert pc.any(pc.less(on_source["score"], on_validation["score"])).as_py()


def test_a_detector_that_cannot_be_fitted_is_a_failed_row_with_its_reason(spec_of: SpecOf, config: Config):
    table = scored(spec_of, config, detectors=("knn-1", "knn-500", "gmm-500", "lof-500"), poolings=("mean",))
    for name, said in (
        ("knn-500", "ValueError: needs 500 normal windows or clips, there are 27"),
        ("gmm-500", "ValueError: "),
        ("lof-500", "ValueError: needs 501 normal windows or clips"),
    ):
        rows = table.filter(pc.field("detector") == name)
        assert rows["score"].null_count == rows.num_rows == 24 + 18
        assert rows["reason"][0].as_py().startswith(said)
    good = table.filter(pc.field("detector") == "knn-1")
    assert good["score"].null_count == 0
    assert good["reason"].null_count == good.num_rows


def test_features_that_are_not_there_are_a_reason(spec_of: SpecOf, config: Config):
    table = scored(spec_of, config, detectors=("knn-1",), poolings=("mean",), features="logits")
    assert table["reason"][0].as_py() == "ValueError: these embeddings have no product_logits"


def test_outlier_exposure_alone_is_left_out_where_nothing_was_exposed(spec_of: SpecOf, config: Config):
    table = scored(
        spec_of, config, detectors=("knn-1", "product-logit", "z-mean(knn-1, machine-logit)"), poolings=("mean",)
    )
    assert set(table["detector"].to_pylist()) == {"knn-1"}
    with pytest.raises(UserError, match="every detector reads an output that is not trained here"):
        scored(spec_of, config, detectors=("product-logit",))


class WithFeatures:
    """A scikit-learn-style class with a parameter that happens to be called so."""

    def __init__(self, features: int = 10) -> None:
        self.features = features

    def fit(self, X):
        return self

    def score_samples(self, X):
        return X[:, 0]


def test_a_parameter_called_features_is_nothing_special(spec_of: SpecOf, config: Config):
    name = "tests.inlier.test_scoring.WithFeatures(features=3)"
    table = scored(spec_of, config, detectors=("knn-1", name), poolings=("mean",))
    assert set(table["detector"].to_pylist()) == {"knn-1", name}
    assert table["score"].null_count == 0
