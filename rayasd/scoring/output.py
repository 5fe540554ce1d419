"""Scores of clips as a table, CSV, JSON lines or Parquet."""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rayasd.console import SafeConsole
from rayasd.evaluation.decisions import TRAINED_ON_WARNING
from rayasd.files import replacing
from rayasd.inlier.scores_file import TRAINED_ON
from rayasd.printing import printable
from rayasd.scoring.model import ClipScore, MachineModel

_COLUMNS = [field.name for field in fields(ClipScore)]
_TYPES = {name: pa.string() for name in ("clip", "section", "reason", "no_threshold", "calibration")}
_TYPES |= {name: pa.bool_() for name in ("by_product_head", "anomalous")}
_SCHEMA = pa.schema([(name, _TYPES.get(name, pa.float64())) for name in _COLUMNS])


def write_scores(scores: Iterable[ClipScore], form: str, out: Path | Console, model: MachineModel) -> None:
    """Write scores as they come.

    ``out``: a file, which is complete or absent, or a console; ``form``: table, csv, jsonl, or (to a file) parquet.
    """
    if isinstance(out, Console):
        _write_text(scores, form, out.file, out, model)
    elif form == "parquet":
        with replacing(out) as path:
            pq.write_table(pa.Table.from_pylist([asdict(each) for each in scores], _SCHEMA), path)
    else:
        with replacing(out) as path, path.open("w", encoding="utf-8", newline="") as file:
            _write_text(scores, form, file, SafeConsole(file=file, width=200), model)


def json_line(values: Mapping[str, object]) -> str:
    """Write a clip's score and what else is known of it as one line of JSON, with its end."""
    return printable(json.dumps(values, ensure_ascii=False)) + "\n"


def _write_text(scores: Iterable[ClipScore], form: str, file: IO[str], console: Console, model: MachineModel) -> None:
    if form == "jsonl":
        for each in scores:
            file.write(json_line(asdict(each)))
    elif form == "csv":
        writer = csv.DictWriter(file, _COLUMNS)
        writer.writeheader()
        writer.writerows(_harmless(asdict(each)) for each in scores)
    else:
        console.print(_table(list(scores), model))


def _harmless(row: dict[str, object]) -> dict[str, object]:
    """Keep spreadsheets from taking a file's name for a formula, and a terminal from obeying it."""
    texts = {key: printable(value) for key, value in row.items() if isinstance(value, str)}
    return row | {key: f"'{text}" if text[:1] in ("=", "+", "-", "@") else text for key, text in texts.items()}


def _table(scores: Sequence[ClipScore], model: MachineModel) -> Table:
    pieces = any(each.start > 0 for each in scores)
    table = Table(box=None, pad_edge=False, header_style="dim", caption_justify="left")
    seconds = ["seconds"] if pieces else []
    for name in ("clip", *seconds, "section", "score", "threshold", "p", "decision", "worst at"):
        right = name in ("score", "threshold", "p", "worst at")
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    for each in scores:
        span = [f"{each.start:.1f}–{each.end:.1f}"] if pieces else []
        if each.reason is not None:
            table.add_row(Text(printable(each.clip)), *span, "", "", "", "", Text(each.reason, style="yellow"), "")
            continue
        decision = {None: Text("no threshold", style="dim"), True: Text("anomalous", style="bold red"),
                    False: Text("normal", style="green")}[each.anomalous]  # fmt: skip
        table.add_row(
            Text(printable(each.clip)), *span, f"{each.section}{' (nearest)' if each.by_product_head else ''}",
            f"{each.score:.4g}", "" if each.threshold is None else f"{each.threshold:.4g}",
            "" if each.p_value is None else f"{each.p_value:.3f}", decision,
            "" if each.worst is None else f"{each.worst:.1f} s",
        )  # fmt: skip
    used = {each.section for each in scores if each.section is not None}
    notes = [f"{model.parts.machine}: {model.parts.systems_of(used)}. Higher scores are more anomalous."]
    without = {(str(each.section), each.no_threshold, each.calibration) for each in scores if each.no_threshold}
    notes += [
        f"Section {section}: {reason}{'; --percentile 100 takes the highest of them' if known else ''}."
        for section, reason, known in sorted(without, key=str)
    ]
    unsure = sorted({str(each.section) for each in scores if each.calibration == TRAINED_ON})
    notes += [f"Section {', '.join(unsure)}: {TRAINED_ON_WARNING}, expect more false alarms."] if unsure else []
    table.caption = "\n".join(notes)
    return table
