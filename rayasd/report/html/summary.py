"""A run in words: the best system, how sure that is, the worst machine and why; what is missing; how it was made."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow.compute as pc

from rayasd.errors import UserError
from rayasd.evaluation.leaderboard import Standing, mean_of
from rayasd.evaluation.published import published_systems
from rayasd.evaluation.selection import ANY_VARIANT, LEAVE_ONE_OUT
from rayasd.files import read_record
from rayasd.report.html.heat import cell_groups
from rayasd.report.run_report import RunReport
from rayasd.report.side_by_side import Contestant, compare_pair
from rayasd.report.tables import between, breaks_promise, coverage, decisions_of, percent, worst_machine
from rayasd.sweep.states import State
from rayasd.unit import Unit
from rayasd.wording import counted, elapsed


def answer(report: RunReport) -> tuple[list[tuple[str, str, str]], list[str]]:
    """Return figures (name, value, and its interval or another remark) and sentences."""
    ranked = entries(report)
    if not ranked:
        return [], ["No system has been scored."]
    best, board = ranked[0], report.results.leaderboard
    auc = "AUC" if board.ranked_on == "development" else "held-out AUC"
    figures = [
        ("score", percent(getattr(best, board.part)), f"95 %: {between(best.interval)}"),
        (auc, percent(best.auc), f"95 %: {between(best.auc_interval)}"),
        ("false alarms", percent(best.decided.false_alarms), board.promise),
        ("recall", percent(best.decided.recall), "of the anomalous clips"),
        ("worst machine", worst_machine(best), f"of {len(best.machines)}"),
    ]
    shown = [figure for figure in figures if figure[1] != "–"]
    if getattr(best, board.part) is None:
        return shown, ["Nothing tells how good an entry is: no cell could be evaluated."]
    place = f"is the best of {len(ranked)} entries" if len(ranked) > 1 else "is the only entry"
    first = f"{best.variant} ({best.detector}, {best.pooling}) {place}."
    return shown, [first, *_how_sure(report, ranked), *_why_worst(report, best)]


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
    finished = done(report)
    markers = list(filter(None, (read_record(paths.marker(unit, "DONE")) for unit in finished)))
    of_units = "all units" if len(markers) == len(finished) else f"{counted(len(markers), 'unit')} that this copy has,"
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
        ("time", f"{elapsed(busy)} of {of_units} together"),
        ("units", f"{len(finished)} of {len(report.sweep.states)} done"),
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
    entered = [(getattr(s, part), s) for s in entries(report) if s.complete]
    lines = [(score, s.variant, percent(score, getattr(s, f"{part}_std")), "this run", True)
             for score, s in entered if score is not None]  # fmt: skip
    year = report.evaluation.rule_year
    lines += [(p.score, p.name, percent(p.score), p.source, False) for p in published_systems(part, year)]
    rows = [line[1:] for line in sorted(lines, key=lambda line: -line[0])]
    place = next((i for i, row in enumerate(rows, 1) if row[3]), None)
    if place is None:
        return "No entry is complete: none can be ranked among published systems.", rows
    return f"{rows[place - 1][0]} is number {place} of {len(rows)} by the official score on the {part} set.", rows


def _how_sure(report: RunReport, ranked: list[Standing]) -> list[str]:
    """Compare the best with the next by a paired bootstrap."""
    if len(ranked) < 2 or not all(entry.complete for entry in ranked[:2]):
        return []
    rows, part = report.entries(), report.results.leaderboard.part
    pair = [Contestant.of(report, rows[entry.variant], part) for entry in ranked[:2]]
    try:
        found = compare_pair(pair[0], pair[1], part).official
    except UserError as error:
        return [f"How sure that is cannot be computed: {error}."]
    surely = "this is sure" if found.sure else "this is not sure"
    return [
        f"Its score is {percent(found.lead)} points above that of {ranked[1].variant}, the next (95 % interval "
        f"{percent(found.low)} to {percent(found.high)}, paired bootstrap): {surely}."
    ]


def _why_worst(report: RunReport, best: Standing) -> list[str]:
    """Name the lowest cell of the worst machine, how its domains differ, and its false alarms."""
    known = {machine: auc for machine, auc in best.machines.items() if auc is not None}
    if not known:
        return []
    machine, ranked_on = min(known, key=known.__getitem__), report.results.leaderboard.ranked_on
    means = {
        column: auc
        for column, rows in cell_groups(report.results.cells, best.variant, machine).items()
        if ranked_on in (column[0], LEAVE_ONE_OUT) and (auc := mean_of(rows, "auc")) is not None
    }
    part, section, domain = lowest = min(means, key=means.__getitem__)
    words = [f"Worst machine: {machine}, AUC {percent(known[machine])}"]
    words.append(f"lowest in {part} section {section}, {domain} ({percent(means[lowest])})")
    domains = {name: [auc for (_, _, of), auc in means.items() if of == name] for name in ("source", "target")}
    if all(domains.values()):
        words.append("; ".join(f"{name} mean {percent(float(np.mean(aucs)))}" for name, aucs in domains.items()))
    decided = decisions_of(report.ranking_cells, best.variant, "machine").get((machine,))
    if decided and decided.false_alarms is not None:
        above = ", more than promised" if breaks_promise(decided, report.evaluation) else ""
        words.append(f"{percent(decided.false_alarms)} % false alarms{above}, recall {percent(decided.recall)}")
    return ["; ".join(words) + "."]
