"""A synthetic tree as each year's data, swept end to end: its score equals one computed from names and scores alone."""

import csv
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.stats import hmean
from sklearn.metrics import roc_auc_score

from rayasd.data.synthetic import SynthesisPlan, synthesize
from rayasd.data.years import EVALUATION_MACHINES, YEARS
from rayasd.study.study import Study
from tests.command import Rayasd
from tests.conftest import small_sweep


def told_names(tree: Path, year: int) -> dict[tuple[str, str], tuple[str, int]]:
    """Domain and label of each evaluation test clip, by machine and name, from the evaluator's files."""
    found: dict[tuple[str, str], tuple[str, int]] = {}
    if year == 2021:
        for file in (tree / "ground_truth_data").iterdir():
            words = file.stem.removeprefix("ground_truth_").split("_")
            found |= {(words[0], clip): (words[3], int(label)) for clip, label in csv.reader(file.open())}
        return found
    machine = ""
    for row in csv.reader((tree / f"eval_data_list_{year}.csv").open()):
        if len(row) == 1:
            machine = row[0]
        else:
            found[machine, row[0]] = ("target" if "_target_" in row[1] else "source", int("anomaly_" in row[1]))
    return found


def rows_of(tree: Path, run: Path, year: int) -> list[dict[str, object]]:
    """Test clips of the run with score, and with machine, section, domain and label as names and evaluator tell."""
    truth, rows = told_names(tree, year), []
    for file in sorted((run / "scores").rglob("*.parquet")):
        for row in pq.read_table(file, partitioning=None).to_pylist():
            path = Path(str(row["clip"]))
            machine, words = path.parent.parent.name, path.stem.split("_")
            if row["split"] != "test":
                continue
            told = ("target" if "target" in words else "source", int("anomaly" in words))
            section = words[words.index("id" if year == 2020 else "section") + 1]
            domain, label = truth.get((machine, path.name), told)
            rows.append({"part": path.parts[0], "machine": machine, "section": section, "domain": domain,
                         "label": label, "score": row["score"]})  # fmt: skip
    return rows


def by_hand(rows: list[dict[str, object]], year: int) -> float:
    """Official score of these clips with scikit-learn and scipy alone."""

    def area(clips: list[dict[str, object]], max_fpr: float | None = None) -> float:
        return float(roc_auc_score([c["label"] for c in clips], [c["score"] for c in clips], max_fpr=max_fpr))

    values: dict[object, list[float]] = {}
    for machine, section in sorted({(str(row["machine"]), str(row["section"])) for row in rows}):
        clips = [row for row in rows if (row["machine"], row["section"]) == (machine, section)]
        own = values.setdefault(machine, [])
        if year == 2020:
            own += [area(clips), area(clips, 0.1)]
            continue
        for domain in ("source", "target"):
            if year == 2021:
                in_domain = [row for row in clips if row["domain"] == domain]
                own += [area(in_domain), area(in_domain, 0.1)]
            else:
                own.append(area([row for row in clips if row["label"] or row["domain"] == domain]))
        own += [area(clips, 0.1)] if year >= 2022 else []
    if year == 2020:
        return float(np.mean([np.mean(of_machine) for of_machine in values.values()]))
    every = [value for of_machine in values.values() for value in of_machine]
    return float(hmean(np.maximum(every, np.finfo(float).eps)))


@pytest.mark.parametrize("year", YEARS)
def test_a_tree_of_each_year_is_scored_by_its_rule(rayasd: Rayasd, tmp_path: Path, year: int):
    tree, run = tmp_path / "data", tmp_path / "run"
    machines = ("ToyCar", "fan", *EVALUATION_MACHINES.get(year, ())[-2:])
    plan = SynthesisPlan(year=year, machines=machines, num_sections=5, num_source_train=4, num_target_train=2,
                         num_test=4, seconds=0.5, difficulty=0.6)  # fmt: skip
    synthesize(tree, plan, num_workers=1)
    one = ("--variants", "statistics", "--set", "inlier.detectors=knn-1", "--set", "inlier.poolings=mean")
    done = rayasd(*small_sweep(tree, run, *one))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"evaluation.year = {year}" in done.stdout
    entry = Study.open(run).report().results.leaderboard.ranked[0]
    rows = rows_of(tree, run, year)
    assert len(rows) == sum(1 for path in tree.rglob("*.wav") if "test" in path.parent.name)
    for part, score in (("dev_data", entry.development), ("eval_data", entry.evaluation)):
        clips = [row for row in rows if row["part"] == part]
        assert score == pytest.approx(by_hand(clips, year), abs=1e-12)
