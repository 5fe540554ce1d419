"""How much a unit has to do, how much disk its results take, and how long a plan takes at least."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from rayasd.config import Config, InlierConfig
from rayasd.data.catalog import Catalog
from rayasd.files import read_record
from rayasd.inlier.detectors import parse_detectors
from rayasd.sweep.executors import Request, Resources
from rayasd.sweep.markers import is_done
from rayasd.sweep.store import RunStore
from rayasd.unit import STAGES, Stage, Unit, UnitSpec


@dataclass(frozen=True)
class Clips:
    """How many clips of each machine there are."""

    train: Mapping[str, int]
    every: Mapping[str, int]

    @classmethod
    def of(cls, catalog: Catalog) -> "Clips":
        """Count them."""
        train = catalog.table.filter(catalog.is_train)
        return cls(Counter(train["machine"].to_pylist()), Counter(catalog.table["machine"].to_pylist()))


def work(unit: Unit, config: Config, clips: Clips) -> float:
    """Count what a unit goes through: clips in training steps, windows to embed, or clips to score."""
    exposure = config.exposure
    if unit.stage == "train":
        return 2 * clips.train[unit.machine] * (1 - exposure.validation_fraction) * exposure.epochs
    scored = clips.every[unit.machine] * exposure.num_checkpoints
    return float(scored * config.embedding.num_windows if unit.stage == "embed" else scored)


def output_bytes(unit: Unit, config: Config, clips: Clips, num_parameters: int) -> int:
    """Estimate what a unit leaves: its weights, or its table by the width of a row."""
    scored = clips.every[unit.machine] * config.exposure.num_checkpoints
    if unit.stage == "train":
        return 4 * num_parameters * config.exposure.num_checkpoints
    if unit.stage == "embed":
        return scored * config.embedding.num_windows * (4 * config.network.embedding_dim + 16)
    return scored * _num_systems(config.inlier) * 10


@lru_cache
def _num_systems(inlier: InlierConfig) -> int:
    return len(parse_detectors(inlier.detectors, inlier)) * len(inlier.poolings)


def measured_speeds(store: RunStore) -> dict[Stage, float]:
    """Work a second of the stages of which a run has finished units."""
    done: dict[Stage, float] = dict.fromkeys(STAGES, 0.0)
    seconds: dict[Stage, float] = dict.fromkeys(STAGES, 0.0)
    specs = store.specs()
    clips = Clips.of(store.catalog())
    for unit, spec in specs.items():
        amount = work(unit, spec.config, clips)
        if amount and is_done(spec):
            done[unit.stage] += amount
            seconds[unit.stage] += read_record(store.paths.marker(unit, "DONE"))["seconds"]
    return {stage: done[stage] / seconds[stage] for stage in STAGES if done[stage]}


def least_seconds(
    specs: Mapping[Unit, UnitSpec], clips: Clips, speeds: Mapping[Stage, float], usable: Resources, request: Request
) -> dict[str, float]:
    """Return how long a plan takes at least, by what bounds it; the largest of these is near the truth.

    Args:
        specs: units of the plan.
        clips: of the data.
        speeds: ``work`` per second, by stage.
        usable: what units can use of all nodes together.
        request: what a unit gets.

    """
    held, chains = Resources(0), Counter[tuple[str, str, int]]()
    for unit, spec in specs.items():
        seconds, asked = work(unit, spec.config, clips) / speeds[unit.stage], request.of(unit.stage)
        held = held.plus(Resources(asked.cpus * seconds, asked.gpus * seconds))
        chains[unit.variant, unit.machine, unit.seed] += seconds  # type: ignore[assignment]
    bounds = {"CPUs": held.cpus / usable.cpus, "the longest training and what follows it": max(chains.values())}
    return bounds | ({"GPUs": held.gpus / usable.gpus} if held.gpus else {})
