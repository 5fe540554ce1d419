"""Clusters of normal clips serve as attributes of machines that have none."""

import csv
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import adjusted_rand_score

from rayasd.config import Config
from rayasd.data.catalog import Catalog, scan, write_catalog
from rayasd.data.waveforms import decode
from rayasd.exposure import pseudo_attributes
from rayasd.exposure.clips import load_machine
from rayasd.exposure.device import choose_compute
from rayasd.exposure.embedding import embed
from rayasd.exposure.pseudo_attributes import _clustered, with_pseudo_attributes
from rayasd.exposure.training import train
from rayasd.inlier.scoring import detect
from rayasd.stages import ALL_MACHINES
from rayasd.unit import Progress, RunDirectory, Stopped
from tests.conftest import SpecOf, write_clip
from tests.exposure.test_training import history, with_exposure

CONDITIONS = (300.0, 700.0, 1500.0)
"""Frequencies at which a machine runs; no name tells which."""


@pytest.fixture(scope="module")
def hidden(tmp_path_factory: pytest.TempPathFactory, cache: Path, small_config: Config) -> Catalog:
    """Return a catalog of two machines of one section without attributes, each in three hidden conditions."""
    root = tmp_path_factory.mktemp("hidden")
    for m, machine in enumerate(("fan", "pump")):
        for n in range(24):
            frequency = CONDITIONS[n % 3] + 100 * m + n
            write_clip(root / machine / "train" / f"section_00_source_train_normal_{n:04}.wav", frequency, seed=n)
        for label in ("normal", "anomaly"):
            for n in range(3):
                name = f"section_00_source_test_{label}_{n:04}.wav"
                shift = 100 * m + 200 * (label == "anomaly")
                write_clip(root / machine / "source_test" / name, CONDITIONS[n] + shift, seed=70 + n)
    return decode(scan(root), small_config.data, cache)


@pytest.fixture
def hidden_spec(spec_of: SpecOf, hidden: Catalog, tmp_path: Path) -> SpecOf:
    write_catalog(RunDirectory(tmp_path / "run").catalog, hidden)
    return lambda *words, **fields: spec_of(*words, data_root=hidden.root, **fields)


@pytest.mark.parametrize("method", ["ward", "k-means"])
def test_clusters_are_the_hidden_conditions(
    hidden: Catalog, hidden_spec: SpecOf, small_config: Config, tmp_path: Path, method: str
):
    config = with_exposure(small_config, clusters=3, clusters_method=method)
    clips = load_machine(hidden, "fan", hidden_spec(config=config))
    reports: list[Progress] = []
    found = with_pseudo_attributes(clips, config, choose_compute("cpu", "float32"), tmp_path, reports.append).table
    train = [row for row in found.to_pylist() if row["split"] == "train"]
    assert len(reports) == len(train)  # a sign of life for each: the driver ends a unit that is silent for long
    truth = [int(Path(row["clip"]).stem[-4:]) % 3 for row in train]
    assert adjusted_rand_score(truth, [row["attributes"] for row in train]) > 0.8
    assert {row["attributes"] for row in train} == {"cluster-0", "cluster-1", "cluster-2"}
    assert {row["attributes"] for row in found.to_pylist() if row["split"] == "test"} == {""}


def test_a_machine_with_attributes_keeps_them(catalog: Catalog, spec_of: SpecOf, small_config: Config, tmp_path: Path):
    config = with_exposure(small_config, clusters=2)
    clips = load_machine(catalog, "fan", spec_of(config=config))
    names = [f"speed_{n % 2}" for n in range(clips.table.num_rows)]
    table = clips.table.set_column(clips.table.column_names.index("attributes"), "attributes", [names])
    known = replace(clips, table=table)
    assert with_pseudo_attributes(known, config, choose_compute("cpu", "float32"), tmp_path) is known
    assert with_pseudo_attributes(clips, small_config, choose_compute("cpu", "float32"), tmp_path) is clips


