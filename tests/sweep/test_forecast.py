from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from rayasd import presets
from rayasd.data.catalog import Catalog
from rayasd.sweep.driver import Sweep
from rayasd.sweep.executors import Request, Resources
from rayasd.sweep.forecast import STARTS_PER_SECOND, Clips, forecast, play, work
from rayasd.sweep.plan import Plan
from rayasd.unit import RunDirectory, Unit, UnitSpec

CONFIG = presets.load("demo")
START = 1 / STARTS_PER_SECOND


def specs_of(plan: Plan) -> dict[Unit, UnitSpec]:
    return {
        unit: UnitSpec(unit=unit, config=CONFIG.variant(unit.variant), run=RunDirectory(Path("run")), cache=Path(),
                       data_root=Path(), data="")
        for unit in plan.units(CONFIG)
    }  # fmt: skip


def test_units_follow_one_another_and_the_longest_goes_first():
    specs = specs_of(Plan(("fan", "pump", "valve"), ("both",), (0,)))
    train = {"fan": 10.0, "pump": 20.0, "valve": 30.0}
    seconds = {unit: train[unit.machine] if unit.stage == "train" else 1.0 for unit in specs}
    request = Request(1, 0)
    assert play(Sweep(specs), seconds, Resources(1), request) == pytest.approx(66, abs=9 * START)
    # valve 0-30, pump 0-20 with its two until 22, then fan 22-32 with its two until 34
    assert play(Sweep(specs), seconds, Resources(2), request) == pytest.approx(34, abs=9 * START)
    assert play(Sweep(specs), seconds, Resources(99), request) == pytest.approx(32, abs=9 * START)


def test_the_driver_starts_no_more_than_it_can():
    specs = specs_of(Plan(("fan",), ("both",), tuple(range(999))))
    seconds = dict.fromkeys(specs, 0.0)
    assert play(Sweep(specs), seconds, Resources(10_000), Request(1, 0)) >= (len(specs) - 1) * START


def catalog(clips: int, size: int) -> Catalog:
    rows = [(f"{m}/{n}", m, "train" if n % 2 else "test", size) for m in ("fan", "pump") for n in range(clips)]
    columns = dict(zip(("clip", "machine", "split", "size"), map(list, zip(*rows, strict=True)), strict=True))
    return Catalog(Path("root"), pa.table(columns))


def test_a_plan_on_simulated_nodes_says_what_bounds_it():
    specs = specs_of(Plan(("fan", "pump"), ("both",), (0, 1)))
    speeds = {"train": 100.0, "embed": 1000.0, "detect": 1000.0}
    data = catalog(500, 1_000_000)
    of = {"both": 1000}
    clips = Clips.of(data)
    assert clips.train == {"fan": 250, "pump": 250}
    unit = Unit("train", "both", "fan", 0)
    steps = 2 * 250 * (1 - CONFIG.exposure.validation_fraction) * CONFIG.exposure.epochs
    assert work(unit, CONFIG, clips) == pytest.approx(steps)
    one = forecast(specs, data, of, speeds, [Resources(4, 1)], Request(1, 1))
    four = forecast(specs, data, of, speeds, [Resources(4, 1)] * 4, Request(1, 1))
    assert max(one.bounds, key=lambda what: one.bounds[what]) == "GPUs"
    assert max(four.bounds, key=lambda what: four.bounds[what]).startswith("the longest training")
    for found in (one, four):
        assert max(found.bounds.values()) <= found.makespan
        assert 0 < found.busy <= 1
    assert one.makespan / four.makespan == pytest.approx(4, rel=0.1)
    assert (one.node_bytes, four.read_bytes - one.read_bytes) == (1_000_000_000, 3_000_000_000)
    slow = forecast(specs, data, of, speeds, [Resources(4, 1)] * 4, Request(1, 1), file_system=1e6)
    assert slow.makespan > 4000  # four nodes read a GB each, at a MB a second
    checkpointed = replace(CONFIG, exposure=replace(CONFIG.exposure, epochs=21, checkpoint_every=10))
    written = forecast({u: replace(s, config=checkpointed) for u, s in specs.items()}, data, of, speeds,
                       [Resources(4, 1)], Request(1, 1))  # fmt: skip
    assert written.checkpoint_bytes == 4 * 2 * 3 * 4 * 1000  # units x times x moments x float32 x parameters
