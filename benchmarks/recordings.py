"""Recordings to time with: noise in the layout and sizes of DCASE 2021, and a unit that trains on them."""

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


def write_recordings(root: Path, clips: int = CLIPS) -> list[tuple[Path, float, int]]:
    """Write training clips, and two test clips a section; returns file, machine target and section of the former."""
    rng, files = np.random.default_rng(0), []
    for machine in MACHINES:
        for section in range(SECTIONS):
            for n in range(clips + 2):
                part, kind = ("train", "train") if n < clips else ("source_test", "test")
                label = "anomaly" if n == clips else "normal"
                path = root / machine / part / f"section_{section:02}_source_{kind}_{label}_{n:04}_noise.wav"
                path.parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(path, rng.integers(-9000, 9000, RATE * SECONDS, dtype=np.int16), RATE)
                if n < clips:
                    files.append((path, float(machine == "fan"), section))
    return files


@contextmanager
def unit(*overrides: str) -> Iterator[tuple[UnitSpec, Catalog, list[tuple[Path, float, int]]]]:
    """Make a training unit of the reference's configuration on recordings that go when the block ends."""
    config: Config = presets.load("eusipco2022", ["exposure.validation_fraction=0", "inlier.fit_on=train", *overrides])
    with tempfile.TemporaryDirectory() as folder:
        files = write_recordings(Path(folder) / "data")
        catalog = decode(scan(Path(folder) / "data"), config.data, Path(folder) / "cache")
        run = RunDirectory(Path(folder) / "run")
        write_catalog(run.catalog, catalog)
        spec = UnitSpec(
            unit=Unit("train", "both", "fan", 0), config=config, run=run, cache=Path(folder) / "cache",
            data_root=catalog.root, data=digest(data_fingerprint(catalog)), num_threads=usable_cpus(),
        )  # fmt: skip
        spec.output.mkdir(parents=True)
        yield spec, catalog, files
