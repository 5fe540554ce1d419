"""The leaderboard as columns of text, and what a person must know about it: the same on every medium."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayasd.config import EvaluationConfig
from rayasd.evaluation.decisions import TRAINED_ON_WARNING, Decided
from rayasd.evaluation.leaderboard import Interval, Leaderboard, Standing
from rayasd.evaluation.selection import LEAVE_ONE_OUT
from rayasd.evaluation.years import RULES
from rayasd.inlier.scores_file import TRAINED_ON

INTERVAL = "95 % interval"
PARTS = {"development": "dev", "evaluation": "eval"}
WORDS = {
    "attribute", "entry", "system", "detector", "pooling", "calibration", "machine", "worst machine", "domain", "note",
    "from",
}  # fmt: skip
"""Titles of columns that hold words; all others hold numbers."""
_SHOWN = 3  # reasons, or names in a sentence
_LOW, _MIDDLE, _HIGH = np.array([178, 76, 0]), np.array([245, 243, 238]), np.array([0, 84, 147])


@dataclass(frozen=True)
class Column:
    """A column of the leaderboard."""

    title: str
    room: int  # 0: always shown; higher: only where there is room, after those with a lower number
    text: Callable[[Standing], str]


def columns(board: Leaderboard, *, all_systems: bool = False) -> list[Column]:
    """Return the leaderboard's columns, scores in percent; none that would hold nothing but dashes.

    ``all_systems``: columns that distinguish systems of one variant come before those that only entries have.
    """
    chosen = {"evaluation": "dev score", LEAVE_ONE_OUT: "score on all"}.get(board.ranked_on)
    auc = "AUC" if chosen is None else "held-out AUC"
    system, outcome = (0, 1) if all_systems else (2, 0)
    machines = list(board.standings[0].machines) if board.standings else []
    several = machines if len(machines) > 1 else []
    found = [
        Column("#", 0, lambda s: str(s.rank or ("oracle" if s.oracle else ""))),
        Column("entry", 0, lambda s: s.variant),
        Column("score", 0, lambda s: percent(getattr(s, board.part), getattr(s, f"{board.part}_std"))),
        Column(INTERVAL, 1, lambda s: between(s.interval)),
        Column(auc, 0, lambda s: percent(s.auc)),
        Column("false alarms", outcome, lambda s: percent(s.decided.false_alarms)),
        *([Column("worst machine", outcome, worst_machine)] if several else []),
        Column("detector", system, lambda s: s.detector),
        Column("pooling", system, lambda s: s.pooling),
        *([Column(chosen, 4, lambda s: percent(s.development, s.development_std))] if chosen else []),
        Column("source", 3, lambda s: percent(s.source_auc)),
        Column("target", 3, lambda s: percent(s.target_auc)),
        Column("pAUC", 4, lambda s: percent(s.pauc)),
        *(Column(name, 5, lambda s, name=name: percent(s.machines[name])) for name in several),  # type: ignore[misc]
        Column("recall", 4, lambda s: percent(s.decided.recall)),
        Column("precision", 7, lambda s: percent(s.precision)),
        Column("F1", 7, lambda s: percent(s.f1)),
        Column("false alarms, 95 %", 7, lambda s: between(s.decided.false_alarms_interval)),
        Column("calibration", 7, lambda s: s.decided.calibration or "–"),
        Column("AUC on all", 6, lambda s: percent(s.auc_all)),
        Column("AUC, 95 %", 8, lambda s: between(s.auc_interval)),
        Column("pAUC, 95 %", 8, lambda s: between(s.pauc_interval)),
        Column("seeds", 6, lambda s: str(s.num_seeds or "all")),
        Column("cells", 6, coverage),
    ]
    kept = {(s.variant, s.checkpoint) for s in board.standings if s.checkpoint is not None}
    if len(kept) > len({variant for variant, _ in kept}):  # a variant has several checkpoints to choose from
        found.append(Column("epochs", system, lambda s: "–" if s.checkpoint is None else str(s.checkpoint)))
    always = ("#", "entry", "score")
    return [c for c in found if c.title in always or any(c.text(s) != "–" for s in board.standings)]


def worst_machine(standing: Standing) -> str:
    """Name the machine with the lowest AUC, and that."""
    known = {name: auc for name, auc in standing.machines.items() if auc is not None}
    return " ".join((name := min(known, key=known.__getitem__), percent(known[name]))) if known else "–"


def markdown_table(titles: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Write a table in Markdown; bars and HTML within a cell are escaped."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("<", "&lt;") for cell in cells) + " |"

    return "\n".join([line(titles), line(["---"] * len(titles)), *map(line, lines)])


def percent(value: float | None, deviation: float | None = None) -> str:
    """Write a fraction in percent, with its deviation over seeds."""
    if value is None:
        return "–"
    rounded = round(100 * value, 2) + 0.0  # never "-0.00"
    return f"{rounded:.2f}" + (f" ± {100 * deviation:.2f}" if deviation is not None else "")


def between(interval: Interval | None) -> str:
    """Write an interval in percent."""
    return "–" if interval is None else f"{percent(interval[0])}–{percent(interval[1])}"


def heat_colours(auc: float) -> tuple[str, str]:
    """Colour of an AUC, orange below chance and blue above it, and of the digits on it."""
    share = float(np.clip((auc - 0.5) / 0.5, -0.6, 1))
    end, amount = (_HIGH, share) if share > 0 else (_LOW, -share / 0.6)
    colour = _MIDDLE + (end - _MIDDLE) * amount
    bright = colour @ [0.299, 0.587, 0.114] > 140
    return "#" + "".join(f"{round(c):02x}" for c in colour), "#111111" if bright else "#ffffff"


def decisions_of(cells: pa.Table, entry: str, *by: str) -> dict[tuple[str, ...], Decided]:
    """Return what an entry's decisions came to in each group of cells, such as by machine and domain."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for cell in cells.filter(pc.field("selected") & (pc.field("variant") == entry)).to_pylist():
        if cell["num_calibration"] is not None:
            groups.setdefault(tuple(cell[name] for name in by), []).append(cell)
    return {place: Decided.of(of_place) for place, of_place in sorted(groups.items())}


