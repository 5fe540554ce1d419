"""The plan: every unit of a sweep and what each builds on."""

from collections.abc import Sequence
from dataclasses import dataclass

from rayasd.config import Config
from rayasd.errors import UserError
from rayasd.stages import ALL_MACHINES, machine_of, stages_of
from rayasd.unit import Unit


@dataclass(frozen=True)
class Plan:
    """Dimensions of a sweep; each (variant, machine, seed) is trained, embedded and detected."""

    machines: tuple[str, ...]
    variants: tuple[str, ...]
    seeds: tuple[int, ...]

    def units(self, config: Config) -> list[Unit]:
        """List the units, machine by machine within a seed and variant, each once; a control has nothing to train."""
        resolved = {variant: config.variant(variant) for variant in self.variants}
        units = [
            Unit(stage, variant, machine_of(stage, machine, resolved[variant]), seed)
            for seed in self.seeds
            for variant in self.variants
            for machine in self.machines
            for stage in stages_of(resolved[variant])
        ]
        return list(dict.fromkeys(units))


def share(units: Sequence[Unit], text: str) -> list[Unit]:
    """Take a share of a plan's units: "2/5" is the second of five. Those of all machines together are in none.

    Units of one machine, variant and seed stay together; neighbours in the plan go to different shares.

    Raises UserError: the text names no share.
    """
    place, _, count = text.partition("/")
    if not (place.isdecimal() and count.isdecimal() and 1 <= int(place) <= int(count)):
        raise UserError(f"--only {text}: give machines, or K/N for the K-th of N shares, from 1/N to N/N")
    mine = set(lines(units)[int(place) - 1 :: int(count)])
    return [unit for unit in units if (unit.machine, unit.variant, unit.seed) in mine]


def lines(units: Sequence[Unit]) -> list[tuple[str, str, int]]:
    """List machine, variant and seed of the units, each once, without those of all machines together."""
    found = ((unit.machine, unit.variant, unit.seed) for unit in units if unit.machine != ALL_MACHINES)
    return list(dict.fromkeys(found))


def prerequisite(unit: Unit, config: Config) -> Unit | None:
    """Name the unit whose output this one reads, if any."""
    stages = stages_of(config)
    place = stages.index(unit.stage)
    return unit.upstream(stages[place - 1], config) if place else None


def check_asked(units: Sequence[Unit], stages: Sequence[str], machines: Sequence[str]) -> None:
    """Make sure that some unit of a run does one of these stages for one of these machines, or that none does at all.

    Raises UserError: only other machines have such units; names them.
    """
    of_stages = {unit.machine for unit in units if unit.stage in stages}
    if of_stages and of_stages.isdisjoint(machines):
        what, others = " or ".join(stages), ",".join(sorted(of_stages))
        raise UserError(f"this run has nothing to {what} for {', '.join(machines)} alone: give --machines {others}")
