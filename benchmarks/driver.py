"""How many units that do nothing the driver gets through, and how fast it plans a resume of 20,000 finished ones."""

import os
import resource
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.measure import Figure
from rayasd import presets
from rayasd.sweep.driver import State, Sweep, drive, survey
from rayasd.sweep.executors import Executor, Request
from rayasd.sweep.store import RunStore, mark_done
from rayasd.sweep.worker import Outcome
from rayasd.unit import Unit, UnitSpec

UNITS, RESUMED = 3000, 20_000


def do_nothing(spec: UnitSpec) -> Outcome:
    return Outcome(spec.unit)


def measure() -> list[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["RAY_AUTH_MODE"] = "disabled"  # on the loopback, for a minute
        from rayasd.sweep.executors.ray import RayExecutor

        store = RunStore(Path(folder) / "run")
        store.paths.root.mkdir()
        ray = RayExecutor("local", store.paths.root / "token", "benchmark")
        ray._task = ray._ray.remote(max_retries=0)(do_nothing)
        try:
            before = _memory()
            by_ray = _units_a_second(store, ray)
            grown = _memory() - before
        finally:
            ray.close()
        resumed = _resume(store)
    return [
        Figure("driver", f"{UNITS} units that do nothing, Ray", by_ray, "units/s", "wanted", 300, 1,
               f"the driver's memory grew by {grown:.0f} MB"),
        Figure("driver", f"plan of {RESUMED} finished units", resumed, "s", "wanted", 3.0, 1),
    ]  # fmt: skip


def _specs(store: RunStore, count: int) -> dict[Unit, UnitSpec]:
    config = presets.load("demo")
    spec = UnitSpec(unit=Unit("train", "both", "fan", 0), config=config, run=store.paths, cache=Path(),
                    data_root=Path(), data="d")  # fmt: skip
    units = [Unit("train", "both", "fan", seed) for seed in range(count)]
    return {unit: replace(spec, unit=unit) for unit in units}


def _units_a_second(store: RunStore, executor: Executor) -> float:
    specs = _specs(store, UNITS)
    warm = dict(list(specs.items())[:50])
    drive(Sweep(warm, dict.fromkeys(warm, State.WAITING)), store, executor, Request(1, 0))
    sweep = Sweep(specs, dict.fromkeys(specs, State.WAITING))
    began = time.perf_counter()
    drive(sweep, store, executor, Request(1, 0))
    assert sweep.count(State.DONE) == UNITS
    return UNITS / (time.perf_counter() - began)


def _resume(store: RunStore) -> float:
    specs = _specs(store, RESUMED)
    for spec in specs.values():
        spec.output.mkdir(parents=True, exist_ok=True)
        (spec.output / "model.safetensors").touch()
        mark_done(spec)
    began = time.perf_counter()
    sweep = survey(store, specs, set(specs), retry_failed=False)
    assert sweep.count(State.DONE) == RESUMED
    return time.perf_counter() - began


def _memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
