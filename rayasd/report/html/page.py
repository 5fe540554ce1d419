"""The page of a run: the answer, the leaderboard, the evidence machine by machine, and where it came from."""

from collections.abc import Sequence

import numpy as np
import tomli_w
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray

from rayasd.evaluation.cells import members_of
from rayasd.files import now, write_text
from rayasd.report.curves import curve_chart, find_curves
from rayasd.report.html import figures
from rayasd.report.html.answer import answer
from rayasd.report.html.figures import ChartCurve
from rayasd.report.html.machines import Gallery
from rayasd.report.html.maps import MAX_POINTS
from rayasd.report.html.run import facts, problems, published_rank
from rayasd.report.html.sounds import MAX_SECONDS
from rayasd.report.html.svg import write_drawing
from rayasd.report.run_report import RunReport
from rayasd.report.tables import WORDS, breaks_promise, columns, decision_table, decisions_of, notes, percent
from rayasd.unit import RunDirectory
from rayasd.wording import near, size

MAX_ROWS = 300
"""Systems of the leaderboard."""
MAX_ROOM = 6
"""Columns for wider pages are in leaderboard.md and .csv."""


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
        if of.roc:
            write_drawing(out.plot(f"roc-{of.machine}"), of.roc)
        if of.training:
            write_drawing(out.plot(f"training-{of.machine}"), of.training)
        for section, _, chart in of.histograms:
            write_drawing(out.plot(f"scores-{of.machine}-{section}"), chart)
    return f"written: {near(out.html)} ({size(len(text.encode()))}): open it in a browser"


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
    found = decisions_of(report.results.cells, best.variant, "machine").items() if best else ()
    rates = [
        f"{machine} ({percent(of.false_alarms)} %)" for (machine,), of in found if breaks_promise(of, report.evaluation)
    ]
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
