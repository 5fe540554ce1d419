"""The leaderboard as rows of text and numbers: one place decides columns, order and rounding."""

from collections.abc import Sequence

from rayasd.evaluation.leaderboard import Leaderboard, Standing


def heading(machines: Sequence[str]) -> list[str]:
    """Column titles of ``row``."""
    return ["#", "variant", "detector", "pooling", "official eval", "95 % interval", "official dev", "AUC", "pAUC",
            "source", "target", *machines, "AUC all", "seeds", "cells"]  # fmt: skip


def row(standing: Standing) -> list[str]:
    """One system as text, scores in percent; a dash where there is nothing to average."""
    return [
        "" if standing.rank is None else str(standing.rank),
        standing.variant,
        standing.detector,
        standing.pooling,
        percent(standing.evaluation, standing.evaluation_std),
        "–" if standing.low is None else f"{percent(standing.low)}–{percent(standing.high)}",
        percent(standing.development, standing.development_std),
        percent(standing.auc),
        percent(standing.pauc),
        percent(standing.source_auc),
        percent(standing.target_auc),
        *(percent(value) for value in standing.machines.values()),
        percent(standing.auc_all),
        str(standing.num_seeds),
        coverage(standing),
    ]


def markdown_table(titles: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Write a table in Markdown; a bar within a cell is escaped."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(titles), line(["---"] * len(titles)), *map(line, lines)])


def percent(value: float | None, deviation: float | None = None) -> str:
    """Write a fraction in percent, with its deviation over seeds."""
    if value is None:
        return "–"
    return f"{100 * value:.2f}" + (f" ± {100 * deviation:.2f}" if deviation is not None else "")


def coverage(standing: Standing) -> str:
    """Cells that stand behind a system's scores, of those that have labels."""
    return f"{standing.cells_ok}/{standing.cells_expected}"


def footnotes(leaderboard: Leaderboard, *, synthetic: bool) -> list[str]:
    """Say what the table is, sentence by sentence."""
    notes = []
    if synthetic:
        notes.append(
            "Synthetic data: made by rayasd data synth, not recorded; these figures say nothing about real machines."
        )
    if all(s.auc_all is None for s in leaderboard.standings):
        notes.append("No cell could be evaluated.")
    elif not leaderboard.chosen:
        notes.append("No labelled development sections: nothing could be chosen, the first complete system stands.")
    elif leaderboard.ranked_on == "evaluation":
        notes.append("Detector and pooling chosen on the development sections, ranked on the evaluation sections.")
    else:
        notes.append(
            "No labelled evaluation sections: ranked by the development score, on which detector and pooling were "
            "chosen too, so these figures flatter."
        )
    notes.append(
        "Official: DCASE 2021 score, the harmonic mean of AUC and pAUC (max. FPR 0.1) over a part's (machine, section, "
        f"domain) cells. Of the {leaderboard.ranked_on} cells: AUC and pAUC, arithmetic means; source, target and "
        "machines, harmonic means of AUC. AUC all: arithmetic mean over development and evaluation cells. In percent."
    )
    notes.append(
        f"95 % interval: of the official score on the {leaderboard.ranked_on} sections, bootstrap over test clips; the "
        "spread over seeds stands after ±."
    )
    if len(leaderboard.standings) > len(leaderboard.ranked):
        notes.append(
            f"Of {len(leaderboard.standings)} systems, the one chosen of each variant is shown; leaderboard.csv and "
            "rayasd report --all have all."
        )
    unlabelled = max((s.cells_unlabelled for s in leaderboard.standings), default=0)
    if unlabelled:
        notes.append(
            f"{unlabelled} cells have no labels (or one class only) and take no part; --ground-truth DIR adds labels."
        )
    incomplete = [f"{s.variant} {s.detector} {s.pooling} ({coverage(s)})" for s in leaderboard.ranked if not s.complete]
    if incomplete:
        notes.append("Incomplete, ranked below the complete: " + "; ".join(incomplete) + ".")
    return notes
