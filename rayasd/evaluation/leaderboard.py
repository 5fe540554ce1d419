"""The leaderboard: systems (variant, detector, pooling) chosen on development, ranked on evaluation sections."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayasd.evaluation.metrics import harmonic_mean, official_score


@dataclass(frozen=True)
class Standing:
    """One system over all its seeds. Scores are fractions of 1; None where there is nothing to average."""

    variant: str
    detector: str
    pooling: str
    num_seeds: int
    rank: int | None
    """Among the selected systems; None for all others."""
    selected: bool
    """The system of its variant that is best on the development sections."""
    development: float | None
    """2021 official score on the development sections, mean over seeds."""
    development_std: float | None
    evaluation: float | None
    """The same on the evaluation sections."""
    evaluation_std: float | None
    low: float | None
    """Lower end of the score's 95 % bootstrap interval over test clips; for ranked and complete systems."""
    high: float | None
    auc: float | None
    """Arithmetic mean over the cells that rank, and seeds; like the next four."""
    pauc: float | None
    source_auc: float | None
    """Harmonic mean over source-domain cells, mean over seeds."""
    target_auc: float | None
    machines: dict[str, float | None]
    """Harmonic mean of AUC per machine type, mean over seeds."""
    auc_all: float | None
    """Arithmetic mean over all cells, development and evaluation."""
    cells_ok: int
    cells_expected: int
    """Cells that the plan makes, over all seeds, labelled ones only."""
    cells_unlabelled: int

    @property
    def complete(self) -> bool:
        """Whether no labelled cell is missing."""
        return self.cells_ok == self.cells_expected


@dataclass(frozen=True)
class Leaderboard:
    """Systems in order: ranked ones first, then the rest by development score."""

    standings: tuple[Standing, ...]
    ranked_on: str
    """evaluation, or development where no evaluation section has labels."""
    chosen: bool
    """Whether there were development sections to choose detector and pooling on."""

    @property
    def ranked(self) -> list[Standing]:
        """One system a variant, best first."""
        return [s for s in self.standings if s.rank is not None]


def select(cells: pa.Table) -> pa.Table:
    """Mark, for each variant, the cells of the system with the best official score on the development sections.

    Where no development section has labels, nothing can be chosen, and the first complete system stands. Systems with
    failed cells are chosen only if every other has them too; ties go to the one that comes first.
    """
    order: list[tuple[str, str, str]] = list(
        dict.fromkeys(zip(*(cells[n].to_pylist() for n in ("variant", "detector", "pooling")), strict=True))
    )
    groups = _grouped(cells)
    best: dict[str, tuple[Any, ...]] = {}
    for place, system in enumerate(order):
        rows = groups[system]
        failed = sum(row["status"] == "failed" for row in rows)
        score = _over_seeds(rows, "development")[0]
        quality = (-failed, -1.0 if score is None else score, -place)
        if system[0] not in best or quality > best[system[0]][0]:
            best[system[0]] = (quality, system)
    chosen = {system for _, system in best.values()}
    keys = zip(*(cells[n].to_pylist() for n in ("variant", "detector", "pooling")), strict=True)
    position = cells.schema.get_field_index("selected")
    return cells.set_column(position, cells.schema.field("selected"), pa.array([key in chosen for key in keys]))


def rank(cells: pa.Table, expected: Mapping[str, int]) -> Leaderboard:
    """Build the leaderboard from selected cells.

    Args:
        cells: cells with ``selected`` set.
        expected: labelled cells that the plan makes for each variant, over all its seeds.

    """
    labelled = cells.filter(pc.field("status") == "ok")
    has_evaluation = pc.any(pc.equal(labelled["part"], "evaluation")).as_py()
    ranked_on = "evaluation" if has_evaluation else "development"
    machines = sorted(pc.unique(cells["machine"]).to_pylist())
    standings = [
        _standing(system, rows, ranked_on, machines, expected[system[0]]) for system, rows in _grouped(cells).items()
    ]

    def order(s: Standing) -> tuple[Any, ...]:
        score = getattr(s, ranked_on)
        return (
            not s.selected,
            not s.complete,
            -(score if score is not None else -1.0),
            s.variant,
            s.detector,
        )

    ordered = sorted(standings, key=order)
    ranks = iter(range(1, len(ordered) + 1))
    numbered = tuple(replace(s, rank=next(ranks) if s.selected else None) for s in ordered)
    return Leaderboard(numbered, ranked_on, pc.any(pc.equal(labelled["part"], "development")).as_py() or False)


def _standing(
    system: tuple[str, str, str], rows: list[dict[str, Any]], ranked_on: str, machines: Sequence[str], expected: int
) -> Standing:
    all_ok = [row for row in rows if row["status"] == "ok"]
    ok = [row for row in all_ok if row["part"] == ranked_on]
    development, development_std = _over_seeds(rows, "development")
    evaluation, evaluation_std = _over_seeds(rows, "evaluation")
    return Standing(
        *system,
        num_seeds=len({row["seed"] for row in rows}),
        rank=None,
        selected=rows[0]["selected"],
        development=development,
        development_std=development_std,
        evaluation=evaluation,
        evaluation_std=evaluation_std,
        low=None,
        high=None,
        auc=_mean([row["auc"] for row in ok]),
        pauc=_mean([row["pauc"] for row in ok]),
        source_auc=_harmonic([row for row in ok if row["domain"] == "source"]),
        target_auc=_harmonic([row for row in ok if row["domain"] == "target"]),
        machines={m: _harmonic([row for row in ok if row["machine"] == m]) for m in machines},
        auc_all=_mean([row["auc"] for row in all_ok]),
        cells_ok=len(all_ok),
        cells_expected=expected,
        cells_unlabelled=sum(row["status"] == "unlabelled" for row in rows),
    )


def _over_seeds(rows: list[dict[str, Any]], part: str) -> tuple[float | None, float | None]:
    """Mean and standard deviation (n - 1; None for one seed) over seeds of the official score on one part."""
    of_part = [row for row in rows if row["part"] == part and row["status"] == "ok"]
    scores = [official_score([r["auc"] for r in ok], [r["pauc"] for r in ok]) for ok in _by_seed(of_part)]
    return _mean(scores), float(np.std(scores, ddof=1)) if len(scores) > 1 else None


def _grouped(cells: pa.Table) -> dict[tuple[str, str, str], list[dict[str, Any]]]:
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in cells.to_pylist():
        groups[row["variant"], row["detector"], row["pooling"]].append(row)
    return groups


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _harmonic(rows: list[dict[str, Any]]) -> float | None:
    """Mean over seeds of the harmonic mean of AUC."""
    return _mean([harmonic_mean([row["auc"] for row in of_seed]) for of_seed in _by_seed(rows)])


def _by_seed(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    groups: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row["seed"]].append(row)
    return list(groups.values())