def decision_table(cells: pa.Table, entry: str, evaluation: EvaluationConfig) -> tuple[list[str], list[list[str]]]:
    """Titles and rows of what an entry's decisions came to, one row per machine and domain."""
    promised = percent(evaluation.false_alarm_rate) if evaluation.threshold == "conformal" else "–"
    titles = ["machine", "domain", "promised", "false alarms", INTERVAL, "recall", "calibration", "clips", "note"]
    rows = [
        [*place, promised, percent(of.false_alarms), between(of.false_alarms_interval), percent(of.recall),
         of.calibration or "–", str(of.num_calibration), of.no_threshold or ""]
        for place, of in decisions_of(cells, entry, "machine", "domain").items()
    ]  # fmt: skip
    return titles, rows


def coverage(standing: Standing) -> str:
    """Write how many labelled cells a system has, of those that it should have."""
    return f"{standing.cells_ok}/{standing.cells_expected}"


def breaks_promise(decided: Decided, evaluation: EvaluationConfig) -> bool:
    """Whether false alarms are surely more than was promised: the whole interval lies above the rate."""
    interval = decided.false_alarms_interval
    return evaluation.threshold == "conformal" and interval is not None and interval[0] > evaluation.false_alarm_rate


def alerts(board: Leaderboard, evaluation: EvaluationConfig, *, synthetic: bool) -> list[str]:
    """List what makes the figures doubtful, most serious first."""
    found = []
    if synthetic:
        found.append("Synthetic data, made by rayasd data synth: these figures tell nothing about real machines.")
    if all(s.auc_all is None for s in board.standings):
        found.append("No cell could be evaluated.")
    elif not board.chosen:
        found.append("No labelled sections to choose on: the first complete system is shown.")
    elif board.ranked_on == "development":
        found.append(
            "No labelled evaluation sections: systems are ranked on the sections that they were chosen on, so the "
            "figures are too good."
        )
    intervals = [s.auc_interval for s in board.ranked if s.auc_interval is not None]
    if intervals and all(low <= 0.5 for low, _ in intervals):
        found.append(
            "No better than chance: no entry's mean AUC is surely above 50. Check that labels belong to the clips "
            "(docs/troubleshooting.md, 'The table looks wrong')."
        )
    if (beaten := board.beaten_by_control) is not None:
        control, entries = beaten
        found.append(
            f"Beaten by a control: {control.variant}, which is not trained, has a higher mean AUC "
            f"({percent(control.auc)}) than {_named(entry.variant for entry in entries)}."
        )
    if broken := [s for s in board.ranked if breaks_promise(s.decided, evaluation)]:
        rates = (f"{s.variant} ({percent(s.decided.false_alarms)} %)" for s in broken)
        found.append(f"Too many false alarms: {board.promise}, measured: {_named(rates)}.")
    if known := [s.variant for s in board.ranked if TRAINED_ON in (s.decided.calibration or "")]:
        found.append(
            f"The false-alarm rate of {_named(known)} is not guaranteed: {TRAINED_ON_WARNING}. Hold some out "
            "(exposure.hold_out)."
        )
    undecided: dict[str, list[str]] = {}
    for entry in board.ranked:
        if entry.decided.no_threshold is not None:
            somewhere = "" if entry.f1 is None else " (in some sections)"
            undecided.setdefault(entry.decided.no_threshold, []).append(entry.variant + somewhere)
    found += [f"No decisions by {_named(names)}: {reason}." for reason, names in undecided.items()]
    if board.source_only:
        found.append(
            f"The detectors of {_named(board.source_only)} were fitted to no target-domain clip "
            '(docs/method.md, Inlier models): inlier.fit_on = "train" includes them.'
        )
    if reasons := board.unlabelled:
        has_them = not any(word in " ".join(reasons) for word in ("have no label", "is unknown"))
        remedy = "" if has_them else ". --ground-truth DIR adds labels and domains"
        found.append(f"Not evaluated: {_named(reasons, '; ')}{remedy}.")
    if incomplete := [f"{s.variant} {s.detector} {s.pooling} ({coverage(s)})" for s in board.ranked if not s.complete]:
        found.append(f"Incomplete, ranked below the others: {'; '.join(incomplete)}.")
    return found


