"""The leaderboard as rows of text and numbers: one place decides columns, order and rounding."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from rayasd.config import EvaluationConfig
from rayasd.evaluation.decisions import TRAINED_ON_WARNING, Decided
from rayasd.evaluation.leaderboard import Interval, Leaderboard, Standing
from rayasd.evaluation.selection import LEAVE_ONE_OUT
from rayasd.evaluation.years import RULES
from rayasd.inlier.scores_file import TRAINED_ON

INTERVAL = "95 % interval"
_REASONS = 3  # that are shown


def heading(leaderboard: Leaderboard, machines: Sequence[str]) -> list[str]:
    """Column titles of ``row``."""
    reported, chosen = ("held out", "all") if leaderboard.ranked_on == LEAVE_ONE_OUT else ("eval", "dev")
    epochs = ["epochs"] if _several_checkpoints(leaderboard) else []
    return ["#", "variant", *epochs, "detector", "pooling", f"official {leaderboard.year} {reported}", INTERVAL,
            f"official {leaderboard.year} {chosen}", "AUC", "source", "target", "pAUC", *machines,
            "false alarms", "of normal clips", "recall", "calibration", "precision", "F1",
            "AUC all", "AUC interval", "pAUC interval", "seeds", "cells"]  # fmt: skip


def row(standing: Standing, leaderboard: Leaderboard) -> list[str]:
    """One system as text, scores in percent; a dash where there is nothing to average."""
    number = "oracle" if standing.oracle and standing.rank is None else ""
    epochs = ["–" if standing.checkpoint is None else str(standing.checkpoint)]
    if not _several_checkpoints(leaderboard):
        epochs = []
    return [
        str(standing.rank or number),
        standing.variant,
        *epochs,
        standing.detector,
        standing.pooling,
        percent(standing.evaluation, standing.evaluation_std),
        between(standing.interval),
        percent(standing.development, standing.development_std),
        percent(standing.auc),
        percent(standing.source_auc),
        percent(standing.target_auc),
        percent(standing.pauc),
        *(percent(value) for value in standing.machines.values()),
        percent(standing.decided.false_alarms),
        between(standing.decided.false_alarms_interval),
        percent(standing.decided.recall),
        standing.decided.calibration or "–",
        percent(standing.precision),
        percent(standing.f1),
        percent(standing.auc_all),
        between(standing.auc_interval),
        between(standing.pauc_interval),
        str(standing.num_seeds or "all"),
        coverage(standing),
    ]


def _several_checkpoints(leaderboard: Leaderboard) -> bool:
    """Whether a variant has several checkpoints to choose from."""
    kept = {(s.variant, s.checkpoint) for s in leaderboard.standings if s.checkpoint is not None}
    return len(kept) > len({variant for variant, _ in kept})


def markdown_table(titles: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Write a table in Markdown; bars and HTML within a cell are escaped."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("<", "&lt;") for cell in cells) + " |"

    return "\n".join([line(titles), line(["---"] * len(titles)), *map(line, lines)])


def percent(value: float | None, deviation: float | None = None) -> str:
    """Write a fraction in percent, with its deviation over seeds."""
    if value is None:
        return "–"
    return f"{100 * value:.2f}" + (f" ± {100 * deviation:.2f}" if deviation is not None else "")


def between(interval: Interval | None) -> str:
    """Write an interval in percent."""
    return "–" if interval is None else f"{percent(interval[0])}–{percent(interval[1])}"


def decision_table(cells: pa.Table, entry: str, evaluation: EvaluationConfig) -> tuple[list[str], list[list[str]]]:
    """Titles and rows of what an entry's decisions came to, a row a machine and domain."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for cell in cells.filter(pc.field("selected") & (pc.field("variant") == entry)).to_pylist():
        if cell["num_calibration"] is not None:
            groups.setdefault((cell["machine"], cell["domain"]), []).append(cell)
    promised = percent(evaluation.false_alarm_rate) if evaluation.threshold == "conformal" else "–"
    titles = ["machine", "domain", "promised", "false alarms", INTERVAL, "recall", "calibration", "from", "note"]
    found = {place: Decided.of(of_place) for place, of_place in sorted(groups.items())}
    rows = [
        [*place, promised, percent(of.false_alarms), between(of.false_alarms_interval), percent(of.recall),
         of.calibration or "–", str(of.num_calibration), of.no_threshold or ""]
        for place, of in found.items()
    ]  # fmt: skip
    return titles, rows


def coverage(standing: Standing) -> str:
    """Write how many labelled cells a system has, of those that it should have."""
    return f"{standing.cells_ok}/{standing.cells_expected}"


