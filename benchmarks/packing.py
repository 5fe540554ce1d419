"""Several training units at once on one device: what they do together, against one alone."""

import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial

import torch

from benchmarks.measure import Figure
from benchmarks.recordings import unit
from benchmarks.training import PACE, Pace, Timing, our_training
from rayasd.host import usable_cpus, worker_pool
from rayasd.unit import UnitSpec

NUMBERS = (1, 2, 4, 7)
"""Units at once on one GPU."""
PATIENCE = 120


def measure() -> list[Figure]:
    on_gpu = torch.cuda.is_available()
    numbers = NUMBERS[1:] if on_gpu else tuple({usable_cpus()} - {1})
    with unit("exposure.epochs=1000") as (spec, _, _):
        alone, *speeds = (_speed(spec, number) for number in (1, *numbers))
    where = torch.cuda.get_device_name() if on_gpu else f"{usable_cpus()} cores, divided among them"
    return [
        Figure("packing", f"{number} units at once, together", speed, "clips/s", "one alone", alone, note=where)
        for number, speed in zip(numbers, speeds, strict=True)
    ]


def _speed(spec: UnitSpec, number: int) -> float:
    with worker_pool(number) as pool:
        return sum(timing.speed for timing in together(pool, spec, number))


def together(pool: ProcessPoolExecutor, spec: UnitSpec, number: int, pace: Pace = PACE) -> list[Timing]:
    """Time so many units that train at the same time in a pool's processes, each with its share of the cores."""
    units = [
        replace(spec, unit=replace(spec.unit, seed=seed), num_threads=max(1, spec.num_threads // number))
        for seed in range(number)
    ]
    for each in units:
        each.output.mkdir(parents=True, exist_ok=True)
    return list(pool.map(_one_of, units, [number] * number, [pace] * number))


def _one_of(spec: UnitSpec, number: int, pace: Pace) -> Timing:
    return our_training(spec, pace, partial(_wait_for_all, spec, number))


def _wait_for_all(spec: UnitSpec, number: int) -> None:
    """Return when all units of so many have warmed up.

    Raises:
        TimeoutError: some have not within two minutes.

    """
    folder = spec.run.root / f"warm-{number}"
    folder.mkdir(exist_ok=True)
    (folder / str(spec.unit.seed)).touch()
    deadline = time.monotonic() + PATIENCE
    while len(list(folder.iterdir())) < number:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{number} units at once: not all had warmed up after {PATIENCE} s")
        time.sleep(0.01)
