from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from rayasd import presets
from rayasd.config import Config
from rayasd.data.catalog import Catalog
from rayasd.stages import ALL_MACHINES, NumClips
from rayasd.sweep.executors import Request, Resources
from rayasd.sweep.forecast import least_seconds
from rayasd.sweep.plan import Plan
from rayasd.unit import RunDirectory, Unit, UnitSpec

CONFIG = presets.load("demo")
WINDOWS = CONFIG.embedding.num_windows


def specs_of(plan: Plan, config: Config = CONFIG) -> dict[Unit, UnitSpec]:
    return {
        unit: UnitSpec(unit=unit, config=config.variant(unit.variant), run=RunDirectory(Path("run")), cache=Path(),
                       data_root=Path(), data="")
        for unit in plan.units(config)
    }  # fmt: skip


def catalog(clips: int, size: int) -> Catalog:
    rows = [(f"{m}/{n}", m, "train" if n % 2 else "test", size) for m in ("fan", "pump") for n in range(clips)]
    columns = dict(zip(("clip", "machine", "split", "size"), map(list, zip(*rows, strict=True)), strict=True))
    return Catalog(Path("root"), pa.table(columns))


def test_a_plan_on_simulated_nodes_tells_what_bounds_it():
    specs = specs_of(Plan(("fan", "pump"), ("both",), (0, 1)))
    speeds = {"train": 100.0, "embed": 1000.0, "detect": 1000.0}
    data = catalog(500, 1_000_000)
    clips = NumClips.of(data.table)
    assert clips.train == {"fan": 250, "pump": 250}
    unit = Unit("train", "both", "fan", 0)
    steps = 2 * 250 * (1 - CONFIG.exposure.validation_fraction) * CONFIG.exposure.epochs
    assert specs[unit].work(clips) == pytest.approx(steps)
    request = Request(1, 1)
    one = least_seconds(specs, clips, speeds, request.usable([Resources(4, 1)]), request)
    four = least_seconds(specs, clips, speeds, request.usable([Resources(4, 1)] * 4), request)
    assert max(one, key=lambda what: one[what]) == "GPUs"
    assert one["GPUs"] == pytest.approx(4 * (steps / 100 + 500 * WINDOWS / 1000))
    assert four["GPUs"] == pytest.approx(one["GPUs"] / 4)
    assert max(four, key=lambda what: four[what]).startswith("the longest training")
    no_gpu = Request(1, 0)
    assert "GPUs" not in least_seconds(specs, clips, speeds, no_gpu.usable([Resources(4)]), no_gpu)


def test_what_follows_a_shared_training_is_counted_with_it():
    shared = replace(CONFIG, exposure=replace(CONFIG.exposure, scope="all"))
    specs = specs_of(Plan(("fan", "pump"), ("both",), (0,)), shared)
    clips = NumClips.of(catalog(500, 1_000_000).table)
    speeds = {"train": 100.0, "embed": 1000.0, "detect": 1000.0}
    request = Request(1, 0)
    bounds = least_seconds(specs, clips, speeds, request.usable([Resources(100)]), request)
    training = clips.trained_on(ALL_MACHINES, shared) / 100
    assert max(bounds.values()) == pytest.approx(training + (500 * WINDOWS + 500) / 1000)


def test_windows_are_counted_by_the_length_of_the_clips():
    plain = CONFIG.variant("both")
    by_time = replace(plain, embedding=replace(plain.embedding, windows_per_second=2.0))
    listed = catalog(10, 1000).table
    seconds = pa.array([5, 60] * 10)  # of test and training clips
    decoded = listed.append_column("frames", pc.multiply(seconds, plain.data.sample_rate))
    assert NumClips.of(listed).embedded("fan", by_time) == 10 * WINDOWS
    assert NumClips.of(decoded).embedded("fan", by_time) == 10 * 120 * NumClips.of(decoded).checkpoints(by_time)
