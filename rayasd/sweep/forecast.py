"""How long a plan takes at least, from the speeds of units that are done."""

from collections.abc import Mapping

from rayasd.files import read_record
from rayasd.stages import STAGES, NumClips, StageName
from rayasd.sweep.executors import Request, Resources
from rayasd.sweep.markers import is_done
from rayasd.sweep.plan import prerequisite
from rayasd.sweep.store import RunStore
from rayasd.unit import Unit, UnitSpec


def measured_speeds(store: RunStore) -> dict[StageName, float]:
    """Return the work per second of the stages of which a run has finished units."""
    done: dict[StageName, float] = dict.fromkeys(STAGES, 0.0)
    seconds: dict[StageName, float] = dict.fromkeys(STAGES, 0.0)
    specs = store.specs()
    clips = NumClips.of(store.catalog().table)
    for unit, spec in specs.items():
        amount = spec.work(clips)
        if amount and is_done(spec):
            done[unit.stage] += amount
            seconds[unit.stage] += read_record(store.paths.marker(unit, "DONE"))["seconds"]
    return {stage: done[stage] / seconds[stage] for stage in STAGES if done[stage]}


def least_seconds(
    specs: Mapping[Unit, UnitSpec],
    clips: NumClips,
    speeds: Mapping[StageName, float],
    usable: Resources,
    request: Request,
) -> dict[str, float]:
    """Return how long a plan takes at least, by what bounds it; the largest of these is near the truth.

    ``specs``: each unit after the one it builds on; ``speeds``: work per second, by stage; ``usable``: what units can
    use of all nodes together.
    """
    held, ends = Resources(0), dict[Unit, float]()
    for unit, spec in specs.items():
        seconds, asked = spec.work(clips) / speeds[unit.stage], request.of(unit.stage)
        held = held.plus(Resources(asked.cpus * seconds, asked.gpus * seconds))
        needed = prerequisite(unit, spec.config)
        ends[unit] = seconds + (0.0 if needed is None else ends[needed])
    bounds = {"CPUs": held.cpus / usable.cpus, "the longest training and what follows it": max(ends.values())}
    return bounds | ({"GPUs": held.gpus / usable.gpus} if held.gpus else {})
