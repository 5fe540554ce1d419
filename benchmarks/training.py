"""Training and embedding with the reference's network at its sizes (EfficientNet-B0, 224 x 126, batches of 128)."""

import resource
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from torch.utils.data import DataLoader

from benchmarks import plain
from benchmarks.measure import Figure, alone, synchronise
from benchmarks.recordings import Files, unit
from benchmarks.roofline import floor_seconds, measured_ceilings
from rayasd.config import Config
from rayasd.data.waveforms import scaling
from rayasd.exposure.device import choose_compute
from rayasd.exposure.embedding import embed
from rayasd.exposure.network import Extractor
from rayasd.exposure.training import train
from rayasd.host import freed_memory_kept, usable_cpus
from rayasd.unit import Progress, UnitSpec

ROUNDS = 2


@dataclass(frozen=True)
class Pace:
    """How long a way is timed."""

    warm_up: int = 4
    """Batches."""
    steps: int = 8
    """Least number of batches in a timed span."""
    spans: int = 1
    seconds: float = 0.0
    """Least length of a span."""


PACE = Pace()
FEW_BATCHES = Pace(warm_up=1, steps=3)
"""An embedding's batches are of about 50 clips with all their windows."""


@dataclass(frozen=True)
class Timing:
    """What a way was seen to do."""

    speeds: list[float]
    """Clips a second in each span."""
    peak: float
    """Most memory at once, MB: what torch allocated on the GPU; without one, what the process had."""

    @property
    def speed(self) -> float:
        """Clips a second."""
        return statistics.median(self.speeds)


class Enough(Exception):  # noqa: N818 - no error
    pass


class Watch:
    """Stops a unit after some batches, the first of which warm up; ``begin`` is called after these."""

    def __init__(self, pace: Pace = PACE, begin: Callable[[], object] | None = None) -> None:
        self.pace, self.begin = pace, begin
        self.batches, self.clips, self.began = 0, 0, 0.0
        self.speeds: list[float] = []

    def __call__(self, progress: Progress) -> bool:
        if not progress.clips:
            return False
        self.batches += 1
        steps = self.batches - self.pace.warm_up
        if steps == 0:
            if self.begin is not None:
                self.begin()
            synchronise()
            self.began = time.perf_counter()
        if steps <= 0:
            return False
        self.clips += progress.clips
        if steps >= self.pace.steps and time.perf_counter() - self.began >= self.pace.seconds:
            synchronise()  # not after each batch: the device would wait for the host
            now = time.perf_counter()
            self.speeds.append(self.clips / (now - self.began))
            self.batches, self.clips, self.began = self.pace.warm_up, 0, now
        if len(self.speeds) == self.pace.spans:
            raise Enough
        return False

    @property
    def timing(self) -> Timing:
        """What was seen."""
        peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _resident()
        return Timing(self.speeds, peak / 1e6)


def _resident() -> float:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure() -> list[Figure]:
    with unit("exposure.epochs=1000") as (spec, catalog, files):
        speeds = [
            [
                timing.speed
                for timing in (
                    alone(our_training, spec),
                    alone(plain_training, spec.config, files, *scaling(catalog.table), spec.num_threads),
                    alone(our_embedding, spec, FEW_BATCHES),
                )
            ]
            for _ in range(ROUNDS)
        ]
    ours, other, clips = (statistics.median(column) for column in zip(*speeds, strict=True))
    step_floor, embedding_floor = alone(floors, spec)
    machine = f"{spec.num_threads} threads"
    return [
        Figure("training", "clips through training steps", ours, "clips/s", "the plain way", other, 2.5, machine,
               step_floor),
        Figure("embedding", "windows embedded", clips * spec.config.embedding.num_windows, "windows/s", "our training",
               ours, 2.5, machine, embedding_floor),
    ]  # fmt: skip


def our_training(spec: UnitSpec, pace: Pace = PACE, begin: Callable[[], object] | None = None) -> Timing:
    """Time training as a worker trains."""
    torch.set_num_threads(spec.num_threads)
    watch = Watch(pace, begin)
    with freed_memory_kept(), suppress(Enough):
        train(spec, watch)
    return watch.timing


def plain_training(
    config: Config, files: Files, mean: float, deviation: float, num_threads: int, pace: Pace = PACE
) -> Timing:
    """Time training as the field's recipes train."""
    torch.set_num_threads(num_threads)
    num_products = len({product for _, machine, product in files if machine})
    clips = plain.Clips(files, config, mean, deviation)
    loader = DataLoader(clips, config.exposure.batch_size, shuffle=True, drop_last=True, **_reading())
    network = plain.Network(config, num_products).to(choose_compute("auto", "float32").device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    watch = Watch(pace)
    with suppress(Enough):
        while True:
            for batch in loader:
                plain.train_batch(network, optimizer, batch, num_products)
                watch(Progress(0, 0, clips=len(batch[0])))
    return watch.timing


def our_embedding(spec: UnitSpec, pace: Pace = PACE) -> Timing:
    """Time embedding as a worker embeds."""
    torch.set_num_threads(spec.num_threads)
    untrained = replace(spec, config=replace(spec.config, exposure=replace(spec.config.exposure, epochs=0)))
    train(untrained)
    watch = Watch(pace)
    embedding = replace(untrained, unit=replace(spec.unit, stage="embed"))
    embedding.output.mkdir(parents=True, exist_ok=True)
    with freed_memory_kept(), suppress(Enough):
        embed(embedding, watch)
    return watch.timing


def plain_embedding(
    config: Config, files: Files, mean: float, deviation: float, num_threads: int, pace: Pace = PACE
) -> Timing:
    """Time embedding as the field's recipes embed."""
    torch.set_num_threads(num_threads)
    clips = plain.ClipWindows([path for path, _, _ in files], config, mean, deviation)
    loader = DataLoader(clips, max(1, config.embedding.batch_size // config.embedding.num_windows), **_reading())
    network = plain.Network(config, 1).to(choose_compute("auto", "float32").device).eval()
    watch = Watch(pace)
    with suppress(Enough):
        while True:
            for windows in loader:
                plain.embed_batch(network, windows)
                watch(Progress(0, 0, clips=len(windows)))
    return watch.timing


def _reading() -> dict[str, object]:
    """Settings of a loader: beside a GPU, recipes read in processes of their own."""
    if not torch.cuda.is_available():
        return {}
    return {"num_workers": min(8, usable_cpus()), "persistent_workers": True}


def floors(spec: UnitSpec, *, small: bool = False) -> tuple[float, float]:
    """Clips a second in training and windows a second in embedding that the network's bytes and operations allow."""
    torch.set_num_threads(spec.num_threads)
    compute = choose_compute(spec.device, spec.config.network.precision)
    extractor, size = compute.place(Extractor(spec.config)), spec.config.exposure.batch_size
    waveforms = torch.randn(size, spec.config.window_length, device=compute.device)
    ceilings = measured_ceilings(compute, small=small)
    trained, embedded = (
        size / floor_seconds(extractor, waveforms, compute, ceilings, training=training) for training in (True, False)
    )
    return trained, embedded
