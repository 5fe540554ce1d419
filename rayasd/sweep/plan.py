"""The plan: every unit of a sweep and what each builds on."""

from collections.abc import Sequence
from dataclasses import dataclass

from rayasd.config import Config
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

    def parts(self, config: Config) -> list[str]:
        """Name the parts that several drivers may share out: ``ALL_MACHINES``, if it has units, and the machines."""
        shared = any(unit.machine == ALL_MACHINES for unit in self.units(config))
        return [ALL_MACHINES, *self.machines] if shared else list(self.machines)


def all_units(plans: Sequence[Plan], config: Config) -> list[Unit]:
    """List the units of several plans of one run, each once."""
    return list(dict.fromkeys(unit for plan in plans for unit in plan.units(config)))


def prerequisite(unit: Unit, config: Config) -> Unit | None:
    """Name the unit whose output this one reads, if any."""
    stages = stages_of(config)
    place = stages.index(unit.stage)
    return unit.upstream(stages[place - 1], config) if place else None
