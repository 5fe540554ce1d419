"""Clips that arrive in a plant, and the scores that they have without faults."""

import os
import random
import shutil
from collections import defaultdict
from pathlib import Path

import numpy as np
import soundfile

from rayasd.scoring import load
from tests.command import call
from tests.conftest import RATE, run_locally, write_clip

Version = tuple[str, int, int]
"""Name, size and time of change of a clip."""
_A_FOLDER = 30
"""Clips in a folder."""


def recalibrated(tree: Path, cache: Path, folder: Path) -> Path:
    """Pack a control's model that was recalibrated to 20 clips, which lie beside it in ``normal``."""
    run = run_locally(tree, cache, folder / "run", "--variants", "statistics", "--detectors", "knn-1")
    for n in range(20):
        write_clip(folder / f"normal/{n:02}.wav", 300.0 + n, seed=n)
    words = ("--machine", "fan", "--section", "00", "--normal", folder / "normal", "-o", folder / "fan.rayasd")
    done = call("recalibrate", run, *words, cache=cache)
    assert done.returncode == 0, done.stderr
    return folder / "fan.rayasd"


class Incoming:
    """Clips that arrive, whole."""

    def __init__(self, folder: Path, packed: Path, seed: int) -> None:
        self.folder, self.packed, self.rng, self.number = folder, packed, random.Random(seed), 0
        self.incoming, self.pool = folder / "in", folder / "pool"
        for each in (self.incoming, self.pool):
            each.mkdir(parents=True)
        self.was: dict[Version, str] = {}
        """What each version of a clip is in the pool, by its name without the folder: folders are renamed."""
        self._make_pool()
        for _ in range(2 * _A_FOLDER):
            self.arrive()

    def _make_pool(self) -> None:
        """Write what may arrive, and score it: normal clips, faults, silence, and clips that cannot be read."""
        for path in self.packed.with_name("normal").iterdir():
            shutil.copy(path, self.pool / f"normal-{path.name}")
        for n in range(5):
            write_clip(self.pool / f"fault-{n}.wav", 3000.0 + n, seed=n)
        soundfile.write(self.pool / "silence.flac", np.zeros(120 * RATE, np.int16), RATE)
        whole = (self.pool / "normal-00.wav").read_bytes()
        for name, content in {"cut": whole[:9000], "empty": b"", "text": b"no audio", "half": whole[:20000]}.items():
            (self.pool / f"bad-{name}.wav").write_bytes(content)
        noise = np.random.default_rng(0).integers(-9999, 9999, RATE).astype(np.int16)
        soundfile.write(self.pool / "flac.flac", noise, RATE)
        damaged = bytearray((self.pool / "flac.flac").read_bytes())
        damaged[len(damaged) // 2] ^= 0x10
        (self.pool / "flac.flac").rename(self.pool / "bad-flac.flac").write_bytes(damaged)
        self.expected: dict[str, list[float]] = defaultdict(list, {"none": []})
        for each in load(self.packed).score(sorted(self.pool.iterdir()), "00"):
            self.expected[Path(each.clip).name] += [] if each.score is None else [each.score]

    def choose(self, kind: str = "") -> str:
        kind = kind or self.rng.choices(("normal", "fault", "bad"), (90, 8, 2))[0]
        return self.rng.choice(sorted(path.name for path in self.pool.glob(f"{kind}-*")))

    def arrive(self, content: str = "", *, onto: Path | None = None, mtime: float | None = None) -> None:
        """Let a clip arrive whole, as docs/scoring.md recommends."""
        content, path = content or self.choose(), onto or self.path()
        part = path.with_name(f".{path.name}.part")
        shutil.copyfile(self.pool / content, part)
        if mtime is not None:
            os.utime(part, (mtime, mtime))
        self.note(path, part.stat(), content)
        part.rename(path)

    def path(self) -> Path:
        self.number += 1
        path = self.incoming / f"{self.number // _A_FOLDER:03}/{self.number:05}.wav"
        path.parent.mkdir(exist_ok=True)
        return path

    def note(self, path: Path, facts: os.stat_result, content: str) -> None:
        self.was[path.name, facts.st_size, facts.st_mtime_ns] = content

    def old(self) -> Path:
        """Choose a folder that no clip is written to."""
        now = f"{self.number // _A_FOLDER:03}"
        return self.rng.choice(sorted(path for path in self.incoming.iterdir() if path.name != now))
