"""Differences between the years of DCASE Task 2: which sections are development, which cells count, the score.

* 2020: no domains. AUC and pAUC of each machine ID; arithmetic means over IDs, then over machine types.
* 2021: AUC and pAUC of each section and domain; harmonic mean over all of them.
* 2022 to 2026: AUC of each section and domain, a domain's normal clips against the anomalous ones of both domains, and
  one pAUC of each section over both; harmonic mean over all of them.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from rayasd.config import Config, EvaluationConfig
from rayasd.data import years
from rayasd.data.catalog import Catalog
from rayasd.data.years import years_told
from rayasd.errors import UserError
from rayasd.evaluation.metrics import harmonic_mean

BOTH_DOMAINS = "both"

RULES = {
    2020: "arithmetic mean of AUC and pAUC over machine IDs, then over machine types",
    2021: "harmonic mean of AUC and pAUC over (machine, section, domain) cells",
    **dict.fromkeys(
        range(2022, 2027),
        "harmonic mean of each (machine, section, domain)'s AUC, its normal clips against the anomalies of both "
        "domains, and each (machine, section)'s pAUC",
    ),
}


class CellKind(NamedTuple):
    """A kind of cell of a section: whose normal and anomalous clips, and which metrics of them count."""

    domain: str
    normal: NDArray[np.bool_]  # clips whose domain lets them in if they are normal, (clips,)
    anomalous: NDArray[np.bool_]
    metrics: tuple[str, ...]  # auc, pauc or both
    problem: str | None = None  # why the cell cannot be evaluated, whatever the labels


def is_development(evaluation: EvaluationConfig, machine: str, section: str) -> bool:
    """Tell whether a section chooses (development) or reports (evaluation): as configured, else as the year divides."""
    if evaluation.development:
        named = {where.casefold() for where in evaluation.development}
        return bool({machine.casefold(), section.casefold(), f"{machine}/{section}".casefold()} & named)
    return years.is_development(evaluation.rule_year, machine, section)


def settled(evaluation: EvaluationConfig, clips: pa.Table, dataset: str | None = None) -> EvaluationConfig:
    """Settle ``evaluation.year`` by the data (as of ``years_told``), and check one that is given.

    Raises UserError: the data are of a year that is divided and scored in another way.
    """
    told, by = years_told(clips, dataset)
    if evaluation.year == "auto":
        return replace(evaluation, year=told[0] if told else 2021)  # type: ignore[arg-type]
    alike = {2021: 2022, 2022: 2021, 2024: 2023, 2025: 2023}
    if told and not evaluation.development and not {evaluation.year, alike.get(evaluation.year)} & {
        *told, *(alike.get(year, year) for year in told)
    }:  # fmt: skip
        raise UserError(
            f"these are DCASE {told[0]} data ({by}), evaluation.year = {evaluation.year} would divide and score them "
            "wrongly: leave it out, or say by evaluation.development what chooses"
        )
    return evaluation


def settled_by_data(config: Config, catalog: Catalog) -> Config:
    """Settle a configuration as ``settled`` does, and how clips are read.

    The two channels of 2026 give the near one where none is named; a manifest may name the rate and column of numbers.
    """
    evaluation, data = settled(config.evaluation, catalog.table, catalog.dataset), config.data
    if not data.signal_rate:
        rate, column = catalog.signals
        data = replace(data, signal_rate=rate, signal_column=data.signal_column or column)
    if evaluation.rule_year == 2026 and data.channel == "only":
        data = replace(data, channel="0")
    return replace(config, evaluation=evaluation, data=data)


def cell_kinds(year: int, domains: NDArray[np.object_]) -> list[CellKind]:
    """List the cells of a section by the domains of its test clips (clips,)."""
    everywhere = np.ones(len(domains), bool)
    if year == 2020:
        name = str(domains[0]) if len(set(domains)) == 1 else BOTH_DOMAINS
        return [CellKind(name, everywhere, everywhere, ("auc", "pauc"))]
    if year == 2021:
        return [CellKind(d, domains == d, domains == d, ("auc", "pauc")) for d in sorted(set(domains))]
    unknown = int((~np.isin(domains, ("source", "target"))).sum())
    problem = f"the domain of {unknown} of {len(domains)} clips is unknown" if unknown else None
    kinds = [CellKind(d, domains == d, everywhere, ("auc",), problem) for d in sorted(set(domains))]
    return [*kinds, CellKind(BOTH_DOMAINS, everywhere, everywhere, ("pauc",), problem)]


def official_score(year: int, machines: Sequence[str], values: ArrayLike) -> NDArray[np.float64]:
    """Compute the year's score.

    ``machines``: of each value, (values,); ``values``: AUCs and pAUCs that count, (values,) or (values, replicates).

    Returns () or (replicates,); NaN where there is no value.
    """
    values, names = np.asarray(values, dtype=np.float64), np.array(machines)
    if year == 2020 and len(values):
        return np.mean([values[names == name].mean(axis=0) for name in sorted(set(machines))], axis=0)
    return harmonic_mean(values)


def choosing_score(
    evaluation: EvaluationConfig, machines: Sequence[str], metrics: Sequence[str], values: ArrayLike
) -> NDArray[np.float64]:
    """Compute what systems are chosen by: the official score, or the mean AUC.

    ``machines`` and ``metrics`` (auc or pauc) are those of each value, (values,); ``values`` as of ``official_score``.
    """
    if evaluation.criterion == "official":
        return official_score(evaluation.rule_year, machines, values)
    return np.asarray(values, dtype=np.float64)[np.array(metrics) == "auc"].mean(axis=0)
