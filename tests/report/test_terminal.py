import io

import pyarrow as pa
from rich.console import Console

from rayasd.evaluation.cells import SCHEMA
from rayasd.report.terminal import print_sections


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
    print_sections(console, pa.Table.from_pylist(rows, SCHEMA), "both")
    lines = [line.split() for line in console.file.getvalue().splitlines()]
    assert lines[1:] == [
        ["dev", "eval"], ["00", "03"], ["machine", "source", "source"], ["fan", "65.00", "–"], ["pump", "–", "90.00"],
    ]  # fmt: skip
