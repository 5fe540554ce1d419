"""The page of a run, and the page of several runs: who leads, how sure that is, and trends over one study."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tomli_w
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray

from rayasd.evaluation.cells import members_of
from rayasd.evaluation.leaderboard import Standing
from rayasd.files import now, write_text
from rayasd.report.curves import Curve, curve_chart, curve_rows, find_curves
from rayasd.report.html import figures
from rayasd.report.html.figures import ChartCurve
from rayasd.report.html.heat import heat_table
from rayasd.report.html.machines import Gallery
from rayasd.report.html.maps import MAX_POINTS
from rayasd.report.html.sounds import MAX_SECONDS
from rayasd.report.html.summary import answer, facts, problems, published_rank
from rayasd.report.html.svg import write_drawing
from rayasd.report.run_report import RunReport
from rayasd.report.side_by_side import Contestant, rank_runs, ranking_table
from rayasd.report.tables import WORDS, breaks_promise, columns, decision_table, decisions_of, notes, percent
from rayasd.unit import RunDirectory
from rayasd.wording import near, size

MAX_ROWS = 300  # systems of the leaderboard
MAX_ROOM = 6  # columns for wider pages are in leaderboard.md and .csv


def write_page(report: RunReport, to: RunDirectory | None = None, *, with_audio: bool = False) -> str:
    """Write report.html and its charts, into the run or a folder that is laid out as one; returns a line about it.

    ``with_audio``: with the sound of all clips shown, not only of the first of each machine.
    """
    out, board, provenance = to or report.store.paths, report.results.leaderboard, report.provenance()
    gallery = Gallery(report, with_audio=with_audio)
    best = gallery.best
    shown, standings = [c for c in columns(board) if c.room <= MAX_ROOM], board.standings[:MAX_ROWS]
    titles = [column.title for column in shown]
    machines = [gallery.evidence(machine) for machine in gallery.machines]
    curves = [(curve, curve_chart(curve, board)) for curve in find_curves(report.store.config().variants, board)]
    published_sentence, published = published_rank(report)
    text = render(
        "page.html",
        provenance=provenance,
        written=now()[:16].replace("T", " "),
        answer=answer(report),
        alerts=[*report.alerts, *_broken(gallery)],
        facts=facts(report, provenance),
        configuration=tomli_w.dumps(report.store.config().as_dict()),
        problems=problems(report),
        titles=titles,
        words=WORDS,
        rows=[(s.rank is not None, [column.text(s) for column in shown]) for s in standings],
        num_systems=len(board.standings),
        notes=notes(board, standings, titles),
        published_sentence=published_sentence,
        published=published,
        curves=curves,
        best=best,
        overview=gallery.overview(),
        decisions=decision_table(report.results.cells, best.variant, report.evaluation) if best else ([], []),
        reliability=figures.reliability_chart(best.variant, _reliability(gallery)) if best else None,
        machines=machines,
        entries=[(entry.variant, f"line c{i}") for i, entry in enumerate(gallery.entries)],
        ranked_on=board.ranked_on,
        max_points=MAX_POINTS,
        domains=figures.DOMAINS,
        num_colours=figures.NUM_COLOURS,
        max_seconds=MAX_SECONDS,
        with_audio=with_audio,
    )
    write_text(out.html, text)
    for of in machines:
        charts = {f"roc-{of['machine']}": of["roc"], f"training-{of['machine']}": of["training"]}
        charts |= {f"scores-{of['machine']}-{section}": chart for section, _, chart in of["histograms"]}
        for name, chart in charts.items():
            if chart:
                write_drawing(out.plot(name), chart)
    return f"written: {near(out.html)} ({size(len(text.encode()))}): open it in a browser"


def write_comparison(contestants: Sequence[Contestant], sentences: Sequence[str], part: str, path: Path) -> str:
    """Write the page; returns a line about it.

    ``sentences``: who leads; ``part``: whose scores count.

    Raises UserError: the runs are scored by different rules.
    """
    rows, year, where, reasons = rank_runs([each.report for each in contestants], part)
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


def render(template: str, **values: object) -> str:
    """Fill a template of this package; all values are escaped but those that are markup."""
    environment = Environment(
        loader=PackageLoader("rayasd.report", "html"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template(template).render(**values)


def _broken(gallery: Gallery) -> list[str]:
    """Name the machines on which the best entry's thresholds do not hold."""
    report, best = gallery.report, gallery.best
    found = decisions_of(report.ranking_cells, best.variant, "machine").items() if best else ()
    broken = [(machine, of) for (machine,), of in found if breaks_promise(of, report.evaluation)]
    rates = [f"{machine} ({percent(of.false_alarms)} %)" for machine, of in broken]
    promise = report.results.leaderboard.promise
    return [f"Thresholds do not hold, with false alarms on {', '.join(rates)}; {promise}."] if rates else []


def _reliability(gallery: Gallery) -> Sequence[ChartCurve]:
    """Collect the share of normal test clips, by domain, whose p-value is at most each false-alarm rate."""
    values: dict[str, list[NDArray[np.float64]]] = {}
    for result in gallery.of_best:
        for domain in result.domains:
            year = gallery.report.evaluation.rule_year
            anomalous, members = members_of(result.scores, domain, gallery.labels, year)
            values.setdefault(domain, []).append(result.p_values[members & ~anomalous])
    rates = np.linspace(0.0, 1.0, 201)
    found = {domain: np.sort(np.concatenate(parts)) for domain, parts in sorted(values.items())}
    return [
        ChartCurve(domain, f"line c0 {domain if domain in ('source', 'target') else ''}", rates,
                   np.searchsorted(of_domain, rates + 1e-9, "right") / len(of_domain))
        for domain, of_domain in found.items()
    ]  # fmt: skip


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
