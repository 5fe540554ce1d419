"""Training and embedding with the reference's network at its sizes (EfficientNet-B0, 224 x 126, batches of 128)."""

import time
from contextlib import suppress
from dataclasses import replace

import torch
from torch.utils.data import DataLoader

from benchmarks import plain
from benchmarks.measure import Figure
from benchmarks.recordings import unit
from rayasd.data.waveforms import scaling
from rayasd.exposure.embedding import embed
from rayasd.exposure.training import train
from rayasd.unit import Progress

STEPS = 4


class Enough(Exception):  # noqa: N818 - no error
    pass


def measure() -> list[Figure]:
    with unit("exposure.epochs=1000") as (spec, catalog, files):
        torch.set_num_threads(spec.num_threads)
        moments: list[float] = []

        def note(progress: Progress) -> bool:
            if progress.clips:
                moments.append(time.perf_counter())
            if len(moments) > STEPS:  # the first step warms up
                raise Enough
            return False

        with suppress(Enough):
            train(spec, note)
        ours = STEPS * spec.config.exposure.batch_size / (moments[-1] - moments[0])

        num_products = len({product for _, machine, product in files if machine})
        mean, deviation = scaling(catalog.table)
        loader = DataLoader(
            plain.Clips(files, spec.config, mean, deviation), spec.config.exposure.batch_size, shuffle=True
        )
        network = plain.Network(spec.config, num_products)
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
        began, steps = 0.0, -1
        while steps < STEPS:
            for batch in loader:
                plain.train_batch(network, optimizer, batch, num_products)
                steps += 1
                began = began or time.perf_counter()
                if steps == STEPS:
                    break
        other = STEPS * spec.config.exposure.batch_size / (time.perf_counter() - began)
        windows = _embedding(spec)
    machine = f"{spec.num_threads} threads"
    return [
        Figure("training", "clips through training steps", ours, "clips/s", "the plain way", other, 2.5, machine),
        Figure("embedding", "windows embedded", windows, "windows/s", "our training", ours, 2.5, machine),
    ]


def _embedding(spec) -> float:
    untrained = replace(spec, config=replace(spec.config, exposure=replace(spec.config.exposure, epochs=0)))
    train(untrained)
    moments: list[tuple[float, int]] = []

    def note(progress: Progress) -> bool:
        moments.append((time.perf_counter(), progress.clips))
        if len(moments) > STEPS + 1:
            raise Enough
        return False

    embedding = replace(untrained, unit=replace(spec.unit, stage="embed"))
    embedding.output.mkdir(parents=True)
    with suppress(Enough):
        embed(embedding, note)
    clips = sum(clips for _, clips in moments[2:])
    return clips * spec.config.embedding.num_windows / (moments[-1][0] - moments[1][0])
