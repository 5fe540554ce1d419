import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from rich.console import Console

from rayasd.config import EvaluationConfig
from rayasd.evaluation.cells import SCHEMA
from rayasd.evaluation.decisions import clopper_pearson
from rayasd.report.run_report import RunReport
from rayasd.report.tables import between, decision_table
from rayasd.report.terminal import print_report, print_sections


def test_sections_are_columns_and_seeds_are_averaged():
    common = dict.fromkeys(SCHEMA.names) | {"variant": "both", "domain": "source", "selected": True, "status": "ok"}
    rows = [
        common | {"machine": "fan", "part": "development", "section": "00", "seed": 0, "auc": 0.6},
        common | {"machine": "fan", "part": "development", "section": "00", "seed": 1, "auc": 0.7},
        common | {"machine": "pump", "part": "evaluation", "section": "03", "seed": 0, "auc": 0.9},
        common | {"machine": "pump", "part": "evaluation", "section": "03", "auc": 0.1, "selected": False},
        common | {"machine": "pump", "part": "evaluation", "section": "03", "auc": 0.1, "variant": "statistics"},
        common | {"machine": "fan", "part": "evaluation", "section": "03", "status": "failed"},
    ]
    console = Console(width=80, file=io.StringIO())
    print_sections(console, pa.Table.from_pylist(rows, SCHEMA), "both", EvaluationConfig())
    lines = [line.split() for line in console.file.getvalue().splitlines()]
    assert lines[1:6] == [
        ["dev", "eval"], ["00", "03"], ["machine", "source", "source"], ["fan", "65.00", "–"], ["pump", "–", "90.00"],
    ]  # fmt: skip


def test_decisions_are_by_machine_and_domain_over_sections_and_seeds():
    common = dict.fromkeys(SCHEMA.names) | {
        "variant": "both", "machine": "fan", "domain": "source", "selected": True, "calibration": "held-out",
    }  # fmt: skip
    rows = [
        common | {"section": section, "seed": seed, "num_normal": normal, "false_alarms": alarms, "recall": recall,
                  "num_calibration": count}
        for section, normal, alarms, recall, count in (("00", 10, 0.1, 0.5, 9), ("01", 30, 0.3, 0.7, 12))
        for seed in (0, 1)
    ] + [
        common | {"domain": "target", "section": "00", "seed": 0, "num_normal": 9, "num_calibration": 4,
                  "no_threshold": "no threshold: too few"},
        common | {"domain": "both", "section": "00", "seed": 0, "num_normal": 9},
    ]  # fmt: skip
    titles, (source, target) = decision_table(pa.Table.from_pylist(rows, SCHEMA), "both", EvaluationConfig())
    interval = between(clopper_pearson(10, 40))  # of one seed's clips: the other's are the same
    assert source == ["fan", "source", "10.00", "25.00", interval, "60.00", "held-out", "9", ""]
    assert target == ["fan", "target", "10.00", "–", "–", "–", "held-out", "4", "no threshold: too few"]
    assert len(titles) == len(source)


def test_a_column_is_shown_only_beside_those_that_matter_more(finished: Path):
    titles = "false alarms", "precision"
    for width in range(80, 260, 5):
        console = Console(width=width, file=io.StringIO())
        print_report(console, RunReport.of(finished))
        head = console.file.getvalue().splitlines()[1]
        assert titles[0] in head or titles[1] not in head, width
    assert all(title in head for title in titles)


def test_a_single_group_of_a_label_gives_no_interval(finished: Path):
    assert all(entry.interval for entry in RunReport.of(finished).results.leaderboard.ranked)
    report = RunReport.of(finished)
    alone = {}
    for unit, scored in report.units.items():
        by_label = {
            key: replace(of, groups=np.array(["anomaly" in clip for clip in of.clips], object))
            for key, of in scored.systems.items()
        }
        alone[unit] = replace(scored, computed=by_label)
    vars(report)["units"] = alone  # what the property has found
    assert not any(entry.interval for entry in report.results.leaderboard.ranked)
