"""The leaderboard: entries ranked by the sections that did not choose them, and every system behind them."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayasd.config import EvaluationConfig
from rayasd.ensemble_names import parse_entry
from rayasd.evaluation.decisions import Decided
from rayasd.evaluation.metrics import harmonic_mean
from rayasd.evaluation.scores import System
from rayasd.evaluation.selection import ANY_VARIANT, LEAVE_ONE_OUT, CellRow, EntryCells, left_out, official, system_of
from rayasd.files import digest
from rayasd.nested import differing
from rayasd.wording import counted

PER_SECTION = "per section"  # detector of an entry whose sections have systems of their own

RULES, CELLS = "rules", "cells"
"""Keys of leaderboard.parquet's metadata: the digest of its rules, and the sha256 of cells.parquet."""

Interval = tuple[float, float]


def rules_digest(evaluation: EvaluationConfig) -> str:
    """Return the sha256 of the rules that differ from the defaults."""
    return digest(differing(evaluation))


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One system over all its seeds, or an entry of several. Scores are fractions of 1; None where there are none."""

    variant: str
    checkpoint: int | None  # epochs trained; None: chosen per section
    detector: str
    pooling: str
    num_seeds: int  # 0: an ensemble over seeds
    rank: int | None = None  # rank of an entry; None for all other systems
    oracle: bool = False
    """The best of all systems on the very sections that rank: the limit of better choosing, never ranked."""
    development: float | None  # official score on the sections that choose, mean over seeds
    development_std: float | None
    evaluation: float | None  # the same on the sections that rank
    evaluation_std: float | None
    interval: Interval | None = None
    """95 % bootstrap interval of the score that ranks, over test clips; for ranked and complete entries."""
    auc: float | None  # arithmetic mean over the cells that rank, and seeds; like the next
    auc_interval: Interval | None = None
    pauc: float | None
    pauc_interval: Interval | None = None
    source_auc: float | None  # harmonic mean over source-domain cells that rank, mean over seeds
    target_auc: float | None
    machines: dict[str, float | None]  # harmonic mean of AUC per machine type, mean over seeds
    decided: Decided  # false alarms and recall in the cells that rank; for entries alone, like precision and F1
    precision: float | None  # arithmetic mean over the cells that rank and have decisions, and seeds, like the next
    f1: float | None
    auc_all: float | None  # arithmetic mean over all cells, development and evaluation
    cells_ok: int
    cells_expected: int  # cells that the plan makes, over all seeds, labelled ones only
    cells_unlabelled: int

    @property
    def complete(self) -> bool:
        """Whether no labelled cell is missing."""
        return self.cells_ok == self.cells_expected


@dataclass(frozen=True)
class Leaderboard:
    """Ranked entries first, then all systems by development score."""

    standings: tuple[Standing, ...]
    year: int  # DCASE year whose rule the official scores follow
    ranked_on: str  # evaluation; development, where no evaluation section has labels; or leave-one-section-out
    chosen: bool  # whether there were labelled sections to choose on
    criterion: str = "official"  # criterion of the choice: the official score or the mean AUC
    promise: str = ""  # promise of the thresholds about false alarms
    controls: tuple[str, ...] = ()  # variants of which nothing is trained
    source_only: tuple[str, ...] = ()
    """Variants whose detectors are fitted to no target-domain clip, though there are some to train on."""
    unlabelled: tuple[str, ...] = ()  # why cells cannot be evaluated, with the number of cells, most frequent first

    @property
    def part(self) -> str:
        """Part whose score ranks, a standing's field; leave-one-section-out, held-out scores are in ``evaluation``."""
        return "development" if self.ranked_on == "development" else "evaluation"

    @property
    def where(self) -> str:
        """Name of the cells that rank."""
        return "held-out" if self.ranked_on == LEAVE_ONE_OUT else self.ranked_on

    @property
    def ranked(self) -> list[Standing]:
        """Entries, best first."""
        return [s for s in self.standings if s.rank is not None]

    @property
    def beaten_by_control(self) -> tuple[Standing, list[Standing]] | None:
        """The best control and the trained entries that have a lower mean AUC than it; None if there are none."""
        known = [entry for entry in self.ranked if entry.auc is not None and not entry.variant.startswith(ANY_VARIANT)]
        controls = [entry for entry in known if set(parse_entry(entry.variant).variants) <= set(self.controls)]
        best = max(controls, key=_mean_auc, default=None)
        beaten = [e for e in known if best and e not in controls and _mean_auc(e) < _mean_auc(best)]
        return (best, beaten) if best and beaten else None

    @property
    def oracle(self) -> Standing | None:
        """Return the best system in hindsight, where ranking and choosing sections differ."""
        return next((s for s in self.standings if s.oracle), None)


