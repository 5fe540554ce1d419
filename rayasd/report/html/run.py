"""Provenance of a report, missing units, and its rank among published systems."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pyarrow.compute as pc

from rayasd.evaluation.leaderboard import Standing
from rayasd.evaluation.published import published_systems
from rayasd.evaluation.selection import ANY_VARIANT
from rayasd.files import read_record
from rayasd.report.run_report import RunReport
from rayasd.report.tables import coverage, percent
from rayasd.sweep.states import State
from rayasd.unit import Unit
from rayasd.wording import counted, elapsed


def entries(report: RunReport) -> list[Standing]:
    """Return entries with scores of their own, best first: not those whose variant is chosen section by section."""
    return [s for s in report.results.leaderboard.ranked if not s.variant.startswith(ANY_VARIANT)]


def done(report: RunReport) -> list[Unit]:
    """List the units whose results can be read."""
    return [unit for unit in report.sweep.units(State.DONE) if unit not in report.damaged]


def problems(report: RunReport) -> list[tuple[str, str]]:
    """List what is missing and why: units, and cells of the chosen systems."""
    states, reasons = report.sweep.states, report.sweep.reasons | report.damaged
    left = [unit for unit, state in states.items() if state is not State.DONE or unit in report.damaged]
    cells = report.results.cells
    failed = cells.filter((pc.field("status") == "failed") & pc.field("selected")).to_pylist()
    counts = Counter((f"{c['variant']} {c['machine']} section {c['section']}", c["reason"] or "") for c in failed)
    return [(str(unit), str(reasons.get(unit, states[unit]))) for unit in left] + [
        (f"{where}: {counted(number, 'cell')}", reason) for (where, reason), number in counts.items()
    ]


def facts(report: RunReport, provenance: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what was run, on what, where and for how long; name and value."""
    paths, table = report.store.paths, report.catalog.table
    markers = [read_record(paths.marker(unit, "DONE")) for unit in done(report)]
    notes = Counter(note for marker in markers for note in marker.get("notes", ()))
    busy = sum(marker.get("seconds", 0.0) for marker in markers)
    best = next(iter(entries(report)), None)
    return [
        ("command", provenance["command"]),
        ("rayasd", f"{provenance['rayasd']}, revision {provenance['revision']}"),
        ("data", f"{provenance['data']}: {len(table)} clips of {', '.join(report.catalog.machines)}"),
        ("data fingerprint", provenance["data_fingerprint"]),
        *((name, provenance[name]) for name in ("clips left out", "odd in the data")),
        ("devices", "; ".join(f"{note} ({n} units)" for note, n in notes.most_common()) or "not noted"),
        ("hosts", ", ".join(sorted({marker["host"] for marker in markers if "host" in marker})) or "not noted"),
        ("time", f"{elapsed(busy)} of all units together"),
        ("units", f"{len(markers)} of {len(report.sweep.states)} done"),
        ("cells", f"{coverage(best)} of the best, {best.variant}" if best else "none"),
        ("rules", provenance["evaluation"]),
    ]


def published_rank(report: RunReport) -> tuple[str, list[tuple[str, str, str, bool]]]:
    """Put our entries among the published systems.

    Returns a sentence, and lines of system, official score in percent, source, and whether it is ours; none where they
    are not to be compared.
    """
    part = report.results.leaderboard.part
    if (why_not := report.why_not_published(part)) is not None:
        return f"Published systems are not listed: {why_not}.", []
    ours = [(s.variant, getattr(s, part), getattr(s, f"{part}_std")) for s in entries(report) if s.complete]
    lines = [(name, score, percent(score, deviation), "this run", True)
             for name, score, deviation in ours if score is not None]  # fmt: skip
    lines += [
        (p.name, p.score, percent(p.score), p.source, False)
        for p in published_systems(part, report.evaluation.rule_year)
    ]
    lines.sort(key=lambda line: -line[1])
    rows = [(name, score, source, own) for name, _, score, source, own in lines]
    place = next((i for i, row in enumerate(rows, 1) if row[3]), None)
    if place is None:
        return "No entry is complete: none can be ranked among published systems.", rows
    return f"{rows[place - 1][0]} is number {place} of {len(rows)} by the official score on the {part} set.", rows
