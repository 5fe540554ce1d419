"""Recordings to time with: tones in noise, in the layout and sizes of DCASE 2021, and a unit that trains on them."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import soundfile

from rayasd import presets
from rayasd.config import Config
from rayasd.data.catalog import Catalog, scan, write_catalog
from rayasd.data.waveforms import data_fingerprint, decode
from rayasd.files import digest
from rayasd.host import usable_cpus
from rayasd.unit import RunDirectory, Unit, UnitSpec

MACHINES, SECTIONS, CLIPS, RATE, SECONDS = ("fan", "pump"), 3, 85, 16000, 10
"""Three sections of 85 training clips of 10 s: four batches of 128 an epoch, half of them of the target machine."""


Files = list[tuple[Path, float, int]]
"""Training clips: file, machine target and section of each."""


def write_recordings(root: Path, clips: int = CLIPS, seconds: float = SECONDS) -> Files:
    """Write training clips, and two test clips a section; returns the former."""
    rng, files = np.random.default_rng(0), []
    frames = round(RATE * seconds)
    for m, machine in enumerate(MACHINES):
        for section in range(SECTIONS):
            frequency = 300 + 400 * m + 150 * section
            tone = (3000 * np.sin(2 * np.pi * frequency * np.arange(frames) / RATE)).astype(np.int16)
            for n in range(clips + 2):
                part, kind = ("train", "train") if n < clips else ("source_test", "test")
                label = "anomaly" if n == clips else "normal"
                path = root / machine / part / f"section_{section:02}_source_{kind}_{label}_{n:04}_noise.wav"
                path.parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(path, tone + rng.integers(-6000, 6000, frames, dtype=np.int16), RATE)
                if n < clips:
                    files.append((path, float(machine == "fan"), section))
    return files


@contextmanager
def unit(*overrides: str) -> Iterator[tuple[UnitSpec, Catalog, Files]]:
    """Make a training unit of the reference's configuration on recordings that go when the block ends."""
    with tempfile.TemporaryDirectory() as folder:
        yield unit_in(Path(folder), *overrides)


def unit_in(
    folder: Path, *overrides: str, clips: int = CLIPS, seconds: float = SECONDS
) -> tuple[UnitSpec, Catalog, Files]:
    """Make a training unit of the reference's configuration on recordings below ``folder``."""
    config: Config = presets.load("eusipco2022", ["exposure.validation_fraction=0", "inlier.fit_on=train", *overrides])
    files = write_recordings(folder / "data", clips, seconds)
    catalog = decode(scan(folder / "data"), config.data, folder / "cache")
    run = RunDirectory(folder / "run")
    write_catalog(run.catalog, catalog)
    spec = UnitSpec(
        unit=Unit("train", "both", "fan", 0), config=config, run=run, cache=folder / "cache",
        data_root=catalog.root, data=digest(data_fingerprint(catalog)), num_threads=usable_cpus(),
    )  # fmt: skip
    spec.output.mkdir(parents=True)
    return spec, catalog, files
