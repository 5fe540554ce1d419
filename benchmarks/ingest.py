"""Decoding into the cache, against soundfile on all cores; and opening a root that is cached."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from benchmarks.measure import Figure, in_turn
from benchmarks.recordings import RATE, write_recordings
from rayasd.config import DataConfig
from rayasd.data.catalog import scan
from rayasd.data.waveforms import decode
from rayasd.host import usable_cpus

CLIPS, MANY, SHARING = 900, 40_000, 4


def measure() -> list[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        root, cache = Path(folder) / "data", Path(folder) / "cache"
        write_recordings(root, CLIPS)
        files = sorted(root.rglob("*.wav"))

        def ours() -> None:
            shutil.rmtree(cache, ignore_errors=True)
            decode(scan(root), DataConfig(), cache)

        def soundfile_alone() -> None:
            for _ in decoded():
                pass

        def soundfile_and_a_file() -> None:
            with (Path(folder) / "all").open("wb") as out:
                for samples in decoded():
                    out.write(samples)
                os.fsync(out.fileno())

        def decoded() -> Iterator[np.ndarray]:
            with ThreadPoolExecutor(usable_cpus()) as pool:
                for samples, _ in pool.map(lambda path: soundfile.read(path, dtype="int16"), files):
                    yield samples

        ours()
        seconds, alone, written = in_turn(ours, soundfile_alone, soundfile_and_a_file, repeat=3)
        opened = _opened(Path(folder))
        largest = max(cache.glob("*.i16"), key=lambda path: path.stat().st_size)
        shared, copies = _shared(largest), SHARING * largest.stat().st_size / 1e6
    what = "clips of 10 s decoded, checked, written"
    return [
        Figure("ingest", what, len(files) / seconds, "clips/s", "soundfile alone, all cores", len(files) / alone, 0.8),
        Figure(
            "ingest", what, len(files) / seconds, "clips/s", "soundfile, samples written", len(files) / written, 0.8
        ),
        Figure(
            "ingest",
            f"memory of a machine's clips in {SHARING} processes",
            shared,
            "MB",
            "a copy each",
            copies,
            note="summed proportional set sizes of the map",
        ),
        Figure("ingest", f"root of {MANY} cached clips opened", opened, "s", "wanted", 1.0, 1),
    ]


def _opened(folder: Path) -> float:
    root, cache = folder / "many", folder / "cache-of-many"
    clip = folder / "clip.wav"
    soundfile.write(clip, np.ones(RATE // 100, np.int16), RATE)
    content = clip.read_bytes()
    for machine in range(7):
        train = root / f"machine{machine}" / "train"
        train.mkdir(parents=True)
        for n in range(MANY // 7 + 1):
            (train / f"section_{n % 6:02}_source_train_normal_{n:05}_x.wav").write_bytes(content)
    decode(scan(root), DataConfig(), cache)
    began = time.perf_counter()
    decode(scan(root), DataConfig(), cache)
    return time.perf_counter() - began


def _shared(path: Path) -> float:
    """Summed proportional set size (MB) of one memory map that several processes have read."""
    context = get_context("spawn")
    barrier, sizes = context.Barrier(SHARING), context.SimpleQueue()
    readers = [context.Process(target=_read_all, args=(path, barrier, sizes)) for _ in range(SHARING)]
    for reader in readers:
        reader.start()
    total = sum(sizes.get() for _ in readers)
    for reader in readers:
        reader.join()
    return total


def _read_all(path: Path, barrier: Any, sizes: Any) -> None:
    samples = np.memmap(path, dtype="<i2", mode="r")
    samples.max()
    barrier.wait()  # all have read
    _, _, part = Path("/proc/self/smaps").read_text().partition(str(path))
    kilobytes = int(next(line for line in part.splitlines() if line.startswith("Pss:")).split()[1])
    barrier.wait()  # all have looked
    sizes.put(kilobytes / 1000)
