"""The plan: every unit of a sweep and what each builds on."""

from collections.abc import Sequence
from dataclasses import dataclass

from rayasd.config import Config
from rayasd.stages import stages_of
from rayasd.unit import Unit


@dataclass(frozen=True)
class Plan:
    """Dimensions of a sweep; each (variant, machine, seed) is trained, embedded and detected."""

    machines: tuple[str, ...]
    variants: tuple[str, ...]
    seeds: tuple[int, ...]

    def units(self, config: Config) -> list[Unit]:
        """List the units, machine by machine within a seed and variant; a control has nothing to train."""
        needed = {variant: stages_of(config.variant(variant)) for variant in self.variants}
        return [
            Unit(stage, variant, machine, seed)
            for seed in self.seeds
            for variant in self.variants
            for machine in self.machines
            for stage in needed[variant]
        ]


def all_units(plans: Sequence[Plan], config: Config) -> list[Unit]:
    """List the units of several plans of one run, each once."""
    return list(dict.fromkeys(unit for plan in plans for unit in plan.units(config)))


def prerequisite(unit: Unit, config: Config) -> Unit | None:
    """Name the unit whose output this one reads, if any."""
    stages = stages_of(config)
    place = stages.index(unit.stage)
    return Unit(stages[place - 1], unit.variant, unit.machine, unit.seed) if place else None
