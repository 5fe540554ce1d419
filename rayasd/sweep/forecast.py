"""How long a plan would take on nodes that are not there: the driver's own queue, played with measured speeds."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from heapq import heappop, heappush

import pyarrow.compute as pc

from rayasd.config import Config, InlierConfig
from rayasd.data.catalog import Catalog
from rayasd.files import read_record
from rayasd.inlier.detectors import parse_detectors
from rayasd.sweep.driver import Queue, State, Sweep
from rayasd.sweep.executors import Request, Resources
from rayasd.sweep.markers import is_done
from rayasd.sweep.store import RunStore
from rayasd.unit import STAGES, Stage, Unit, UnitSpec

STARTS_PER_SECOND = 500.0
"""Units that the driver starts through Ray (docs/performance.md, benchmark ``driver``)."""
DECODED_PER_SECOND = 2000.0
"""Clips of 10 s that a host of 2 cores decodes into its cache (docs/performance.md, benchmark ``ingest``)."""


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


def checkpoint_bytes(config: Config, num_parameters: int) -> int:
    """Estimate what a training writes and replaces on its way: weights and AdamW's two moments of each."""
    return 3 * 4 * num_parameters * max(0, (config.exposure.epochs - 1) // config.exposure.checkpoint_every)


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


@dataclass(frozen=True)
class Forecast:
    """A plan as it would go."""

    makespan: float
    """Seconds from the command to the last unit's end."""
    busy: float
    """Share of the GPUs' time that units hold them; of the CPUs', where there are none."""
    bounds: Mapping[str, float]
    """Seconds that the plan takes at least, by what bounds it."""
    node_bytes: int
    """Recordings that each node reads and decodes for itself."""
    read_bytes: int
    """What all nodes read from the shared file system: recordings, weights, embeddings."""
    checkpoint_bytes: int
    written_bytes: int
    """What is left: weights, embeddings, scores."""


def forecast(
    specs: Mapping[Unit, UnitSpec],
    catalog: Catalog,
    num_parameters: Mapping[str, int],
    speeds: Mapping[Stage, float],
    nodes: Sequence[Resources],
    request: Request,
    file_system: float | None = None,
) -> Forecast:
    """Play a plan on idle nodes.

    Args:
        specs: units, each after the one it builds on.
        catalog: of the data.
        num_parameters: learned parameters by variant.
        speeds: ``work`` a second, by stage.
        nodes: what each has.
        request: what a unit gets.
        file_system: bytes a second that the shared one gives to all nodes together; None: it bounds nothing.

    """
    clips = Clips.of(catalog)
    seconds = {unit: work(unit, spec.config, clips) / speeds[unit.stage] for unit, spec in specs.items()}
    usable = request.usable(nodes)
    recordings = pc.sum(catalog.table["size"]).as_py()
    decoding = 0.0
    for readers in (1, len(nodes) - 1):  # the driver's host before the first unit starts, then all others at once
        if readers:
            reading = recordings * readers / file_system if file_system else 0.0
            decoding += max(catalog.table.num_rows / DECODED_PER_SECOND, reading)

    left: Counter[Stage] = Counter()
    checkpoints, held = 0, Resources(0)
    chains: dict[tuple[str, str, int], float] = defaultdict(float)
    for unit, spec in specs.items():
        size = num_parameters.get(unit.variant, 0)
        left[unit.stage] += output_bytes(unit, spec.config, clips, size)
        checkpoints += checkpoint_bytes(spec.config, size) if unit.stage == "train" else 0
        chains[unit.variant, unit.machine, unit.seed] += seconds[unit]
        asked = request.of(unit.stage)
        held = held.plus(Resources(asked.cpus * seconds[unit], asked.gpus * seconds[unit]))
    read = recordings * len(nodes) + left["train"] + left["embed"]  # which the next stage reads
    bounds = {
        "CPUs": held.cpus / usable.cpus,
        "the longest training and what follows it": max(chains.values(), default=0.0),
        "the driver's starts": len(specs) / STARTS_PER_SECOND,
        "decoding": decoding,
    }
    if held.gpus:
        bounds["GPUs"] = held.gpus / usable.gpus
    if file_system:
        bounds["the shared file system"] = (read + left.total() + checkpoints) / file_system
    played = play(Sweep(specs), seconds, usable, request)
    makespan = max(decoding + played, bounds.get("the shared file system", 0.0))
    kind = "gpus" if held.gpus else "cpus"
    busy = getattr(held, kind) / sum(getattr(node, kind) for node in nodes) / makespan
    return Forecast(makespan, busy, bounds, recordings, read, checkpoints, left.total())


def play(sweep: Sweep, seconds: Mapping[Unit, float], free: Resources, request: Request) -> float:
    """Run units through the driver's queue, each for its ``seconds``; returns when the last one ends."""
    for unit in sweep.specs:
        sweep.move(unit, State.WAITING)
    queue, clock, started = Queue(sweep, seconds), 0.0, 0.0
    running: list[tuple[float, Unit]] = []
    while True:
        for unit in queue.take(free, request):
            started = max(clock, started + 1 / STARTS_PER_SECOND)
            sweep.move(unit, State.RUNNING)
            free = free.plus(request.of(unit.stage), -1)
            heappush(running, (started + seconds[unit], unit))
        if not running:
            return clock
        clock, unit = heappop(running)
        free = free.plus(request.of(unit.stage))
        sweep.move(unit, State.DONE)
        queue.offer(*sweep.dependents.get(unit, ()))
