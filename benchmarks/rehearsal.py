"""Sweep recordings as large as DCASE 2021 Task 2 (58,926 clips of 10 s), and see what each step takes.

python -m benchmarks rehearsal --out runs/rehearsal               # 40 GB of disk; hours on two cores
python -m benchmarks rehearsal --clips 10 --out runs/rehearsal    # tiny

The recordings are tones in noise: what is measured is time, memory and disk, not accuracy. One epoch is trained.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import soundfile
from rich.console import Console
from rich.table import Table

from benchmarks.measure import run_rayasd
from rayasd.data.years import DEVELOPMENT_MACHINES

MACHINES, SECTIONS, RATE, SECONDS = DEVELOPMENT_MACHINES[2021], 6, 16000, 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=1000, help="source-domain training clips of a section (1000)")
    parser.add_argument("--out", type=Path, default=Path("runs/rehearsal"), help="folder of recordings, cache and runs")
    asked = parser.parse_args(sys.argv[2:])
    console, data = Console(width=None if sys.stdout.isatty() else 120), asked.out / "data"
    shown = Table(
        "step", "minutes", "CPU minutes", "MB of the command", "MB of its largest worker", "MB on disk", box=None
    )
    began = time.monotonic()
    number = write(data, asked.clips)
    shown.add_row("recordings written", f"{(time.monotonic() - began) / 60:.1f}", "", "", "", megabytes(data))
    cache = asked.out / "cache"
    sweep = ("sweep", "--data", data, "--executor", "local", "--cache", cache)
    for name, run, words in (
        ("ingested", "controls", (*sweep, "--variants", "statistics", "--set-up-only")),
        ("a control, all detectors, report", "controls", (*sweep, "--variants", "statistics")),
        ("leaderboard and page again", "controls", ("report",)),
        ("shared-scac, an epoch, all detectors", "shared",
         (*sweep, "--variants", "shared-scac", *one_epoch("variants.shared-scac."))),
        ("eusipco2022 on one machine, an epoch", "both", (*sweep, "--machines", "fan", *one_epoch())),
    ):  # fmt: skip
        folder = asked.out / run
        where = ("--run-dir", folder) if words[0] == "sweep" else (folder,)
        with console.status(name):
            used = run_rayasd([words[0], *where, *words[1:]], asked.out / "log")
        times = (f"{used.minutes:.1f}", f"{used.cpu_minutes:.1f}")
        shown.add_row(name, *times, f"{used.command_mb:.0f}", f"{used.worker_mb:.0f}", megabytes(folder))
        console.print(shown)  # each step may take an hour
    console.print(f"{number} clips, cache {megabytes(cache)} MB")


def one_epoch(of: str = "") -> list[str]:
    """Return options for one epoch; ``of``: prefix of a variant that sets its own number."""
    changes = ("exposure.epochs=1", "exposure.min_steps=0", "exposure.keep_every=0")
    return [word for change in changes for word in ("--set", of + change)]


def write(root: Path, clips: int) -> int:
    """Write training and test clips named as those of 2021; returns their number."""
    rng, ticks, number = np.random.default_rng(0), np.arange(RATE * SECONDS) / RATE, 0
    parts = [("train", "source_train_normal", clips), ("train", "target_train_normal", max(3, clips // 300))]
    parts += [(f"{domain}_test", f"{domain}_test_{label}", max(5, clips // 10))
              for domain in ("source", "target") for label in ("normal", "anomaly")]  # fmt: skip
    for m, machine in enumerate(MACHINES):
        for section in range(SECTIONS):
            tone = (3000 * np.sin(2 * np.pi * (200 + 300 * m + 40 * section) * ticks)).astype(np.int16)
            for folder, kind, count in parts:
                (root / machine / folder).mkdir(parents=True, exist_ok=True)
                for n in range(count):
                    path = root / machine / folder / f"section_{section:02}_{kind}_{n:04}.wav"
                    if not path.exists():
                        samples = tone + rng.integers(-4000, 4000, len(tone), dtype=np.int16)
                        soundfile.write(path, samples, RATE)
                    number += 1
    return number


def megabytes(folder: Path) -> str:
    return f"{sum(path.stat().st_size for path in folder.rglob('*') if path.is_file()) / 1e6:.0f}"
