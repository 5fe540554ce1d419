"""Decoding into the cache, against soundfile on all cores; and opening a root that is cached."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import soundfile

from benchmarks.measure import Figure, in_turn
from benchmarks.recordings import RATE, write_recordings
from rayasd.config import DataConfig
from rayasd.data.catalog import scan
from rayasd.data.waveforms import decode
from rayasd.host import usable_cpus

MANY = 40_000


def measure() -> list[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        root, cache = Path(folder) / "data", Path(folder) / "cache"
        write_recordings(root)
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
        seconds, alone, written = in_turn(ours, soundfile_alone, soundfile_and_a_file, repeat=5)
        opened = _opened(Path(folder))
    what = "clips of 10 s decoded, checked, written"
    return [
        Figure("ingest", what, len(files) / seconds, "clips/s", "soundfile alone, all cores", len(files) / alone, 0.8),
        Figure(
            "ingest", what, len(files) / seconds, "clips/s", "soundfile, samples written", len(files) / written, 0.8
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
