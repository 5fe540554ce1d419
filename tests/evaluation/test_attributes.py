from pathlib import Path

import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from rayasd.data.ground_truth import scan_labelled
from rayasd.data.naming import attribute_values
from rayasd.data.synthetic import SynthesisPlan, synthesize
from rayasd.evaluation.cells import aucs_by_attribute, labels_of
from rayasd.study.study import Study
from tests.command import Rayasd
from tests.conftest import small_sweep


def test_values_of_names_are_pairs_or_one_word():
    assert attribute_values("vel_4_loc_D") == ["vel=4", "loc=D"]
    assert attribute_values("outer-race") == ["outer-race"]
    assert attribute_values("strength_1_ambient") == ["strength_1_ambient"]
    assert attribute_values("noAttribute") == attribute_values("") == []


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    plan = SynthesisPlan(year=2023, machines=("fan",), num_source_train=4, num_target_train=2, num_test=9, seconds=0.5)
    synthesize(tree := tmp_path_factory.mktemp("tree") / "data", plan, num_workers=1)
    return tree


def test_auc_by_attribute_equals_one_computed_from_names_and_scores(rayasd: Rayasd, tree: Path, tmp_path: Path):
    run = tmp_path / "run"
    one = ("--variants", "statistics", "--set", "inlier.detectors=knn-1", "--set", "inlier.poolings=mean")
    assert rayasd(*small_sweep(tree, run, *one)).returncode == 0
    (file,) = (run / "scores").rglob("*.parquet")
    rows = [row for row in pq.read_table(file, partitioning=None).to_pylist() if row["split"] == "test"]
    expected = {
        f"speed={n}": roc_auc_score(
            ["anomaly" in row["clip"] for row in rows if row["clip"].endswith(f"speed_{n}.wav")],
            [row["score"] for row in rows if row["clip"].endswith(f"speed_{n}.wav")],
        )
        for n in range(3)
    }
    report = Study.open(run).report()
    names = {row["clip"]: f"{Path(row['clip']).stem[-7:]}{'_fault_loose' * row['label']}" for row in rows}
    found = aucs_by_attribute(
        report.results.scored, labels_of(report.catalog.table), names, report.results.cells, "statistics"
    )
    assert {v.value: v.auc for v in found if v.value != "fault=loose"} == pytest.approx(expected, abs=1e-12)
    assert {v.value: (v.num_normal, v.num_anomaly) for v in found} == {
        **dict.fromkeys(expected, (6, 6)), "fault=loose": (18, 18)
    }  # fmt: skip
    (kind,) = [v for v in found if v.value == "fault=loose"]
    assert kind.of_all_normal  # no normal clip has a fault
    assert kind.auc == pytest.approx(roc_auc_score(["anomaly" in r["clip"] for r in rows], [r["score"] for r in rows]))
    shown = rayasd("report", run, "--by-attribute").stdout
    assert f"fan      speed=1    {100 * expected['speed=1']:.2f}" in shown
    assert "attributes of fan: speed=0 15, speed=1 14, speed=2 13" in rayasd("data", "check", tree).stdout


def test_files_beside_the_clips_tell_attributes_that_names_do_not(tmp_path: Path, tree: Path):
    folder = tmp_path / "fan"
    for name in ("section_00_source_train_normal_0000", "section_00_source_test_normal_0001_told_7"):
        (folder / ("train" if "train" in name else "test")).mkdir(parents=True, exist_ok=True)
        (folder / ("train" if "train" in name else "test") / f"{name}.wav").touch()
    (folder / "attributes_00.csv").write_text(
        "file_name,d1p,d1v,d2p,d2v\n"
        "fan/train/section_00_source_train_normal_0000.wav,vel,4,loc,D\n"
        "fan/test/section_00_source_test_normal_0001_told_7.wav,vel,5,,\n"
    )
    assert scan_labelled(tmp_path, None).table["attributes"].to_pylist() == ["told_7", "vel_4_loc_D"]
