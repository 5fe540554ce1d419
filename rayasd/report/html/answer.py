"""Summary of a run in a few sentences: the best system, how sure that is, the worst machine and why."""

from dataclasses import dataclass

import numpy as np

from rayasd.errors import UserError
from rayasd.evaluation.leaderboard import Standing
from rayasd.evaluation.selection import LEAVE_ONE_OUT
from rayasd.report.html.heat import cell_groups
from rayasd.report.html.run import entries
from rayasd.report.run_report import RunReport
from rayasd.report.side_by_side import Contestant, compare_pair
from rayasd.report.tables import between, breaks_promise, decisions_of, percent, worst_machine


@dataclass(frozen=True)
class Answer:
    """Figures and sentences."""

    figures: tuple[tuple[str, str, str], ...]
    """Name, value, and what is beside it, such as an interval."""
    sentences: tuple[str, ...]


def answer(report: RunReport) -> Answer:
    """Sum up a run."""
    ranked = entries(report)
    if not ranked:
        return Answer((), ("No system has been scored.",))
    best, board = ranked[0], report.results.leaderboard
    auc = "AUC" if board.ranked_on == "development" else "held-out AUC"
    figures = [
        ("score", percent(getattr(best, board.part)), f"95 %: {between(best.interval)}"),
        (auc, percent(best.auc), f"95 %: {between(best.auc_interval)}"),
        ("false alarms", percent(best.decided.false_alarms), board.promise),
        ("recall", percent(best.decided.recall), "of the anomalous clips"),
        ("worst machine", worst_machine(best), f"of {len(best.machines)}"),
    ]
    shown = tuple(figure for figure in figures if figure[1] != "–")
    if getattr(best, board.part) is None:
        return Answer(shown, ("Nothing tells how good an entry is: no cell could be evaluated.",))
    place = f"is the best of {len(ranked)} entries" if len(ranked) > 1 else "is the only entry"
    first = f"{best.variant} ({best.detector}, {best.pooling}) {place}."
    return Answer(shown, (first, *_how_sure(report, ranked), *_why_worst(report, best)))


def _how_sure(report: RunReport, ranked: list[Standing]) -> list[str]:
    """Compare the best with the next by a paired bootstrap."""
    if len(ranked) < 2:
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
    cells = {
        column: [cell["auc"] for cell in rows if cell["auc"] is not None]
        for column, rows in cell_groups(report.results.cells, best.variant, machine).items()
        if column[0] == ranked_on or ranked_on == LEAVE_ONE_OUT
    }
    means = {column: float(np.mean(aucs)) for column, aucs in cells.items() if aucs}
    part, section, domain = lowest = min(means, key=means.__getitem__)
    words = [f"Worst machine: {machine}, AUC {percent(known[machine])}"]
    words.append(f"lowest in {part} section {section}, {domain} ({percent(means[lowest])})")
    domains = {name: [auc for (_, _, of), auc in means.items() if of == name] for name in ("source", "target")}
    if all(domains.values()):
        words.append("; ".join(f"{name} mean {percent(float(np.mean(aucs)))}" for name, aucs in domains.items()))
    decided = decisions_of(report.results.cells, best.variant, "machine").get((machine,))
    if decided and decided.false_alarms is not None:
        above = ", more than promised" if breaks_promise(decided, report.evaluation) else ""
        words.append(f"{percent(decided.false_alarms)} % false alarms{above}, recall {percent(decided.recall)}")
    return ["; ".join(words) + "."]