def notes(board: Leaderboard, shown: Sequence[Standing], titles: Collection[str]) -> list[str]:
    """Explain the columns that are shown, and how these systems were chosen."""
    found = []
    if board.ranked_on == LEAVE_ONE_OUT:
        found.append(
            "Held out: in each section counts the system that is best on all other sections (leave one section out)."
        )
    elif board.ranked_on == "evaluation":
        found.append("Systems were chosen on the development sections and ranked on the evaluation sections.")
    if board.criterion == "auc" and board.chosen:
        found.append("Chosen by the mean AUC, not by the score.")
    found.append(f"Score: DCASE {board.year}, {RULES[board.year]}. All figures in percent.")
    explained = {
        INTERVAL: "bootstrap over test clips",
        "AUC": f"mean over the {board.where} cells",
        "held-out AUC": f"mean over the {board.where} cells",
        "worst machine": "harmonic mean of its AUCs" + ("; likewise source, target" if "source" in titles else ""),
        "pAUC": "up to a false-positive rate of 0.1",
        "false alarms": f"share of normal test clips called anomalous, {board.promise}",
        "calibration": "how the normal clips that set thresholds were kept from training",
        "AUC on all": "mean over development and evaluation cells",
    }
    if "±" in "".join(column.text(s) for column in columns(board) if column.title == "score" for s in shown):
        explained = {"±": "standard deviation over seeds", **explained}
        titles = {"±", *titles}
    found += [f"{t.capitalize() if t.islower() else t}: {text}." for t, text in explained.items() if t in titles]
    if any(set("+&") & set(s.variant) for s in shown):
        found.append("Entries with + or &: ensembles over what follows the +, of the variants joined by &.")
    if (best := board.oracle) in shown and best is not None and (best.rank is None or len(shown) > len(board.ranked)):
        found.append(
            "Oracle: the best system in hindsight, chosen on the sections that it is reported on; not a result."
            if best.rank is None
            else f"Entry {best.rank} is also the best system in hindsight."
        )
    if len(board.standings) > len(shown):
        found.append(f"All {len(board.standings)} systems: leaderboard.csv, rayasd report --all.")
    return found


def _named(names: Iterable[str], separator: str = ", ") -> str:
    names = list(names)
    rest = len(names) - _SHOWN
    return separator.join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