def test_small_clusters_join_the_nearest():
    rng = np.random.default_rng(0)
    centres = np.repeat([[0.0, 0.0], [10.0, 10.0], [11.0, 11.0], [40.0, 40.0]], [10, 10, 3, 10], axis=0)
    places = _clustered((centres + rng.normal(0, 0.05, centres.shape)).astype(np.float32), 4, "ward")
    assert Counter(places) == {0: 10, 1: 13, 2: 10}
    assert places[:11] == [0] * 10 + [1]
    assert _clustered(rng.normal(size=(9, 4)).astype(np.float32), 5, "ward") == [0] * 9  # fewer than two fives
    assert _clustered(np.zeros((20, 4), np.float32), 1, "k-means") == [0] * 20


@pytest.mark.slow
def test_one_section_has_products_to_tell_apart(hidden_spec: SpecOf, small_config: Config):
    config = with_exposure(small_config, clusters=3, epochs=8, mixup_schedule="never", keep_every=0)
    config = replace(config, inlier=replace(config.inlier, detectors=("knn-1", "product-logit"), poolings=("mean",)))
    spec = hidden_spec(config=config)
    train(spec)
    with (spec.output / "clusters.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["machine"] for row in rows} == {"fan"}  # clips of other machines have no products
    assert len(rows) == 24
    assert json.loads((spec.output / "config.json").read_text())["classes"] == [f"00/cluster-{n}" for n in range(3)]
    losses = [row["product_loss"] for row in history(spec)]
    assert losses[0] > 0.1
    assert losses[-1] < 0.8 * losses[0]
    embed(hidden_spec("embed", config=config))
    detect(spec := hidden_spec("detect", config=config))
    scores = pq.read_table(spec.run.table(spec.unit))
    assert scores["score"].null_count == 0
    assert set(scores["detector"].to_pylist()) == {"knn-1", "product-logit"}


@pytest.mark.slow
def test_a_shared_network_tells_clusters_apart(hidden_spec: SpecOf, small_config: Config):
    config = with_exposure(small_config, clusters=3, objective="adacos", scope="all")
    spec = hidden_spec(machine=ALL_MACHINES, config=config)
    train(spec)
    classes = json.loads((spec.output / "config.json").read_text())["classes"]
    assert classes == [f"{machine}/00/cluster-{n}/source" for machine in ("fan", "pump") for n in range(3)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "others", [lambda count: [0] * count, lambda count: [3 * n // count for n in range(count)]], ids=["fewer", "others"]
)
def test_a_training_begins_anew_where_its_clips_are_clustered_into_others(
    hidden_spec: SpecOf, small_config: Config, monkeypatch: pytest.MonkeyPatch, others: Callable[[int], list[int]]
):
    config = with_exposure(small_config, clusters=3, objective="adacos", scope="all", epochs=2)
    spec, reports = hidden_spec(machine=ALL_MACHINES, config=config), list[Progress]()
    with pytest.raises(Stopped):
        train(spec, lambda progress: progress.done == 1)
    monkeypatch.setattr(pseudo_attributes, "_clustered", lambda features, *_: others(len(features)))
    train(spec, reports.append)  # as on another host: features of a GPU are not those of a CPU
    begun = next(report for report in reports if report.total)
    assert begun.done == 0  # what heads have learned is of other classes


def test_clusters_depend_on_nothing_that_training_does_not(
    hidden: Catalog, hidden_spec: SpecOf, small_config: Config, tmp_path: Path
):
    found = []
    for windows in (1, 4):
        config = with_exposure(small_config, clusters=3, clusters_by="mel-timm")
        config = replace(config, embedding=replace(config.embedding, num_windows=windows))
        clips = load_machine(hidden, "fan", hidden_spec(config=config))
        clustered = with_pseudo_attributes(clips, config, choose_compute("cpu", "float32"), tmp_path)
        assert clustered.clustered
        found.append(clustered.table["attributes"].to_pylist())
    assert found[0] == found[1]
