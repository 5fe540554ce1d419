"""Choosing: for each variant, checkpoint, detector and pooling that are best on sections other than those reported."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from rayasd.config import EvaluationConfig
from rayasd.ensemble_names import parse_entry
from rayasd.evaluation.metrics import METRICS
from rayasd.evaluation.scores import System
from rayasd.evaluation.years import choosing_score, official_score

LEAVE_ONE_OUT = "leave-one-section-out"
ANY_VARIANT = "any variant"

CellRow = Mapping[str, Any]  # a row of the cells table

EntryCells = dict[str, list[int]]  # for each entry of the leaderboard, the places of the cells that count for it


def select(cells: pa.Table, evaluation: EvaluationConfig) -> tuple[pa.Table, EntryCells]:
    """Choose a system for each variant, and mark the cells that count for it.

    By development sections: the system with the best official score there, averaged over seeds, counts everywhere.
    Leave-one-section-out: in each section, the system that is best on all other sections counts (with one section, in
    each machine the one that is best on all others); and there are entries whose variant is chosen in the same way.
    Where nothing can be chosen for want of labels, the first complete system is taken. Systems with failed cells are
    chosen only if every other has them too; ties go to the one that comes first.

    Returns the cells with ``selected`` set, and the entries of the leaderboard.
    """
    rows: list[CellRow] = cells.to_pylist()
    variants: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        variants.setdefault(row["variant"], []).append(place)
    entries = {variant: _chosen(rows, places, evaluation) for variant, places in variants.items()}
    marks = np.zeros(len(rows), bool)
    marks[[place for places in entries.values() for place in places]] = True
    if evaluation.selection == LEAVE_ONE_OUT:
        kinds = {variant: parse_entry(variant).over for variant in variants}  # ensembles among ensembles
        for kind in dict.fromkeys(kinds.values()):
            among = _comparable(rows, {v: places for v, places in variants.items() if kinds[v] == kind})
            if among:
                entries["+".join((ANY_VARIANT, *kind))] = _chosen(rows, among, evaluation)
    position = cells.schema.get_field_index("selected")
    return cells.set_column(position, cells.schema.field("selected"), pa.array(marks)), entries


def system_of(row: CellRow) -> System:
    """Return the system of a cell."""
    return System(*(row[name] for name in System._fields))


def official(rows: Iterable[CellRow], year: int) -> list[float]:
    """Compute the year's official score of cells that are ok, for each seed."""
    return [float(official_score(year, machines, values)) for machines, _, values in _values(rows)]


def _values(rows: Iterable[CellRow]) -> list[tuple[tuple[Any, ...], ...]]:
    """Collect the AUCs and pAUCs that count of cells that are ok, seed by seed: machines, metrics and values."""
    seeds: dict[int | None, list[tuple[str, str, float]]] = {}
    for row in rows:
        if row["status"] == "ok":
            values = seeds.setdefault(row["seed"], [])
            values += [(row["machine"], name, row[name]) for name in METRICS if row[name] is not None]
    return [tuple(zip(*values, strict=True)) for values in seeds.values()]


def left_out(sections: Iterable[str]) -> str:
    """Tell what is left out at a time: section, or machine where there is one section."""
    return "section" if len(set(sections)) > 1 else "machine"


def _comparable(rows: Sequence[CellRow], variants: Mapping[str, Sequence[int]]) -> list[int]:
    """Find the places of the variants that were tested on the same clips, in the seeds that all of them have.

    A variant that lacks a hard machine must not win for that. Nothing where fewer than two are left.
    """
    cell = ("machine", "section", "domain", "num_normal", "num_anomaly")
    cells = {v: frozenset(tuple(rows[i][n] for n in cell) for i in places) for v, places in variants.items()}
    widest = max(cells.values(), key=lambda of: (len(of), list(cells.values()).count(of)))
    same = [variant for variant in variants if cells[variant] == widest]
    seeds = set.intersection(*({rows[i]["seed"] for i in variants[variant]} for variant in same))
    return [i for v in same for i in variants[v] if rows[i]["seed"] in seeds] if len(same) > 1 else []


def _chosen(rows: Sequence[CellRow], places: Sequence[int], evaluation: EvaluationConfig) -> list[int]:
    """Find the places of the cells that count, among cells at these places."""
    systems: dict[System, list[int]] = {}
    for place in places:
        systems.setdefault(system_of(rows[place]), []).append(place)
    if evaluation.selection != LEAVE_ONE_OUT:
        return systems[_best(rows, systems, lambda row: row["part"] == "development", evaluation)]
    name = left_out(row["section"] for row in rows)
    chosen: list[int] = []
    for fold in dict.fromkeys(rows[place][name] for place in places):
        best = _best(rows, systems, lambda row, fold=fold: row[name] != fold, evaluation)  # type: ignore[misc]
        chosen += [place for place in systems[best] if rows[place][name] == fold]
    return chosen


def _best(
    rows: Sequence[CellRow], systems: Mapping[System, Sequence[int]], chooses: Callable[[CellRow], bool],
    evaluation: EvaluationConfig,
) -> System:  # fmt: skip
    def quality(system: System) -> tuple[float, float]:
        of_system = [rows[place] for place in systems[system]]
        seeds = _values(row for row in of_system if chooses(row))
        scores = [float(choosing_score(evaluation, *values)) for values in seeds]
        return -sum(row["status"] == "failed" for row in of_system), float(np.mean(scores)) if scores else -1.0

    return max(systems, key=quality)  # the first of equals