def _mean_auc(standing: Standing) -> float:
    return standing.auc or 0.0


def rank(
    cells: pa.Table, entries: EntryCells, expected: Mapping[str, int], evaluation: EvaluationConfig
) -> Leaderboard:
    """Build the leaderboard.

    ``cells`` with ``selected`` set; ``entries`` as ``select`` gave them; ``expected``: labelled cells that the plan
    makes for each variant, over all its seeds.
    """
    parts = set(pc.unique(cells.filter(pc.field("status") == "ok")["part"]).to_pylist())
    held_out = evaluation.selection == LEAVE_ONE_OUT
    ranked_on = LEAVE_ONE_OUT if held_out else "evaluation" if "evaluation" in parts else "development"
    machines = sorted(pc.unique(cells["machine"]).to_pylist())
    all_rows: list[CellRow] = cells.to_pylist()
    systems: dict[System, list[CellRow]] = {}
    for row in all_rows:
        systems.setdefault(system_of(row), []).append(row)

    def standing(rows: Sequence[CellRow], number: int, variant: str | None = None) -> Standing:
        return _standing(rows, number, variant, evaluation.rule_year, machines, ranked_on)

    def count(entry: str, rows: Sequence[CellRow]) -> int:
        if entry in expected:
            return expected[entry]
        variants = {row["variant"] for row in rows}  # of an entry whose variant is chosen
        seeds = {variant: len({row["seed"] for row in all_rows if row["variant"] == variant}) for variant in variants}
        return max(expected[v] // seeds[v] for v in variants) * len({row["seed"] for row in rows})

    of_entry = {name: [all_rows[i] for i in places] for name, places in entries.items()}
    ranked = [standing(rows, count(name, rows), name) for name, rows in of_entry.items()]
    score = "development" if ranked_on == "development" else "evaluation"
    ranked.sort(key=lambda s: (not s.complete, -(getattr(s, score) or -1.0), s.decided.false_alarms is None, s.variant))
    ranked = [replace(s, rank=i) for i, s in enumerate(ranked, 1)]
    shown = set() if held_out else {(s.variant, s.checkpoint, s.detector, s.pooling) for s in ranked}
    others = [standing(rows, expected[system.variant]) for system, rows in systems.items() if system not in shown]
    others.sort(key=lambda s: (not s.complete, -(s.development or -1.0), s.variant, s.detector))
    chosen = "development" in parts
    if held_out:  # whether each section, or machine, that is left out has labelled cells of others to be chosen on
        name = left_out(row["section"] for row in all_rows)
        chosen = len({row[name] for row in all_rows if row["status"] == "ok"}) > 1
    promise = f"at most {100 * evaluation.false_alarm_rate:g} % promised"
    if evaluation.threshold != "conformal":
        promise = f"{100 * evaluation.false_alarm_rate:g} % wanted but not promised (evaluation.threshold)"
    board = Leaderboard(
        (*ranked, *others), evaluation.rule_year, ranked_on, chosen, evaluation.criterion, promise,
        unlabelled=_unlabelled(cells),
    )  # fmt: skip
    return _with_oracle(board)


def _unlabelled(cells: pa.Table) -> tuple[str, ...]:
    rows = cells.filter(pc.field("status") == "unlabelled").select(["machine", "section", "domain", "reason"])
    reasons = Counter(reason for *_, reason in {tuple(row.values()) for row in rows.to_pylist()})
    return tuple(f"{counted(count, 'cell')}: {reason}" for reason, count in reasons.most_common())


def _with_oracle(board: Leaderboard) -> Leaderboard:
    if board.ranked_on == "development":  # the best there is the chosen one
        return board
    score = "development" if board.ranked_on == LEAVE_ONE_OUT else "evaluation"
    systems = [s for s in board.standings if s.detector != PER_SECTION and s.complete and getattr(s, score) is not None]
    if not systems:
        return board
    best = max(systems, key=lambda s: getattr(s, score))
    return replace(board, standings=tuple(replace(s, oracle=s is best) for s in board.standings))


def _standing(
    rows: Sequence[CellRow], expected: int, variant: str | None, year: int, machines: Sequence[str], ranked_on: str
) -> Standing:
    """Sum up the cells of a system, or of an entry, whose ``variant`` is given."""
    if ranked_on == LEAVE_ONE_OUT:  # an entry is chosen section by section: what chose it is no score of its own
        choosing, reported = ([], rows) if variant is not None else (rows, [])
    else:
        choosing, reported = ([row for row in rows if row["part"] == p] for p in ("development", "evaluation"))
    all_ok = [row for row in rows if row["status"] == "ok"]
    ok = [row for row in all_ok if ranked_on in (LEAVE_ONE_OUT, row["part"])]
    decided = [] if variant is None else ok or list(rows)  # healthy test clips alone measure false alarms
    systems = list(dict.fromkeys(map(system_of, rows)))
    one = systems[0] if len(systems) == 1 else None
    development, development_std = _over_seeds(choosing, year)
    evaluation, evaluation_std = _over_seeds(reported, year)
    return Standing(
        variant=variant or systems[0].variant,
        checkpoint=one.checkpoint if one else None,
        detector=one.detector if one else PER_SECTION,
        pooling=one.pooling if one else PER_SECTION,
        num_seeds=len({row["seed"] for row in rows} - {None}),
        development=development,
        development_std=development_std,
        evaluation=evaluation,
        evaluation_std=evaluation_std,
        auc=mean_of(ok, "auc"),
        pauc=mean_of(ok, "pauc"),
        source_auc=_harmonic([row for row in ok if row["domain"] == "source"]),
        target_auc=_harmonic([row for row in ok if row["domain"] == "target"]),
        machines={m: _harmonic([row for row in ok if row["machine"] == m]) for m in machines},
        decided=Decided.of(decided),
        precision=mean_of(decided, "precision"),
        f1=mean_of(decided, "f1"),
        auc_all=mean_of(all_ok, "auc"),
        cells_ok=len(all_ok),
        cells_expected=expected,
        cells_unlabelled=sum(row["status"] == "unlabelled" for row in rows),
    )


def _over_seeds(rows: Iterable[CellRow], year: int) -> tuple[float | None, float | None]:
    """Mean and standard deviation (n - 1; None for one seed) over seeds of the official score."""
    scores = official(rows, year)
    return float(np.mean(scores)) if scores else None, float(np.std(scores, ddof=1)) if len(scores) > 1 else None


def mean_of(rows: Iterable[CellRow], name: str) -> float | None:
    """Compute the mean of a column over the cells that have it; None where none has."""
    values = [row[name] for row in rows if row[name] is not None]
    return float(np.mean(values)) if values else None


def _harmonic(rows: Iterable[CellRow]) -> float | None:
    """Mean over seeds of the harmonic mean of AUC."""
    seeds: dict[int | None, list[float]] = {}
    for row in rows:
        if row["auc"] is not None:
            seeds.setdefault(row["seed"], []).append(row["auc"])
    return float(np.mean([harmonic_mean(values) for values in seeds.values()])) if seeds else None
