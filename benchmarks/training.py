"""Training and embedding with the reference's network at its sizes (EfficientNet-B0, 224 x 126, batches of 128)."""

import statistics
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from benchmarks import plain
from benchmarks.measure import Figure, alone
from benchmarks.recordings import unit
from benchmarks.roofline import floor_seconds
from rayasd.config import Config
from rayasd.data.waveforms import scaling
from rayasd.exposure.device import choose_compute
from rayasd.exposure.embedding import embed
from rayasd.exposure.network import Extractor
from rayasd.exposure.training import train
from rayasd.host import freed_memory_kept
from rayasd.unit import Progress, UnitSpec

WARM_UP, STEPS = 4, 8
ROUNDS = 2


class Enough(Exception):  # noqa: N818 - no error
    pass


class Watch:
    """Stops a unit after some batches, the first of which warm up."""

    def __init__(self) -> None:
        self.moments: list[float] = []
        self.clips: list[int] = []

    def __call__(self, progress: Progress) -> bool:
        if progress.clips:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.moments.append(time.perf_counter())
            self.clips.append(progress.clips)
        if len(self.moments) == WARM_UP + STEPS:
            raise Enough
        return False

    @property
    def speed(self) -> float:
        """Clips a second."""
        return sum(self.clips[WARM_UP:]) / (self.moments[-1] - self.moments[WARM_UP - 1])


def measure() -> list[Figure]:
    with unit("exposure.epochs=1000") as (spec, catalog, files):
        speeds = [
            (
                alone(our_training, spec),
                alone(plain_training, spec.config, files, *scaling(catalog.table), spec.num_threads),
                alone(our_embedding, spec),
            )
            for _ in range(ROUNDS)
        ]
    ours, other, windows = (statistics.median(column) for column in zip(*speeds, strict=True))
    step_floor, embedding_floor = alone(floors, spec)
    machine = f"{spec.num_threads} threads"
    return [
        Figure(
            "training",
            "clips through training steps",
            ours,
            "clips/s",
            "the plain way",
            other,
            2.5,
            machine,
            step_floor,
        ),
        Figure(
            "embedding", "windows embedded", windows, "windows/s", "our training", ours, 2.5, machine, embedding_floor
        ),
    ]


def our_training(spec: UnitSpec) -> float:
    """Clips a second, as a worker trains."""
    torch.set_num_threads(spec.num_threads)
    watch = Watch()
    with freed_memory_kept(), suppress(Enough):
        train(spec, watch)
    return watch.speed


def plain_training(
    config: Config, files: list[tuple[Path, float, int]], mean: float, deviation: float, num_threads: int
) -> float:
    """Clips a second."""
    torch.set_num_threads(num_threads)
    num_products = len({product for _, machine, product in files if machine})
    loader = DataLoader(
        plain.Clips(files, config, mean, deviation), config.exposure.batch_size, shuffle=True, drop_last=True
    )
    network = plain.Network(config, num_products).to(choose_compute("auto", "float32").device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    watch = Watch()
    with suppress(Enough):
        while True:
            for batch in loader:
                plain.train_batch(network, optimizer, batch, num_products)
                watch(Progress(0, 0, clips=len(batch[0])))
    return watch.speed


def our_embedding(spec: UnitSpec) -> float:
    """Windows a second, as a worker embeds."""
    torch.set_num_threads(spec.num_threads)
    untrained = replace(spec, config=replace(spec.config, exposure=replace(spec.config.exposure, epochs=0)))
    train(untrained)
    watch = Watch()
    embedding = replace(untrained, unit=replace(spec.unit, stage="embed"))
    embedding.output.mkdir(parents=True, exist_ok=True)
    with freed_memory_kept(), suppress(Enough):
        embed(embedding, watch)
    return watch.speed * spec.config.embedding.num_windows


def floors(spec: UnitSpec) -> tuple[float, float]:
    """Clips a second in training and windows a second in embedding that the network's bytes and operations allow."""
    torch.set_num_threads(spec.num_threads)
    compute = choose_compute(spec.device, spec.config.network.precision)
    extractor = compute.place(Extractor(spec.config, 3))
    front_end, size = spec.config.front_end, spec.config.exposure.batch_size
    length = round(front_end.window_seconds * spec.config.data.sample_rate)
    waveforms = torch.randn(size, length, device=compute.device)

    return tuple(size / floor_seconds(extractor, waveforms, compute, training=training) for training in (True, False))
