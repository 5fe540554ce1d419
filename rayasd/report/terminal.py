"""The leaderboard in a terminal."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rayasd.config import EvaluationConfig
from rayasd.evaluation.attributes import attribute_rows, aucs_by_attribute
from rayasd.evaluation.cells import labels_of
from rayasd.evaluation.leaderboard import Leaderboard
from rayasd.report.colours import heat_colours
from rayasd.report.curves import Curve, curve_rows, find_curves
from rayasd.report.run_report import RunReport
from rayasd.report.tables import decision_table, footnotes, heading, percent, row
from rayasd.wording import counted

_WORDS = {"variant", "detector", "pooling", "calibration", "machine", "domain", "attribute", "note"}
_MORE = (("source", "target"), ("pAUC", "AUC all", "seeds", "cells"), ("false alarms", "recall", "calibration"),
         ("precision", "F1"))  # fmt: skip
_LAST = ("AUC interval", "pAUC interval", "of normal clips")
_PARTS = {"development": "dev", "evaluation": "eval"}


def print_report(console: Console, report: RunReport, *, all_systems: bool = False, oracle: bool = False) -> None:
    """Print a run's leaderboard and its curves."""
    leaderboard = report.results.leaderboard
    machines, name = sorted(leaderboard.standings[0].machines), report.store.paths.root.name
    print_leaderboard(
        console, leaderboard, machines, title=f"{name}: {counted(len(machines), 'machine type')}",
        synthetic=report.synthetic, all_systems=all_systems, oracle=oracle,
        remarks=[f"{what}: {text}" for what, text in report.remarks().items() if text != "none"],
    )  # fmt: skip
    for curve in find_curves(report.store.config().variants, leaderboard):
        print_curve(console, curve, leaderboard)


def print_leaderboard(
    console: Console,
    leaderboard: Leaderboard,
    machines: Sequence[str],
    *,
    title: str,
    synthetic: bool,
    all_systems: bool = False,
    oracle: bool = False,
    remarks: Sequence[str] = (),
) -> None:
    """Print the entries, or all systems, then what the table means; a narrow terminal gets fewer columns.

    ``remarks`` about the data come first below the table.

    With ``oracle``, the best system in hindsight is added below the entries, unranked.
    """
    titles = heading(leaderboard, machines)
    standings = list(leaderboard.standings if all_systems else leaderboard.ranked)
    if oracle and leaderboard.oracle is not None and leaderboard.oracle not in standings:
        standings.append(leaderboard.oracle)
    rows = [row(standing, leaderboard) for standing in standings]
    width = {name: max(len(name), *(len(r[i]) for r in rows)) + 2 for i, name in enumerate(titles)}
    shown = titles[: titles.index("AUC") + 1]
    for more in (*_MORE, machines, _LAST):
        if sum(width[name] for name in [*shown, *more]) > console.width:
            break
        shown += more
    table = Table(header_style="bold", pad_edge=False, box=None)
    columns = [i for i, name in enumerate(titles) if name in shown]
    for i in columns:
        table.add_column(
            titles[i], justify="left" if titles[i] in _WORDS else "right", no_wrap=True, overflow="ellipsis"
        )
    for place, cells in enumerate(rows):
        table.add_row(*(Text(cells[i]) for i in columns), style="bold" if place == 0 else "")
    console.print(Text(title))
    console.print(table)
    for remark in remarks:
        console.print(Text(remark, style="yellow"), soft_wrap=True)
    for note in footnotes(leaderboard, synthetic=synthetic, oracle=oracle, all_systems=all_systems):
        console.print(
            Text(note, style="yellow" if note.startswith(("Synthetic", "No ", "Incomplete", "Beaten")) else "dim")
        )


def print_sections(console: Console, cells: pa.Table, variant: str, evaluation: EvaluationConfig) -> None:
    """Print an entry's AUC, a row a machine and a column a section and domain, then what its decisions came to."""
    chosen = cells.filter(pc.field("selected") & (pc.field("variant") == variant) & pc.field("auc").is_valid())
    means = chosen.group_by(["machine", "part", "section", "domain"]).aggregate([("auc", "mean")]).to_pylist()
    found = {(row["machine"], (row["part"], row["section"], row["domain"])): row["auc_mean"] for row in means}
    columns = sorted({column for _, column in found})
    console.print(Text(f"AUC of {variant} by section and domain"))
    table = Table(header_style="bold", pad_edge=False, box=None)
    table.add_column("machine")
    for part, section, domain in columns:
        table.add_column(f"{_PARTS[part]}\n{section}\n{domain[:6]}", justify="right", no_wrap=True)
    for machine in sorted({machine for machine, _ in found}):
        table.add_row(Text(machine), *(_heat(found.get((machine, column))) for column in columns))
    console.print(table)
    console.print(_plain_table(f"Decisions of {variant}, in percent", *decision_table(cells, variant, evaluation)))


def print_attributes(console: Console, report: RunReport, entry: str) -> None:
    """Print an entry's AUC by machine and attribute value."""
    table = report.catalog.table
    attributes = dict(zip(table["clip"].to_pylist(), table["attributes"].to_pylist(), strict=True))
    results = report.results
    found = aucs_by_attribute(results.scored, labels_of(table), attributes, results.cells, entry)
    note = "anomalous clips that have it against the section's normal ones that do, or all where none does"
    console.print(_plain_table(f"AUC of {entry} by attribute: {note}", *attribute_rows(found)))


def _plain_table(title: str, titles: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=Text(title), title_justify="left", header_style="bold", pad_edge=False, box=None)
    for name in titles:
        table.add_column(name, justify="left" if name in _WORDS | {"system"} else "right", no_wrap=name != "note")
    for cells in rows:
        table.add_row(*map(Text, cells))
    return table


def _heat(auc: float | None) -> Text:
    if auc is None:
        return Text("–", style="dim")
    background, ink = heat_colours(auc)
    return Text(f" {percent(auc)} ", style=f"{ink} on {background}")


def print_curve(console: Console, curve: Curve, leaderboard: Leaderboard) -> None:
    """Print a curve's table."""
    console.print(_plain_table(f"{curve.name}: {curve.setting}", *curve_rows(curve, leaderboard)))
