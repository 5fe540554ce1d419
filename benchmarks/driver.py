"""How many units that do nothing the driver gets through, and how fast it plans a resume of 20,000 finished ones."""

import os
import time
from pathlib import Path

from benchmarks.measure import Figure, alone
from benchmarks.recordings import unit
from rayasd.stages import STAGES
from rayasd.sweep.driver import drive
from rayasd.sweep.executors import Request
from rayasd.sweep.markers import mark_done
from rayasd.sweep.plan import Plan
from rayasd.sweep.states import State, Sweep, survey
from rayasd.sweep.store import RunStore
from rayasd.sweep.worker import Outcome
from rayasd.unit import UnitSpec

UNITS, WARM = 20_000, 2_000


def do_nothing(spec: UnitSpec) -> Outcome:
    return Outcome(spec.unit)


def measure() -> list[Figure]:
    with unit() as (spec, catalog, _):

        def run_of(seeds: int) -> RunStore:
            store = RunStore(spec.run.root.with_name(f"driver-{seeds}"))
            store.paths.root.mkdir()
            data = {"root": str(catalog.root), "fingerprint": {}, "pretrained": {}}
            plan = Plan(("fan", "pump"), ("both",), tuple(range(seeds)))
            store.set_up(spec.config, catalog, data, plan, ["benchmark"])
            return store

        speed, grown = alone(units_a_second, run_of(UNITS // 2))
        finished = run_of(UNITS // 2 // len(STAGES) + 1)
        for done in finished.specs().values():
            done.output.mkdir(parents=True, exist_ok=True)
            (done.output / "model.safetensors").touch()
            mark_done(done)
        resumed = alone(resume, finished)
    return [
        Figure("driver", f"{UNITS} units that do nothing, Ray", speed, "units/s", "wanted", 300, 1,
               f"memory of the driver: {grown:+.0f} MB over the last {UNITS - WARM}"),
        Figure("driver", f"plan of {UNITS} finished units", resumed, "s", "wanted", 3.0, 1),
    ]  # fmt: skip


def units_a_second(store: RunStore) -> tuple[float, float]:
    """Units a second through Ray, and by how many MB the driver grows after the first of them."""
    from rayasd.cluster.executor import RayExecutor

    executor = RayExecutor("local", store.paths.root / "token")
    executor._task = executor._ray.remote(max_retries=0)(do_nothing)
    specs = {unit: spec for unit, spec in store.specs().items() if unit.stage == "train"}
    marks: list[tuple[int, float, float]] = []

    def note(sweep: Sweep) -> None:
        done = sweep.count(State.DONE)
        if not marks or done == len(specs) or (len(marks) == 1 and done >= WARM):
            marks.append((done, time.perf_counter(), _memory()))

    try:
        drive(Sweep(specs, dict.fromkeys(specs, State.WAITING)), store, executor, Request(1, 0), on_change=note)
    finally:
        executor.close()
    (first, began, before), (last, ended, after) = marks[1], marks[-1]
    return (last - first) / (ended - began), after - before


def resume(store: RunStore) -> float:
    """Seconds until a run whose units are all done is understood."""
    began = time.perf_counter()
    specs = store.specs()
    sweep = survey(specs, set(specs), retry_failed=False)
    assert sweep.count(State.DONE) == len(specs)
    return time.perf_counter() - began


def _memory() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
