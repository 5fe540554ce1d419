"""The data sets of DCASE Task 2: each year's machines, what is development in them, and what tells the year."""

from typing import Final

import pyarrow as pa

from rayasd.data.naming import scheme

YEARS: Final = (2020, 2021, 2022, 2023, 2024, 2025, 2026)

_OF_2023 = ("ToyCar", "ToyTrain", "bearing", "fan", "gearbox", "slider", "valve")
DEVELOPMENT_MACHINES: Final = {
    2020: ("ToyCar", "ToyConveyor", "fan", "pump", "slider", "valve"),
    2021: ("ToyCar", "ToyTrain", "fan", "gearbox", "pump", "slider", "valve"),
    **dict.fromkeys(range(2022, 2026), _OF_2023),
    2026: ("ToyCar", "ToyCarEmu", "bearingEmu", "fan", "gearboxEmu", "sliderEmu", "valveEmu"),
}
"""Machine types of the development sets; until 2022, these have evaluation sections as well."""
EVALUATION_MACHINES: Final = {
    2023: ("ToyDrone", "ToyNscale", "ToyTank", "Vacuum", "bandsaw", "grinder", "shaker"),
    2024: ("3DPrinter", "AirCompressor", "BrushlessMotor", "HairDryer", "HoveringDrone", "RoboticArm", "Scanner",
           "ToothBrush", "ToyCircuit"),
    2025: ("AutoTrash", "BandSealer", "CoffeeGrinder", "HomeCamera", "Polisher", "ScrewFeeder", "ToyPet", "ToyRCCar"),
    2026: ("ToyDrone", "ToothBrush", "SewingMachine", "BlowerDustCollector", "Sander"),
}  # fmt: skip
"""Those of the evaluation sets since 2023, one section each, by which these years are told apart."""
_SECTIONED = {*DEVELOPMENT_MACHINES[2021], *DEVELOPMENT_MACHINES[2022]}
"""Machines of 2021 and 2022, where each has six sections."""
_DEVELOPMENT_IDS_2020 = {"ToyCar": ("01", "02", "03", "04"), "ToyConveyor": ("01", "02", "03")}


def is_development(year: int, machine: str, section: str) -> bool:
    """Tell whether a section is of a year's development set; of the evaluation set, if not."""
    if year == 2020:
        return section in _DEVELOPMENT_IDS_2020.get(machine, ("00", "02", "04", "06"))
    if year <= 2022:
        return section in ("00", "01", "02")
    return machine.casefold() in {name.casefold() for name in DEVELOPMENT_MACHINES[year]}


def sections_of(year: int, part: str) -> list[tuple[str, str]]:
    """List machine and section of all that a year has on a part, development or evaluation."""
    machines = sorted({*DEVELOPMENT_MACHINES[year], *EVALUATION_MACHINES.get(year, ())})
    numbers = dict.fromkeys(machines, range(7) if year == 2020 else range(6) if year <= 2022 else range(1))
    if year == 2020:  # toys count from 01
        numbers |= {"ToyCar": range(1, 8), "ToyConveyor": range(1, 7)}
    every = [(machine, f"{number:02}") for machine in machines for number in numbers[machine]]
    return [(m, s) for m, s in every if is_development(year, m, s) == (part == "development")]


def years_told(clips: pa.Table, dataset: str | None = None) -> tuple[list[int], str]:
    """Tell the year of a data set; the most likely comes first, none where it may be anybody's.

    ``dataset``: as ``rayasd data fetch`` noted it, dcase2023.

    Returns the years that it may be of, and what tells.
    """
    if dataset in (known := {f"dcase{year}": year for year in YEARS}):
        return [known[dataset]], f"fetched as {dataset}"
    names = [clip.rpartition("/")[2].rpartition(".")[0] for clip in clips["clip"].to_pylist()]
    machines = {machine for machine, name in zip(clips["machine"].to_pylist(), names, strict=True) if scheme(name)}
    schemes = {scheme(name) for name in names} - {None}
    if schemes == {2020}:
        return [2020], f"names as {next(name for name in names if scheme(name))}"
    if schemes != {2021}:
        return [], ""
    folders = {clip.rpartition("/")[0].rpartition("/")[2] for clip in clips["clip"].to_pylist()}
    by_machine = {y: {*DEVELOPMENT_MACHINES[y], *others} for y, others in EVALUATION_MACHINES.items()}
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
    last = 2026 if machines <= {*DEVELOPMENT_MACHINES[2026]} else 2025
    return [*range(2023, last + 1), 2022], "one section in a folder test"