def footnotes(
    leaderboard: Leaderboard, *, synthetic: bool, oracle: bool = False, all_systems: bool = False
) -> list[str]:
    """Say what the table is, sentence by sentence: one of the entries, with the oracle, or of all systems."""
    notes = []
    if synthetic:
        notes.append(
            "Synthetic data: made by rayasd data synth, not recorded; these figures say nothing about real machines."
        )
    if all(s.auc_all is None for s in leaderboard.standings):
        notes.append("No cell could be evaluated.")
    elif not leaderboard.chosen:
        notes.append("No labelled sections to choose on: nothing could be chosen, the first complete system is shown.")
    elif leaderboard.ranked_on == LEAVE_ONE_OUT:
        notes.append(
            "Held out: each section's cells count under the checkpoint, detector and pooling that are best on all "
            "other sections (leave one section out). The score over all sections at once is of single systems only."
        )
    elif leaderboard.ranked_on == "evaluation":
        notes.append(
            "Checkpoint, detector and pooling chosen on the development sections, ranked on the evaluation sections."
        )
    else:
        notes.append(
            "No labelled evaluation sections: ranked by the development score, on which detector and pooling were "
            "chosen too, so these figures flatter."
        )
    intervals = [s.auc_interval for s in leaderboard.ranked if s.auc_interval is not None]
    if intervals and all(low <= 0.5 for low, _ in intervals):
        notes.append(
            "No better than chance: no entry's mean AUC is surely above 50. Do labels and clips belong together? "
            "docs/troubleshooting.md, 'The table looks wrong'."
        )
    if (found := leaderboard.beaten_by_control) is not None:
        control, beaten = found
        notes.append(
            f"Beaten by a control: {control.variant}, of which nothing is trained, has a higher mean AUC "
            f"({percent(control.auc)}) than {', '.join(entry.variant for entry in beaten)}."
        )
    if leaderboard.source_only:
        notes.append(
            f"No target-domain clip is shown to the detectors of {', '.join(leaderboard.source_only)} "
            '(docs/method.md, Inlier models): inlier.fit_on = "train" shows them all.'
        )
    if leaderboard.criterion == "auc" and leaderboard.chosen:
        notes.append("Chosen by the mean AUC, not by the official score.")
    notes.append(
        f"Official: DCASE {leaderboard.year} score, {RULES[leaderboard.year]}; pAUC up to a false-positive rate of 0.1."
    )
    cells = "held-out" if leaderboard.ranked_on == LEAVE_ONE_OUT else leaderboard.ranked_on
    notes.append(
        f"Of the {cells} cells: AUC, pAUC, precision, recall and F1, arithmetic means; source, target and machines, "
        "harmonic means of AUC. AUC all: arithmetic mean over all labelled cells. In percent."
    )
    notes.append(f"95 % intervals: over the {cells} cells, bootstrap over test clips; the spread over seeds follows ±.")
    if any(s.f1 is not None for s in leaderboard.ranked):
        notes.append(
            f"False alarms: share of normal test clips that are called anomalous, {leaderboard.promise}, with exact "
            "95 % intervals. Recall, precision, F1: of the same decisions. Calibration: how the normal clips whose "
            "scores set thresholds were kept from extractor and detector."
        )
    if known := [s.variant for s in leaderboard.ranked if TRAINED_ON in (s.decided.calibration or "")]:
        notes.append(
            f"No promise holds for {', '.join(known)}: {TRAINED_ON_WARNING}; hold some out (exposure.hold_out)."
        )
    undecided: dict[str, list[str]] = {}
    for entry in leaderboard.ranked:
        if entry.decided.no_threshold is not None:
            somewhere = "" if entry.f1 is None else " (in some sections)"
            undecided.setdefault(entry.decided.no_threshold, []).append(entry.variant + somewhere)
    notes += [f"No decisions of {', '.join(names)}: {reason}." for reason, names in undecided.items()]
    if any(set("+&") & set(s.variant) for s in leaderboard.ranked):
        notes.append(
            "Entries with a + or &: ensembles, over what follows the +, of the variants joined by &; scores are scaled "
            "by training scores alone."
        )
    best = leaderboard.oracle
    if (oracle or all_systems) and best is not None:
        notes.append(
            "Oracle: chosen on the sections that it is reported on. It is no result and has no rank."
            if best.rank is None
            else f"Oracle: number {best.rank} is also the best system in hindsight."
        )
    num_systems = len(leaderboard.standings)
    if num_systems > len(leaderboard.ranked) and not all_systems:
        notes.append(
            f"The chosen systems are shown, of {num_systems}; leaderboard.csv and rayasd report --all have all."
        )
    if reasons := leaderboard.unlabelled:
        more = f"; and {len(reasons) - _REASONS} other reasons" if len(reasons) > _REASONS else ""
        has_them = not any(word in " ".join(reasons) for word in ("have no label", "is unknown"))
        remedy = "" if has_them else ". --ground-truth DIR adds labels and domains"
        notes.append(f"Without a score: {'; '.join(reasons[:_REASONS])}{more}{remedy}.")
    incomplete = [f"{s.variant} {s.detector} {s.pooling} ({coverage(s)})" for s in leaderboard.ranked if not s.complete]
    if incomplete:
        notes.append("Incomplete, ranked below the complete: " + "; ".join(incomplete) + ".")
    return notes
