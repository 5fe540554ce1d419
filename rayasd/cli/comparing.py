"""Several runs side by side: compared two by two, or in one ranking."""

import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import pyarrow as pa
import pyarrow.compute as pc
from rich.table import Table
from rich.text import Text

from rayasd.cli.display import wide_console
from rayasd.cli.reporting import coverage
from rayasd.config import EvaluationConfig
from rayasd.errors import UserError, unknown
from rayasd.evaluation.bootstrap import compare
from rayasd.evaluation.cells import cell_scores, labels_of
from rayasd.evaluation.published import published_systems
from rayasd.evaluation.selection import LEAVE_ONE_OUT
from rayasd.nested import split_list
from rayasd.report.run_report import RunReport
from rayasd.report.tables import markdown_table, percent
from rayasd.wording import counted


def compare_runs(runs: tuple[Path, Path], variants: str | None, part: str) -> None:
    """Print which of two systems is better on one part's sections, by how much, and how sure."""
    console = wide_console()
    reports, files, entries, cells = [], [], [], []
    names = [None, None] if variants is None else split_list(variants)
    if len(names) != 2:
        raise UserError(f"--variants {variants}: one of the first run and one of the second, for example both,no-mixup")
    for path, variant in zip(runs, names, strict=True):
        report = RunReport.of(path)
        found = report.entries(single_variant=True)
        if variant is not None and variant not in found:
            raise unknown(f"variant of {path}", variant, found)
        chosen = found[variant] if variant is not None else next(iter(found.values()))
        if chosen["cells_ok"] < chosen["cells_expected"]:
            raise UserError(f"{path}: {chosen['variant']} is incomplete ({coverage(chosen)}): rayasd sweep goes on")
        reports.append(report)
        files.append(report.scored)
        entries.append(chosen)
        cells.append(_entry_cells(report, chosen["variant"], part))
    cells, note = _of_common_seeds(cells)
    systems, rows = [], []
    for report, of_run, chosen, of_entry in zip(reports, files, entries, cells, strict=True):
        systems.append(cell_scores(of_run, labels_of(report.catalog.table), of_entry, report.evaluation.year))
        name = f"{report.store.paths.root.name} {chosen['variant']} {chosen['detector']} {chosen['pooling']}"
        rows.append([name, *(percent(value) for value in _domain_aucs(of_entry))])
    rules = [report.evaluation for report in reports]
    year, where = _common_rules(rules, part)
    if not all(systems):
        raise UserError(f"no labelled {where} cells to compare on: rayasd report --ground-truth adds labels")
    official, auc = compare(systems[0], systems[1], year)
    table = Table(header_style="bold", pad_edge=False, box=None)
    for title in ("system", f"official {year} {where}", "AUC", "source AUC", "target AUC"):
        table.add_column(title, justify="left" if title == "system" else "right", no_wrap=True)
    scores = ((official.first, auc.first), (official.second, auc.second))
    for (name, source, target), (score, mean) in zip(rows, scores, strict=True):
        table.add_row(Text(name), percent(score), percent(mean), source, target)
    console.print(table)
    for measure, result in ((f"official {year} score", official), ("mean AUC", auc)):
        better = rows[0][0] if result.lead > 0 else rows[1][0]
        verdict = f"better: {better}" if result.sure else "no sure difference"
        text = (
            f"{measure}: the first leads by {percent(result.lead)} points, 95 % interval {percent(result.low)} to "
            f"{percent(result.high)}, in {percent(result.share)} % of the draws; {verdict}"
        )
        console.print(Text(text))
    console.print(f"paired bootstrap over the test clips of {len(systems[0])} {where} cells{note}", style="dim")


def _of_common_seeds(cells: list[pa.Table]) -> tuple[list[pa.Table], str]:
    """Keep the cells of the seeds that both systems have, and say which these are; an ensemble is of all its seeds.

    Raises:
        UserError: they have none in common.

    """
    first, second = ({seed for seed in pc.unique(table["seed"]).to_pylist() if seed is not None} for table in cells)
    if not first or not second:
        return cells, ""
    if not (common := sorted(first & second)):
        raise UserError("the two have no seed in common: sweep both with the same --seeds to compare them in pairs")
    note = f"; of both, seeds {', '.join(map(str, common))} alone" if first != second else ""
    return [table.filter(pc.field("seed").isin(common)) for table in cells], note


