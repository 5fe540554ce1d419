"""Studies through the command line: curves, ensembles, other rules for a report, a submission."""

import csv
import json
from pathlib import Path
from xml.etree import ElementTree

import pyarrow.parquet as pq
import pytest
import yaml
from scipy.stats import hmean
from sklearn.metrics import roc_auc_score

from rayasd.unit import RunDirectory
from tests.command import Rayasd, call
from tests.conftest import small_sweep

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def study(tree: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run directory of two seeds of two variants that differ in the number of real anomalies."""
    run = tmp_path_factory.mktemp("study") / "run"
    more = ("--set", "exposure.epochs=1", "--set", "evaluation.ensembles=seeds,greedy", "--seeds", "0-1")
    done = call(*small_sweep(tree, run, *more, "--vary", "exposure.real_anomalies=0,2"), cache=cache)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "both-real_anomalies: exposure.real_anomalies" in done.stdout
    return run


def test_a_curve_is_drawn_over_the_same_test_clips(study: Path):
    cells = pq.read_table(RunDirectory(study).cells).to_pylist()
    assert {cell["variant"] for cell in cells} == {
        "both-real_anomalies-0", "both-real_anomalies-2", "both-real_anomalies-0+seeds",
        "both-real_anomalies-2+seeds", "all+greedy",
    }  # fmt: skip
    assert {cell["num_anomaly"] for cell in cells} == {2}  # of 3, one is set aside in each domain, trained on or not
    markdown = RunDirectory(study).leaderboard("md").read_text()
    assert "| exposure.real_anomalies |" in markdown
    picture = study / "plots/both-real_anomalies-exposure.real_anomalies.svg"
    drawn = ElementTree.parse(picture).getroot()
    said = " ".join(drawn.itertext())
    assert "score" in said
    assert "source AUC" in said
    assert f"](plots/{picture.name})" in markdown


def test_models_differ_by_what_they_were_shown(study: Path):
    weights = {p.parent.parent.parent.name: p.read_bytes() for p in study.glob("models/*/fan/seed=0/model.safetensors")}
    assert len(set(weights.values())) == 2


def test_a_report_by_other_rules(study: Path, rayasd: Rayasd):
    shown = rayasd("report", study, "--set", "evaluation.selection=leave-one-section-out", "--oracle")
    assert shown.returncode == 0, shown.stderr
    assert "Held out: in each section counts the system that is best on all other sections" in shown.stdout
    assert "any variant" in shown.stdout
    assert "any variant+seeds" in shown.stdout
    assert "oracle" in shown.stdout
    before = (study / "cells.parquet").read_bytes()
    shown = rayasd("report", study, "--set", "evaluation.year=2022", "--out", study.parent / "by-2022")
    assert "Score: DCASE 2022" in shown.stdout
    assert (study / "cells.parquet").read_bytes() == before
    cells = pq.read_table(study.parent / "by-2022/cells.parquet")
    assert set(cells["domain"].to_pylist()) == {"source", "target", "both"}
    refused = rayasd("report", study, "--set", "exposure.epochs=5")
    assert refused.returncode == 2
    assert "a report can change evaluation.* alone" in refused.stderr
    assert rayasd("report", study).returncode == 0


def test_source_and_target_stand_side_by_side(study: Path, rayasd: Rayasd):
    assert rayasd("report", study).returncode == 0
    board = rayasd("leaderboard", study, "--format", "json")
    for row in json.loads(board.stdout):
        assert row["year"] == 2021
        assert 0 <= row["source_auc"] <= 1
        assert 0 <= row["target_auc"] <= 1
    compared = rayasd("compare", study, study, "--variants", "both-real_anomalies-2+seeds,both-real_anomalies-0")
    assert compared.returncode == 0, compared.stderr
    assert compared.stdout.split()[:6] == ["source", "target", "system", "score", "AUC", "AUC"]
    assert "Mean AUC: run both-real_anomalies-2+seeds" in compared.stdout


def test_a_submission_is_scored_by_others_as_by_us(study: Path, tree: Path, rayasd: Rayasd):
    assert rayasd("report", study).returncode == 0
    label = "Doe_Lab_task2_1"
    done = rayasd("export", "dcase", study, "--system-label", label, "--entry", "both-real_anomalies-2",
                  "--seed", 1, "--author", "Doe,Jo,jo@lab.org,Lab")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (
        "decisions: conformal, false-alarm rate of at most 0.5, by scores of the section's normal training clips"
        in done.stdout
    )
    assert "section's normal training clips; normal clips: held-out" in done.stdout
    folder = study / "submission" / label
    assert len(list(folder.glob("*.csv"))) == 2 * 3 * 2 * 2
    values, decided = [], []
    for machine in ("fan", "pump", "valve"):
        for domain in ("source", "target"):
            file = folder / f"anomaly_score_{machine}_section_03_{domain}_test.csv"
            rows = list(csv.reader(file.open(newline="")))
            names = [name for name, _ in rows]
            assert names == sorted(names)
            assert all((tree / machine / f"{domain}_test" / name).exists() for name in names)
            truth = ["anomaly" in name for name in names]
            scores = [float(score) for _, score in rows]
            values += [roc_auc_score(truth, scores), roc_auc_score(truth, scores, max_fpr=0.1)]
            decisions = list(
                csv.reader((folder / file.name.replace("anomaly_score", "decision_result")).open(newline=""))
            )
            assert [name for name, _ in decisions] == names
            decided += [decision for _, decision in decisions]
    assert set(decided) <= {"0", "1"}
    cells = pq.read_table(study / "cells.parquet", filters=[("seed", "=", 1), ("selected", "=", True)]).to_pylist()
    ours = [
        cell[metric] for cell in cells for metric in ("auc", "pauc")
        if cell["part"] == "evaluation" and cell["variant"] == "both-real_anomalies-2"
    ]  # fmt: skip
    floor = 2.220446049250313e-16
    assert hmean([max(v, floor) for v in values]) == pytest.approx(hmean([max(v, floor) for v in ours]), abs=1e-9)
    described = yaml.safe_load((folder / f"{label}.meta.yaml").read_text())
    assert described["submission"]["label"] == label
    assert described["submission"]["authors"][0]["lastname"] == "Doe"
    assert described["system"]["complexity"]["total_parameters"] > 0
    assert set(described["results"]["development_dataset"]) == {"fan", "pump", "valve"}


@pytest.mark.parametrize("variant", ["both-real_anomalies-2+seeds", "all+greedy"])
def test_an_ensemble_can_be_handed_in(study: Path, rayasd: Rayasd, variant: str):
    done = rayasd("export", "dcase", study, "--system-label", "Doe_Lab_task2_2", "--entry", variant)
    assert done.returncode == 0, done.stderr
    described = yaml.safe_load((study / "submission/Doe_Lab_task2_2/Doe_Lab_task2_2.meta.yaml").read_text())
    assert described["system"]["description"]["ensemble_method_subsystem_count"] >= 2
    assert "no --author given" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--system-label", "Doe"], "write it as Lastname_Institute_task2_1"),
        (["--system-label", "A_B_task2_1", "--entry", "bot"], "unknown entry 'bot'"),
        (["--system-label", "A_B_task2_1", "--seed", "7"], "unknown seed '7'"),
        (
            ["--system-label", "A_B_task2_1", "--set", "evaluation.false_alarm_rate=0.1"],
            "fan section 00: no threshold: 1 normal clip allows no false-alarm rate",
        ),
        (["--system-label", "A_B_task2_1", "--author", "Doe"], "LAST,FIRST,EMAIL,INSTITUTE"),
        (["--system-label", "A_B_task2_1", "--abbreviation", "a" * 11], "at most 10 characters"),
    ],
)
def test_a_wrong_submission_is_refused_in_one_line(study: Path, rayasd: Rayasd, arguments: list[str], said: str):
    done = rayasd("export", "dcase", study, "--entry", "both-real_anomalies-0", *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_seeds_that_are_folds_judge_every_normal_clip(tree: Path, tmp_path: Path, rayasd: Rayasd):
    run = tmp_path / "run"
    more = [word for text in ("exposure.epochs=1", "exposure.hold_out=cross-fit", "exposure.folds=3",
                              "evaluation.false_alarm_rate=0.2") for word in ("--set", text)]  # fmt: skip
    done = rayasd(*small_sweep(tree, run, "--machines", "fan", "--seeds", "0-2", *more))
    assert done.returncode == 0, done.stderr
    cells = pq.read_table(
        run / "cells.parquet", filters=[("selected", "=", True), ("domain", "=", "source")]
    ).to_pylist()
    found = {(row["variant"], row["calibration"], row["num_calibration"], row["threshold"] is None) for row in cells}
    assert found == {
        ("both", "held-out", 3, True),
        ("both", "held-out", 2, True),
        ("both+seeds", "cross-fit", 8, False),
    }
    normal = pq.read_table(run / "ensembles/variant=both+seeds/machine=fan/seed=all/part-0.parquet").to_pylist()
    judged = {row["clip"] for row in normal if row["calibration"] == "cross-fit"}
    assert judged == {path.relative_to(tree).as_posix() for path in tree.glob("fan/train/*source*")}
    shown = rayasd("report", run, "--by-section")
    assert "Decisions of both" in shown.stdout
    board = pq.read_table(run / "leaderboard.parquet", filters=[("variant", "=", "both+seeds"), ("rank", ">", 0)])
    (row,) = board.to_pylist()
    assert (row["calibration"], row["num_calibration"], row["no_threshold"]) == ("cross-fit", 8, None)
    assert row["false_alarms_low"] <= row["false_alarms"] <= row["false_alarms_high"]
    assert "No decisions by both: no threshold: " in " ".join(shown.stdout.split())
