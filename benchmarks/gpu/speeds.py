"""Clips a second of training and embedding beside the plain way and the roofline, alone and several units at once."""

from collections.abc import Iterator
from dataclasses import replace

from benchmarks.gpu.checks import with_exposure
from benchmarks.gpu.material import Material, material
from benchmarks.gpu.results import Row, timed
from benchmarks.gpu.running import Work
from benchmarks.measure import apart, forks
from benchmarks.packing import NUMBERS, together
from benchmarks.training import (
    Pace,
    Timing,
    floors,
    our_embedding,
    our_training,
    plain_embedding,
    plain_training,
)
from rayasd import presets
from rayasd.stages import ALL_MACHINES
from rayasd.unit import Unit

TRAINING, EMBEDDING, AT_ONCE = Pace(20, 30, 5), Pace(10, 12, 5), Pace(20, 30, 3, seconds=2.0)
TINY = Pace(2, 3, 3)


def training(work: Work) -> Iterator[Row]:
    """Compare our training with the plain way and with the roofline."""
    given, pace = material(work), TINY if work.tiny else TRAINING
    ours = apart(our_training, given.spec, pace)
    yield from _timing("ours", ours, "clips/s")
    theirs = apart(plain_training, *_plainly(given), pace)
    yield from _timing("the plain way", theirs, "clips/s", note="float32, soundfile, a loader's processes")
    yield Row("ours over the plain way", ours.speed / theirs.speed)
    floor, _ = apart(_floors, work)
    yield from _roofline(ours.speed, floor, "clips/s")


def shared(work: Work) -> Iterator[Row]:
    """Train one network for all machines, as preset ``recommended`` and as published, on whole clips."""
    given, pace = material(work), TINY if work.tiny else TRAINING
    for name, config in (
        ("recommended", presets.load("recommended").variant("recommended")),
        ("shared-scac", presets.load("eusipco2022").variant("shared-scac")),
    ):
        if work.tiny:
            config = replace(config, front_end=replace(config.front_end, window_seconds=1.0))
        spec = replace(given.spec, config=config, unit=Unit("train", name, ALL_MACHINES, 0))
        spec = with_exposure(spec, epochs=1000, **({"batch_size": 8} if work.tiny else {}))
        spec.output.mkdir(parents=True, exist_ok=True)
        timing = apart(our_training, spec, pace)
        note = f"batches of {spec.config.exposure.batch_size}, windows of {config.front_end.window_seconds:g} s"
        yield from _timing(name, timing, "clips/s", note=note)


def embedding(work: Work) -> Iterator[Row]:
    """Compare our embedding with the plain way and with the roofline."""
    given, pace = material(work), TINY if work.tiny else EMBEDDING
    num_windows = given.spec.config.embedding.num_windows
    ours = apart(our_embedding, given.spec, pace)
    yield from _timing("ours", ours, "windows/s", num_windows)
    theirs = apart(plain_embedding, *_plainly(given), pace)
    yield from _timing("the plain way", theirs, "windows/s", num_windows, note="float32, a loader's processes")
    yield Row("ours over the plain way", ours.speed / theirs.speed)
    _, floor = apart(_floors, work)
    yield from _roofline(num_windows * ours.speed, floor, "windows/s")


def packing(work: Work) -> Iterator[Row]:
    """Train several units at once on the device, each in a process with its share of the cores."""
    spec, one = material(work).spec, 0.0
    for number in NUMBERS[:2] if work.tiny else NUMBERS:
        with forks(number) as pool:
            timings = together(pool, spec, number, TINY if work.tiny else AT_ONCE)
        speed = sum(timing.speed for timing in timings)
        one = one or speed
        name = f"{number} at once"
        yield Row(f"{name}, together", speed, "clips/s", note=f"{speed / one:.2f} times one alone")
        yield timed(f"{name}, each", [timing.speed for timing in timings], "clips/s")
        yield timed(f"{name}, peak memory of each", [timing.peak for timing in timings], "MB")


def _timing(name: str, timing: Timing, unit: str, factor: int = 1, note: str = "") -> Iterator[Row]:
    yield timed(name, [factor * speed for speed in timing.speeds], unit, note)
    yield Row(f"{name}, peak memory", timing.peak, "MB")


def _roofline(speed: float, floor: float, unit: str) -> Iterator[Row]:
    yield Row("what bytes and operations allow", floor, unit, note="benchmarks/roofline.py, measured peaks")
    yield Row("share of it", speed / floor)


def _plainly(given: Material) -> tuple[object, ...]:
    spec = given.spec
    return spec.config, given.files, given.mean, given.deviation, spec.num_threads


def _floors(work: Work) -> tuple[float, float]:
    return floors(material(work).spec, small=work.tiny)
