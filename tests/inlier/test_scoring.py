from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from rayasd.config import Config
from rayasd.exposure.embedding import embed
from rayasd.inlier.scoring import detect
from tests.conftest import SpecOf


@pytest.fixture
def config(small_config: Config) -> Config:
    """Statistics need no training."""
    return replace(small_config, network=replace(small_config.network, extractor="statistics"))


def scored(spec_of: SpecOf, config: Config, **inlier: object) -> pa.Table:
    config = replace(config, inlier=replace(config.inlier, **inlier))  # type: ignore[arg-type]
    embed(spec_of("embed", config=config))
    spec = spec_of("detect", config=config)
    detect(spec)
    return pq.read_table(spec.run.table(spec.unit))


def test_one_row_a_test_clip_detector_and_pooling(spec_of: SpecOf, config: Config):
    table = scored(spec_of, config, detectors=("knn-1", "mahalanobis"), poolings=("mean", "max"))
    assert table.num_rows == 24 * 2 * 2
    assert table["score"].null_count == 0
    keys = zip(*(table[name].to_pylist() for name in ("clip", "detector", "pooling")), strict=True)
    assert len(set(keys)) == table.num_rows
    assert set(table["split"].to_pylist()) == {"test"}


def test_anomalies_of_another_tone_score_higher(spec_of: SpecOf, config: Config):
    table = scored(spec_of, config, detectors=("knn-1",), poolings=("mean",), fit_on="train")
    mean = {label: pc.mean(table.filter(pc.field("label") == label)["score"]).as_py() for label in (0, 1)}
    assert mean[1] > mean[0]


def test_a_section_is_scored_against_its_own_normal_clips(spec_of: SpecOf, config: Config):
    on_train = scored(spec_of, config, detectors=("knn-1",), poolings=("mean",), fit_on="train")
    on_source = scored(spec_of, config, detectors=("knn-1",), poolings=("mean",), fit_on="source")
    on_validation = scored(spec_of, config, detectors=("knn-1",), poolings=("mean",), fit_on="validation")
    # a bank that is part of another never has a nearer neighbour
    assert pc.all(pc.less_equal(on_train["score"], on_source["score"])).as_py()
    assert pc.all(pc.less_equal(on_source["score"], on_validation["score"])).as_py()
    assert pc.any(pc.less(on_source["score"], on_validation["score"])).as_py()


def test_a_detector_that_cannot_be_fitted_is_a_failed_row_with_its_reason(spec_of: SpecOf, config: Config):
    table = scored(spec_of, config, detectors=("knn-1", "knn-500", "gmm-500", "lof-500"), poolings=("mean",))
    for name, said in (
        ("knn-500", "ValueError: needs 500 windows, the section has 27"),
        ("gmm-500", "ValueError: "),
        ("lof-500", "ValueError: needs 501 windows"),
    ):
        rows = table.filter(pc.field("detector") == name)
        assert rows["score"].null_count == rows.num_rows == 24
        assert rows["reason"][0].as_py().startswith(said)
    good = table.filter(pc.field("detector") == "knn-1")
    assert good["score"].null_count == 0
    assert good["reason"].null_count == good.num_rows


def test_features_that_are_not_there_are_a_reason(spec_of: SpecOf, config: Config):
    table = scored(spec_of, config, detectors=("knn-1",), poolings=("mean",), features="logits")
    assert table["reason"][0].as_py() == "ValueError: inlier.features = logits: these embeddings have no product_logits"
