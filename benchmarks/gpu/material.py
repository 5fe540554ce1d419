"""Facts of the machine, and the recordings that the other parts work on."""

import pickle
import platform
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

import torch

from benchmarks.gpu.results import Row
from benchmarks.gpu.running import Work
from benchmarks.measure import machine
from benchmarks.recordings import SECONDS, Files, unit_in
from rayasd.data.waveforms import scaling
from rayasd.host import git_revision
from rayasd.unit import UnitSpec

MANY_CLIPS = 640
"""Training clips a section: an epoch of 30 batches, so that what happens between epochs has a share as in real use."""
TINY = (
    "front_end.window_seconds=0.5", "front_end.n_fft=512", "front_end.hop_length=256", "front_end.n_mels=32",
    "network.backbone=test_efficientnet", "exposure.batch_size=16", "embedding.num_windows=3",
    "embedding.batch_size=12",
)  # fmt: skip
TINY_CLIPS, TINY_SECONDS = 22, 1.0


@dataclass(frozen=True)
class Material:
    """Recordings and a unit that trains on them."""

    spec: UnitSpec
    files: Files
    mean: float
    deviation: float


def facts(work: Work) -> Iterator[Row]:
    """Say where the figures come from."""
    for name, value in machine().items():
        yield Row(name, str(value or "none"))
    yield Row("rayasd revision", git_revision() or "unknown")
    yield Row("kernel", platform.release())
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        yield Row("GPU memory", properties.total_memory / 1e6, "MB")
        yield Row("multiprocessors", properties.multi_processor_count)
        yield Row("CUDA of torch", str(torch.version.cuda))
        yield Row("cuDNN", str(torch.backends.cudnn.version()))
        yield Row("driver", _driver())


def _driver() -> str:
    with suppress(OSError, subprocess.SubprocessError):
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.split()[0]
    return "unknown"


def data(work: Work) -> Iterator[Row]:
    """Write the recordings, decode them, and keep what the other parts need to know of them."""
    overrides, clips, seconds = (TINY, TINY_CLIPS, TINY_SECONDS) if work.tiny else ((), MANY_CLIPS, SECONDS)
    spec, catalog, files = unit_in(work.folder, "exposure.epochs=1000", *overrides, clips=clips, seconds=seconds)
    if work.tiny:
        spec = replace(spec, num_threads=1)  # threads that wait for each other on a busy machine cost a test seconds
    (work.folder / "material").write_bytes(pickle.dumps(Material(spec, files, *scaling(catalog.table))))
    yield Row("recordings", len(files), "clips", note=f"{seconds:g} s each, tones in noise")
    yield Row("threads of a unit alone", spec.num_threads)


def material(work: Work) -> Material:
    """Read what ``data`` kept, and compute with the unit's number of threads."""
    given: Material = pickle.loads((work.folder / "material").read_bytes())
    torch.set_num_threads(given.spec.num_threads)
    return given
