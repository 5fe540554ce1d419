"""What changes from one year's DCASE Task 2 to the next: which sections are development, which cells count, the score.

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

from rayasd.config import EvaluationConfig
from rayasd.data.naming import scheme
from rayasd.errors import UserError

BOTH_DOMAINS = "both"

_DEVELOPMENT_IDS_2020 = {"ToyCar": ("01", "02", "03", "04"), "ToyConveyor": ("01", "02", "03")}
_DEVELOPMENT_2023 = {"ToyCar", "ToyTrain", "bearing", "fan", "gearbox", "slider", "valve"}
_DEVELOPMENT_2026 = {"ToyCar", "ToyCarEmu", "bearingEmu", "fan", "gearboxEmu", "sliderEmu", "valveEmu"}
_EVALUATION_MACHINES = {
    2023: {"ToyDrone", "ToyNscale", "ToyTank", "Vacuum", "bandsaw", "grinder", "shaker"},
    2024: {"3DPrinter", "AirCompressor", "BrushlessMotor", "HairDryer", "HoveringDrone", "RoboticArm", "Scanner",
           "ToothBrush", "ToyCircuit"},
    2025: {"AutoTrash", "BandSealer", "CoffeeGrinder", "HomeCamera", "Polisher", "ScrewFeeder", "ToyPet", "ToyRCCar"},
    2026: {"ToyDrone", "ToothBrush", "SewingMachine", "BlowerDustCollector", "Sander"},
}  # fmt: skip
"""Machines of one section, by which the years since 2023 are told apart."""
_SECTIONED = {"ToyCar", "ToyTrain", "bearing", "fan", "gearbox", "pump", "slider", "valve"}
"""Machines of 2021 and 2022, where each has six sections."""

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
    normal: NDArray[np.bool_]
    """Clips whose domain lets them in if they are normal, (clips,)."""
    anomalous: NDArray[np.bool_]
    metrics: tuple[str, ...]
    """auc, pauc or both."""
    problem: str | None = None
    """Why the cell cannot be evaluated, whatever the labels."""


def is_development(evaluation: EvaluationConfig, machine: str, section: str) -> bool:
    """Tell whether a section chooses (development) or reports (evaluation): as configured, else as the year divides."""
    if evaluation.development:
        named = {where.casefold() for where in evaluation.development}
        return bool({machine.casefold(), section.casefold(), f"{machine}/{section}".casefold()} & named)
    if evaluation.rule_year == 2020:
        return section in _DEVELOPMENT_IDS_2020.get(machine, ("00", "02", "04", "06"))
    if evaluation.rule_year <= 2022:
        return section in ("00", "01", "02")
    return machine.casefold() in {name.casefold() for name in _development_machines(evaluation.rule_year)}


def _development_machines(year: int) -> set[str]:
    return _DEVELOPMENT_2026 if year == 2026 else _DEVELOPMENT_2023


def years_told(clips: pa.Table, dataset: str | None = None) -> tuple[list[int], str]:
    """Tell the year of a data set; the most likely comes first, none where it may be anybody's.

    Args:
        clips: of a catalog.
        dataset: that ``rayasd data fetch`` noted, as dcase2023.

    Returns:
        The years that it may be of, and what tells.

    """
    if dataset in (known := {f"dcase{year}": year for year in RULES}):
        return [known[dataset]], f"fetched as {dataset}"
    names = [clip.rpartition("/")[2].rpartition(".")[0] for clip in clips["clip"].to_pylist()]
    machines = {machine for machine, name in zip(clips["machine"].to_pylist(), names, strict=True) if scheme(name)}
    schemes = {scheme(name) for name in names} - {None}
    if schemes == {2020}:
        return [2020], f"names as {next(name for name in names if scheme(name))}"
    if schemes != {2021}:
        return [], ""
    folders = {clip.rpartition("/")[0].rpartition("/")[2] for clip in clips["clip"].to_pylist()}
    by_machine = {y: (_development_machines(y) | others) for y, others in _EVALUATION_MACHINES.items()}
    one_section = set(clips["section"].to_pylist()) == {"00"}
    if own := {*machines} & (set().union(*by_machine.values()) - _SECTIONED):
        fitting = [y for y in by_machine if machines <= by_machine[y]] or [y for y in by_machine if own & by_machine[y]]
        return fitting, f"machines as {min(own)}"
    if folders & {"source_test", "target_test"} and machines <= _SECTIONED:
        return [2021, 2022], "folders source_test, target_test" + ("" if one_section else ", several sections")
    if not machines <= _SECTIONED:
        return [], ""
    if not one_section:
        return [2021, 2022] if "pump" in machines else [2022, 2021], "several sections in a folder test"
    last = 2026 if machines <= _DEVELOPMENT_2026 else 2025
    return [*range(2023, last + 1), 2022], "one section in a folder test"


def settled(evaluation: EvaluationConfig, clips: pa.Table, dataset: str | None = None) -> EvaluationConfig:
    """Settle ``evaluation.year`` by the data (as of ``years_told``), and check one that is given.

    Raises:
        UserError: the data are of a year that is divided and scored in another way.

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

    Args:
        year: whose rule.
        machines: of each value, (values,).
        values: the AUCs and pAUCs that count, (values,) or (values, replicates); floored at the float epsilon.

    Returns:
        () or (replicates,); NaN where there is no value.

    """
    floored = np.maximum(np.asarray(values, dtype=np.float64), np.finfo(np.float64).eps)
    if len(floored) == 0:
        return np.full(floored.shape[1:], np.nan)
    if year == 2020:
        names = np.array(machines)
        return np.mean([floored[names == name].mean(axis=0) for name in sorted(set(machines))], axis=0)
    return len(floored) / (1 / floored).sum(axis=0)


def choosing_score(
    evaluation: EvaluationConfig, machines: Sequence[str], metrics: Sequence[str], values: ArrayLike
) -> NDArray[np.float64]:
    """Compute what systems are chosen by: the official score, or the mean AUC.

    Args:
        evaluation: the rules.
        machines: of each value, (values,).
        metrics: auc or pauc of each value, (values,).
        values: as of ``official_score``.

    """
    if evaluation.criterion == "official":
        return official_score(evaluation.rule_year, machines, values)
    return np.asarray(values, dtype=np.float64)[np.array(metrics) == "auc"].mean(axis=0)
