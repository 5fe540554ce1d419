"""The page of several runs: who leads and how sure that is, machine by machine, and trends over one study."""

from collections.abc import Sequence
from pathlib import Path

from rayasd.evaluation.leaderboard import Standing
from rayasd.files import now, write_text
from rayasd.report.curves import Curve, curve_chart, curve_rows
from rayasd.report.html.heat import heat_table
from rayasd.report.html.page import render
from rayasd.report.side_by_side import Contestant, rank_runs, ranking_table
from rayasd.report.tables import WORDS
from rayasd.wording import size


def write_comparison(contestants: Sequence[Contestant], sentences: Sequence[str], part: str, path: Path) -> str:
    """Write the page; returns a line about it.

    ``sentences`` tell who leads; ``part``: whose scores count.

    Raises UserError: the runs are scored by different rules.
    """
    runs = [each.report.store.paths.root for each in contestants]
    rows, year, where, reasons = rank_runs(runs, part)
    cells = {
        f"{i} {each.name}": {
            (machine, "", ""): [cell for cell in each.cells.to_pylist() if cell["machine"] == machine]
            for machine in sorted(set(each.cells["machine"].to_pylist()))
        }
        for i, each in enumerate(contestants, 1)
    }
    board = contestants[0].report.results.leaderboard
    text = render(
        "comparison.html",
        written=now()[:16].replace("T", " "),
        sentences=sentences,
        alerts=[*reasons, *(f"{each.name}: {alert}" for each in contestants for alert in each.report.alerts)],
        heat_table=heat_table(cells),
        where=where,
        year=year,
        ranking=ranking_table(rows),
        words=WORDS,
        trends=[(curve, curve_chart(curve, board), curve_rows(curve, board)) for curve in _trends(contestants)],
    )  # fmt: skip
    write_text(path, text)
    return f"written: {path} ({size(len(text.encode()))}): open it in a browser"


def _trends(contestants: Sequence[Contestant]) -> list[Curve]:
    """Follow each entry over the runs on the same data, oldest first."""
    runs = {each.report.store.paths.root: each.report for each in contestants}
    reports = sorted(runs.values(), key=lambda report: str(report.store.manifest()["created"]))
    found: dict[tuple[str, str], list[tuple[float | str, Standing]]] = {}
    for i, report in enumerate(reports, 1):
        data = str(report.provenance()["data_fingerprint"])
        for entry in report.results.leaderboard.ranked:
            found.setdefault((data, entry.variant), []).append((f"{i} {report.store.paths.root.name}", entry))
    return [Curve("run", variant, tuple(points)) for (_, variant), points in found.items() if len(points) > 1]
