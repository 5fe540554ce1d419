"""Several training units at once on one device: what they do together, against one alone."""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import torch

from benchmarks.measure import Figure
from benchmarks.recordings import unit
from benchmarks.training import our_training
from rayasd.host import usable_cpus
from rayasd.unit import UnitSpec


def measure() -> list[Figure]:
    on_gpu = torch.cuda.is_available()
    numbers = (2, 4, 7) if on_gpu else (usable_cpus(),)
    with unit("exposure.epochs=1000") as (spec, _, _):
        alone = together(spec, 1)
        speeds = {number: together(spec, number) for number in numbers if number > 1}
    where = torch.cuda.get_device_name() if on_gpu else f"{usable_cpus()} cores, divided among them"
    return [
        Figure("packing", f"{number} units at once, together", speed, "clips/s", "one alone", alone, note=where)
        for number, speed in speeds.items()
    ]


def together(spec: UnitSpec, number: int) -> float:
    """Clips a second of so many units that train at the same time, each with its share of the cores."""
    units = [
        replace(spec, unit=replace(spec.unit, seed=seed), num_threads=max(1, usable_cpus() // number))
        for seed in range(number)
    ]
    for each in units:
        each.output.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(number, get_context("spawn")) as pool:
        return sum(pool.map(our_training, units))
