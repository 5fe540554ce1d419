"""The leaderboard in a terminal."""

import textwrap
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rayasd.config import EvaluationConfig
from rayasd.evaluation.cells import aucs_by_attribute, labels_of
from rayasd.evaluation.decisions import decision_of
from rayasd.evaluation.ensembles import fuse_ensembles
from rayasd.evaluation.scores import FIXED, unchosen
from rayasd.report.curves import curve_rows, find_curves
from rayasd.report.run_report import RunReport
from rayasd.report.tables import PARTS, WORDS, columns, decision_table, heat_colours, notes, percent
from rayasd.wording import counted

_FOLDS = {"entry", "system", "worst machine", "note", "from"}
"""Columns whose words go on in the next line where a terminal is narrow; numbers are never cut."""
_FOLDED_WIDTH = 20


def text_table(titles: Sequence[str], rows: Sequence[Sequence[str | Text]]) -> Table:
    """Lay out a table without lines; a title that is longer than what is below it takes several lines."""
    table = Table(header_style="bold", pad_edge=False, box=None)
    for title, width in zip(titles, _widths(titles, rows), strict=True):
        table.add_column(textwrap.fill(title, width, break_on_hyphens=False), overflow="fold",
                         justify="left" if title in WORDS else "right", no_wrap=title not in _FOLDS)  # fmt: skip
    for row in rows:
        table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    return table


def print_untested(console: Console, report: RunReport) -> None:
    """Print what is known without test clips: each machine's system and threshold, by which ``score`` decides."""
    rows, reasons = [], dict[str, list[str]]()
    of_units = list(report.units.values())
    for scored in [*of_units, *fuse_ensembles(of_units, {}, report.evaluation)]:
        for key in unchosen(scored.systems, *FIXED):
            by = decision_of(scored.systems, key, report.evaluation)
            if by.threshold is None:
                reasons.setdefault(str(by.reason), []).append(f"{scored.variant} {scored.machine} {key.section}")
            rows.append([scored.variant, scored.machine, "all" if scored.seed is None else str(scored.seed),
                         key.section, key.detector, key.pooling, by.calibration or "–", str(by.num_groups),
                         "none" if by.threshold is None else f"{by.threshold:.4g}"])  # fmt: skip
    if not rows:
        _ = report.results  # raises why there are none
    titles = ["entry", "machine", "seed", "section", "detector", "pooling", "calibration", "clips", "threshold"]
    console.print(text_table(titles, rows))
    for reason, where in reasons.items():
        console.print(Text(f"{', '.join(dict.fromkeys(where))}: {reason}", style="yellow"))
    console.print("No test clips: nothing is evaluated or ranked, and no file written. rayasd score and pack work.")


def _widths(titles: Sequence[str], rows: Sequence[Sequence[str | Text]]) -> list[int]:
    words = [title.split() or [" "] for title in titles]
    return [max([*map(len, words[i]), *(cell_len(str(row[i])) for row in rows)]) for i in range(len(titles))]


def print_report(console: Console, report: RunReport, *, all_systems: bool = False, oracle: bool = False) -> None:
    """Print a run's leaderboard, what makes it doubtful, what it means, and its curves.

    A narrow terminal gets fewer columns. With ``all_systems``, not only the chosen ones are shown; with ``oracle``, the
    best system in hindsight is added, unranked.
    """
    board = report.results.leaderboard
    shown = list(board.standings if all_systems else board.ranked)
    if oracle and board.oracle is not None and board.oracle not in shown:
        shown.append(board.oracle)
    wanted = columns(board, all_systems=all_systems or len(shown) > len(board.ranked))
    rows = [[column.text(standing) for column in wanted] for standing in shown]
    widths = _widths([column.title for column in wanted], rows)
    titles: list[str] = []
    for room in sorted({column.room for column in wanted}):
        fitting = [
            (column.title, min(width, _FOLDED_WIDTH) if column.title in _FOLDS else width)
            for column, width in zip(wanted, widths, strict=True) if column.room <= room
        ]  # fmt: skip
        if titles and sum(width + 2 for _, width in fitting) > console.width:
            break
        titles = [title for title, _ in fitting]
    places = [i for i, column in enumerate(wanted) if column.title in titles]
    name = f"{report.store.paths.root.name}: {counted(len(board.standings[0].machines), 'machine type')}"
    console.print(Text(name, style="bold"))
    console.print(text_table(titles, [[row[i] for i in places] for row in rows]))
    for alert in report.alerts:
        console.print(Text(alert, style="yellow"), soft_wrap=not console.is_terminal)
    console.print(Text(" ".join(notes(board, shown, titles)), style="dim"), soft_wrap=not console.is_terminal)
    for curve in find_curves(report.store.config().variants, board):
        console.print(Text(f"{curve.name}: {curve.setting}", style="bold"))
        console.print(text_table(*curve_rows(curve, board)))


def print_sections(console: Console, cells: pa.Table, variant: str, evaluation: EvaluationConfig) -> None:
    """Print an entry's AUC, one row per machine and one column per section and domain, then its decisions."""
    chosen = cells.filter(pc.field("selected") & (pc.field("variant") == variant) & pc.field("auc").is_valid())
    means = chosen.group_by(["machine", "part", "section", "domain"]).aggregate([("auc", "mean")]).to_pylist()
    found = {(row["machine"], (row["part"], row["section"], row["domain"])): row["auc_mean"] for row in means}
    places = sorted({place for _, place in found})
    machines = sorted({machine for machine, _ in found})
    if places:
        console.print(Text(f"AUC of {variant} by section and domain", style="bold"))
    room = max(1, (console.width - max(map(len, machines), default=0)) // 9)  # a column is 7 wide, with its margin 9
    for first in range(0, len(places), room):
        block = places[first : first + room]
        titles = ["machine", *(f"{PARTS[part]} {section} {domain}" for part, section, domain in block)]
        rows = [[machine, *(_heat(found.get((machine, place))) for place in block)] for machine in machines]
        console.print(text_table(titles, rows))
    console.print(Text(f"Decisions of {variant} in all sections, in percent", style="bold"))
    titles, decided = decision_table(cells, variant, evaluation)
    console.print(text_table(titles[:-1], [line[:-1] for line in decided]))
    for note in dict.fromkeys(line[-1] for line in decided if line[-1]):
        where = ", ".join(" ".join(line[:2]) for line in decided if line[-1] == note)
        console.print(Text(f"{where}: {note}", style="yellow"), soft_wrap=not console.is_terminal)


def print_attributes(console: Console, report: RunReport, entry: str) -> None:
    """Print an entry's AUC by machine and attribute value."""
    table = report.catalog.table
    attributes = dict(zip(table["clip"].to_pylist(), table["attributes"].to_pylist(), strict=True))
    results = report.results
    found = aucs_by_attribute(results.scored, labels_of(table), attributes, results.cells, entry)
    note = "anomalous clips that have it against the section's normal ones that do, or all where none does"
    console.print(Text(f"AUC of {entry} by attribute: {note}"))
    rows = [
        [of.machine, of.value, percent(of.auc), str(of.num_anomaly), f"{of.num_normal}{' (all)' * of.of_all_normal}"]
        for of in found
    ]
    console.print(text_table(["machine", "attribute", "AUC", "anomalous", "normal"], rows))


def _heat(auc: float | None) -> Text:
    if auc is None:
        return Text("–", style="dim")
    background, ink = heat_colours(auc)
    return Text(f" {percent(auc)} ", style=f"{ink} on {background}")
