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
from rayasd.report.tables import between, decision_table, percent
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
    assert lines[1:5] == [
        ["dev", "00", "eval", "03"], ["machine", "source", "source"], ["fan", "65.00", "–"], ["pump", "–", "90.00"],
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


def test_a_narrow_terminal_gets_fewer_columns_and_whole_numbers(finished: Path):
    report = RunReport.of(finished)
    entry = report.results.leaderboard.ranked[0]
    for width in range(80, 260, 5):
        console = Console(width=width, file=io.StringIO())
        print_report(console, report)
        lines = console.file.getvalue().splitlines()
        first = next(i for i, line in enumerate(lines) if line.startswith("1  "))
        head = " ".join(lines[1:first])
        assert {"entry", "score", "worst"} <= set(head.split())
        assert "alarms" in head or "precision" not in head, width
        assert all(number in lines[first] for number in (percent(entry.evaluation), percent(entry.auc), "fan"))
        assert max(map(len, lines[1 : first + 1])) <= width
        assert "…" not in console.file.getvalue()
        notes = console.file.getvalue().split("Score: ")[1]
        assert ("pAUC: " in notes) == ("pAUC" in head.split())
    assert "precision" in head


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


def test_no_difference_has_no_sign():
    assert percent(-1e-9) == percent(0.0) == "0.00"
    assert percent(-0.5, 0.01) == "-50.00 ± 1.00"
