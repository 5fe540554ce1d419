"""Several runs side by side: two systems compared in pairs, or all entries in one ranking."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from rayasd.config import EvaluationConfig
from rayasd.errors import UserError, unknown
from rayasd.evaluation.bootstrap import Comparison, compare
from rayasd.evaluation.cells import cell_scores, labels_of
from rayasd.evaluation.published import published_systems
from rayasd.evaluation.selection import LEAVE_ONE_OUT
from rayasd.report.run_report import EntryRow, RunReport
from rayasd.report.tables import percent
from rayasd.wording import counted, near


@dataclass(frozen=True)
class Contestant:
    """An entry of a run's leaderboard, and its cells on one part."""

    report: RunReport
    entry: EntryRow
    cells: pa.Table

    @classmethod
    def of(cls, report: RunReport, entry: EntryRow, part: str) -> "Contestant":
        """Take the cells that count on one part; leave-one-section-out, all sections are held out."""
        cells = report.cells.filter((pc.field("variant") == entry["variant"]) & pc.field("selected"))
        if report.evaluation.selection != LEAVE_ONE_OUT:
            cells = cells.filter(pc.field("part") == part)
        return cls(report, entry, cells)

    @classmethod
    def named(cls, report: RunReport, variant: str | None, part: str) -> "Contestant":
        """Take an entry of one variant of a run, by default the first in rank.

        Raises UserError: the run has no such variant, or lacks cells of it.
        """
        found, run = report.entries(single_variant=True), near(report.store.paths.root)
        if variant is not None and variant not in found:
            raise unknown(f"variant of {run}", variant, found)
        entry = found[variant] if variant is not None else next(iter(found.values()))
        contestant = cls.of(report, entry, part)
        if entry["cells_ok"] < entry["cells_expected"]:
            raise UserError(f"{run}: {entry['variant']} is incomplete ({contestant.coverage}): rayasd sweep continues")
        return contestant

    @property
    def name(self) -> str:
        """Run and system."""
        return f"{self.report.store.paths.root.name} {self.system}"

    @property
    def system(self) -> str:
        """Variant, detector and pooling."""
        return f"{self.entry['variant']} {self.entry['detector']} {self.entry['pooling']}"

    @property
    def coverage(self) -> str:
        """How many of its cells exist."""
        return f"{self.entry['cells_ok']}/{self.entry['cells_expected']} cells"

    @property
    def domain_aucs(self) -> list[float | None]:
        """Arithmetic mean of AUC over source cells and over target cells, fractions of 1."""
        domains = (self.cells.filter(pc.field("domain") == domain) for domain in ("source", "target"))
        return [pc.mean(cells["auc"]).as_py() for cells in domains]


@dataclass(frozen=True)
class PairedResult:
    """Two systems, compared on the same draws of the same clips."""

    official: Comparison
    auc: Comparison
    year: int
    where: str  # name of the compared sections
    num_cells: int
    note: str  # seeds that were left out


def ranking_part(reports: Sequence[RunReport]) -> str:
    """Return the part that all these runs have scores on: evaluation, else development."""
    have = [any(entry["evaluation"] is not None for entry in report.entries().values()) for report in reports]
    return "evaluation" if all(have) else "development"


def compare_pair(first: Contestant, second: Contestant, part: str) -> PairedResult:
    """Compare two systems by a paired bootstrap over test clips.

    Raises UserError: they have no seed in common, other rules, other clips, or no labels.
    """
    pair, note = _of_common_seeds(first, second)
    year, where = _common_rules([each.report.evaluation for each in pair], part)
    systems = [cell_scores(each.report.scored, labels_of(each.report.catalog.table), each.cells, year) for each in pair]
    if not all(systems):
        raise UserError(f"no labelled {where} cells to compare on: rayasd report --ground-truth adds labels")
    return PairedResult(*compare(systems[0], systems[1], year), year, where, len(systems[0]), note)