def _common_rules(rules: Sequence[EvaluationConfig], part: str) -> tuple[int, str]:
    """Return the year and what the sections are called that several runs are put side by side on.

    Raises:
        UserError: the runs are scored by rules that do not go together.

    """
    found = {(evaluation.year, evaluation.selection, evaluation.development) for evaluation in rules}
    if len(found) > 1:
        several = "; ".join(f"{year}, {selection} {' '.join(development)}" for year, selection, development in found)
        raise UserError(
            f"the runs are scored by different rules (evaluation.year, .selection, .development: {several})"
        )
    return rules[0].year, "held-out" if rules[0].selection == LEAVE_ONE_OUT else part


def _entry_cells(report: RunReport, variant: str, part: str) -> pa.Table:
    """Read the cells that count for a variant on one part; leave-one-section-out, all sections are held out."""
    cells = report.cells.filter((pc.field("variant") == variant) & pc.field("selected"))
    return cells if report.evaluation.selection == LEAVE_ONE_OUT else cells.filter(pc.field("part") == part)


def _domain_aucs(cells: pa.Table) -> list[float | None]:
    """Arithmetic mean of AUC over source cells and over target cells."""
    return [pc.mean(cells.filter(pc.field("domain") == domain)["auc"]).as_py() for domain in ("source", "target")]


def show_leaderboard(runs: Sequence[Path], part: str, form: str) -> None:
    """Print the ranked systems of several runs together, among published ones where the data are the same."""
    console = wide_console()
    rows: list[dict[str, Any]] = []
    comparable = True
    rules = []
    for path in runs:
        report = RunReport.of(path)
        rules.append(report.evaluation)
        for entry in report.entries().values():
            name = f"{entry['variant']} {entry['detector']} {entry['pooling']}"
            seeds = counted(entry["num_seeds"], "seed") if entry["num_seeds"] else "all seeds"
            origin = f"{report.store.paths.root.name}, {seeds}, {coverage(entry)}"
            score, deviation = entry[part], entry[f"{part}_std"]
            source, target = _domain_aucs(_entry_cells(report, entry["variant"], part))
            rows.append({"system": name, "score": score, "deviation": deviation, "source_auc": source,
                         "target_auc": target, "from": origin})  # fmt: skip
        if (why_not := report.why_not_published(part)) is not None:
            click.echo(f"{path}: published systems are left out: {why_not}", err=True)
            comparable = False
    year, where = _common_rules(rules, part)
    for system in published_systems(part) if comparable else ():
        origin = f"published: {system.source}"
        rows.append({"system": system.name, "score": system.score, "deviation": None, "source_auc": None,
                     "target_auc": None, "from": origin})  # fmt: skip
    rows.sort(key=lambda row: -(row["score"] or 0.0))
    if form == "json":
        click.echo(json.dumps([{"part": where, "year": year, **row} for row in rows], indent=2, ensure_ascii=False))
        return
    titles = ["#", "system", f"official {year} {where}", "source AUC", "target AUC", "from"]
    lines = [
        [
            str(i),
            row["system"],
            percent(row["score"], row["deviation"]),
            percent(row["source_auc"]),
            percent(row["target_auc"]),
            row["from"],
        ]
        for i, row in enumerate(rows, 1)
    ]
    if form == "csv":
        csv.writer(sys.stdout, lineterminator="\n").writerows([titles, *lines])
    elif form == "md":
        click.echo(markdown_table(titles, lines))
    else:
        table = Table(header_style="bold", pad_edge=False, box=None)
        for title in titles:
            table.add_column(title, justify="left" if title in ("system", "from") else "right", no_wrap=True)
        for line in lines:
            table.add_row(*map(Text, line), style="dim" if line[-1].startswith("published") else "")
        console.print(table)
