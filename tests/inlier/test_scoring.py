from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from rayasd.config import Config
from rayasd.data.catalog import Catalog, read_catalog, write_catalog
from rayasd.data.groups import with_groups
from rayasd.errors import UserError
from rayasd.evaluation.scores import read_scores
from rayasd.exposure.embedding import embed
from rayasd.exposure.training import train
from rayasd.inlier import bank as bank_of_clips
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


@pytest.mark.parametrize(("few", "folds"), [(9, 9), (8, 5)])
def test_normal_clips_are_scored_by_models_that_have_not_seen_them(
    spec_of: SpecOf, config: Config, monkeypatch: pytest.MonkeyPatch, few: int, folds: int
):
    """One at a time up to some number of clips, in ``inlier.calibration_folds`` beyond."""
    monkeypatch.setattr(bank_of_clips, "FEW", few)
    table = scored(spec_of, config, detectors=("knn-3", "gmm-1"), poolings=("mean",))
    normal = table.filter((pc.field("split") != "test") & (pc.field("detector") == "knn-3"))
    embeddings = pq.read_table(spec_of("embed").run.table(spec_of("embed").unit))
    bank = embeddings.filter((pc.field("split") != "test") & (pc.field("section") == "00"))
    X = features(bank, "embedding").reshape(-1, 3, 128)
    by_hand = []
    for clip in range(len(X)):
        others = X[np.arange(len(X)) % folds != clip % folds].reshape(-1, 128)
        distances = np.sort(np.linalg.norm(X[clip][:, None] - others[None], axis=2), axis=1)
        by_hand.append(distances[:, :3].mean())
    of_section = normal.filter(pc.field("section") == "00")
    assert of_section["clip"].to_pylist() == bank.filter(pc.field("window") == 0)["clip"].to_pylist()
    np.testing.assert_allclose(of_section["score"].to_numpy(), by_hand, rtol=1e-4, atol=1e-5)


def test_clips_of_a_group_are_scored_by_models_of_other_groups(spec_of: SpecOf, config: Config):
    spec = spec_of("embed", config=config)
    catalog = read_catalog(spec.run.catalog, spec.data_root)
    write_catalog(spec.run.catalog, with_groups(catalog, "section_00_source_train"))
    config = replace(config, exposure=replace(config.exposure, validation_fraction=0.0))
    table = scored(spec_of, config, detectors=("knn-1",), poolings=("mean",), fit_on="train", calibration_folds=2)
    normal = table.filter((pc.field("split") != "test") & (pc.field("section") == "00"))
    embeddings = pq.read_table(spec.run.table(spec.unit))
    bank = embeddings.filter((pc.field("split") == "train") & (pc.field("section") == "00"))
    X = features(bank, "embedding").reshape(-1, 3, 128)
    groups = np.array(bank.filter(pc.field("window") == 0)["group"].fill_null("").to_pylist())
    assert (groups != "").sum() == 8
    by_hand = []
    for clip in range(9):  # eight clips of one group, and one that is alone
        others = X[groups != groups[clip]].reshape(-1, 128)
        by_hand.append(np.linalg.norm(X[clip][:, None] - others[None], axis=2).min(axis=1).mean())
    np.testing.assert_allclose(normal["score"].to_numpy(), by_hand, rtol=1e-4, atol=1e-5)
    assert normal["group"].null_count == 1
    systems = read_scores(spec.run.table(spec_of("detect").unit))
    found = next(scores for key, scores in systems.items() if key.section == "00").calibrating
    assert (len(found.scores), len(set(found.groups)), found.kind) == (9, 2, "leave-one-out")


def test_how_a_normal_clips_score_came_about_is_said(spec_of: SpecOf, small_config: Config):
    train(spec_of("train"))
    table = scored(spec_of, small_config, detectors=("knn-1",), poolings=("mean",), fit_on="train")
    for split, how in (("test", [None]), ("train", ["trained-on"]), ("validation", ["held-out"])):
        assert pc.unique(table.filter(pc.field("split") == split)["calibration"]).to_pylist() == how


def test_held_out_target_clips_are_scored_though_detectors_are_fitted_to_the_source(
    spec_of: SpecOf, catalog: Catalog, config: Config
):
    config = replace(config, exposure=replace(config.exposure, hold_out="cross-fit", folds=2))
    moved = ("5_x.wav", "6_x.wav", "7_x.wav")
    rows = catalog.table.to_pylist()
    domain = pa.array(["target" if row["clip"].endswith(moved) else row["domain"] for row in rows])
    place = catalog.table.schema.get_field_index("domain")
    spec = spec_of("embed", config=config)
    write_catalog(spec.run.catalog, replace(catalog, table=catalog.table.set_column(place, "domain", domain)))
    rows = scored(spec_of, config, detectors=("knn-1",), poolings=("mean",), fit_on="source").to_pylist()
    target = [row for row in rows if row["split"] != "test" and row["domain"] == "target"]
    assert len(target) == 4  # half of four in each section
    assert {row["split"] for row in target} == {"validation"}
    assert sum(row["score"] > 0 for row in target) == 3  # one sounds like a clip of the source domain, sample by sample


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
    with pytest.raises(UserError, match="all detectors read outputs that this network does not have"):
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