def verdicts(first: Contestant, second: Contestant, part: str) -> list[str]:
    """Compare two systems in sentences: by the score, by the mean AUC, and on what.

    Raises UserError: as of ``compare_pair``.
    """
    found = compare_pair(first, second, part)
    return [
        *(
            f"{measure}: {first.name} minus {second.name} is {percent(result.lead)} points, 95 % interval "
            f"{percent(result.low)} to {percent(result.high)}, above 0 in {percent(result.share)} % of the draws: "
            f"{'this is sure' if result.sure else 'no sure difference'}."
            for measure, result in ((f"DCASE {found.year} score", found.official), ("Mean AUC", found.auc))
        ),
        f"Paired bootstrap over the test clips of {found.num_cells} {found.where} cells{found.note}.",
    ]


def rank_runs(reports: Sequence[RunReport], part: str) -> tuple[list[dict[str, Any]], int, str, list[str]]:
    """Rank the entries of several runs, among published systems where all runs are on the benchmark's data.

    Returns rows with system, score, deviation, source_auc, target_auc and from, best first; the year; what the sections
    are called; and the reasons why published systems are left out. Raises UserError: the runs are scored by
    different rules.
    """
    rows: list[tuple[Any, ...]] = []
    rules, reasons = [], []
    for report in reports:
        rules.append(report.evaluation)
        for entry in report.entries().values():
            each = Contestant.of(report, entry, part)
            seeds = counted(entry["num_seeds"], "seed") if entry["num_seeds"] else "all seeds"
            origin = f"{report.store.paths.root.name}, {seeds}, {each.coverage}"
            rows.append((each.system, entry[part], entry[f"{part}_std"], *each.domain_aucs, origin))
        if (why_not := report.why_not_published(part)) is not None:
            reasons.append(f"{near(report.store.paths.root)}: published systems are left out: {why_not}")
    year, where = _common_rules(rules, part)
    if not reasons:
        published = published_systems(part, year)
        rows += [(each.name, each.score, None, None, None, f"published: {each.source}") for each in published]
    rows.sort(key=lambda row: -(row[1] or 0.0))
    names = ("system", "score", "deviation", "source_auc", "target_auc", "from")
    return [dict(zip(names, row, strict=True)) for row in rows], year, where, reasons


def ranking_table(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Titles and lines of what ``rank_runs`` returned, in percent."""
    lines = [
        [str(i), row["system"], percent(row["score"], row["deviation"]), percent(row["source_auc"]),
         percent(row["target_auc"]), row["from"]]
        for i, row in enumerate(rows, 1)
    ]  # fmt: skip
    return ["#", "system", "score", "source AUC", "target AUC", "from"], lines


def _of_common_seeds(first: Contestant, second: Contestant) -> tuple[tuple[Contestant, Contestant], str]:
    """Keep the cells of the seeds that both systems have, and name these; an ensemble is of all its seeds.

    Raises UserError: they have none in common.
    """
    mine, others = (
        {seed for seed in pc.unique(each.cells["seed"]).to_pylist() if seed is not None} for each in (first, second)
    )
    if not mine or not others:
        return (first, second), ""
    if not (common := sorted(mine & others)):
        raise UserError("the two have no seed in common: sweep both with the same --seeds to compare them in pairs")
    note = f"; of both, seeds {', '.join(map(str, common))} alone" if mine != others else ""
    kept = [replace(each, cells=each.cells.filter(pc.field("seed").isin(common))) for each in (first, second)]
    return (kept[0], kept[1]), note


def _common_rules(rules: Sequence[EvaluationConfig], part: str) -> tuple[int, str]:
    """Return the year and what the sections are called that several runs are put side by side on.

    Raises UserError: the runs are scored by rules that do not go together.
    """
    found = {(evaluation.rule_year, evaluation.selection, evaluation.development) for evaluation in rules}
    if len(found) > 1:
        several = "; ".join(f"{year}, {selection} {' '.join(development)}" for year, selection, development in found)
        raise UserError(
            f"the runs are scored by different rules (evaluation.year, .selection, .development: {several})"
        )
    return rules[0].rule_year, "held-out" if rules[0].selection == LEAVE_ONE_OUT else part
