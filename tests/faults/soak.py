"""Thousands of small units through one driver: what it holds must not grow, and what it says must be complete.

``python -m tests.faults.soak --units 5000``; exit code 1 if not.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tests.command import command_line, environment
from tests.conftest import small_sweep, write_tree

UNITS_A_SEED = 10
"""Of two machines: train, embed and detect of the network, embed and detect of a control."""
_LOOK_SECONDS = 1.0
_MOST_DESCRIPTORS = 10  # more at the end than near the beginning
_MOST_MEMORY = 60e6, 15e3  # bytes more at the end: in all, and a unit


@dataclass(frozen=True)
class Sample:
    """What the driver holds at a moment."""

    seconds: float
    resident: int
    """Bytes."""
    descriptors: int
    threads: int


def soak(folder: Path, num_units: int, executor: str) -> tuple[list[Sample], list[str]]:
    """Run a sweep of so many units; returns what its driver held as it went, and what is wrong."""
    seeds = f"0-{num_units // UNITS_A_SEED - 1}"
    run = folder / "run"
    more = ("--variants", "both,statistics", "--seeds", seeds, "--set", "exposure.epochs=1",
            "--set", "evaluation.ensembles=[]")  # fmt: skip
    arguments = small_sweep(write_tree(folder / "tree", ("fan", "pump")), run, *more)
    arguments[arguments.index("local")] = executor
    samples: list[Sample] = []
    began = time.monotonic()
    with (folder / "output").open("w") as output:
        driver = subprocess.Popen(
            command_line(*arguments), env=environment(folder / "cache"), stdout=output, stderr=subprocess.STDOUT
        )
        while driver.poll() is None:
            if _driving(run):
                samples.append(sample(driver.pid, time.monotonic() - began))
            time.sleep(_LOOK_SECONDS)
    problems = [] if driver.returncode == 0 else [f"exit code {driver.returncode}: {(folder / 'output').read_text()}"]
    return samples, problems + _missing_events(run, num_units) + growth(samples, num_units)


def _driving(run: Path) -> bool:
    """Whether units run: the report needs what it needs."""
    events = run / "events.jsonl"
    last = events.read_text().splitlines()[-1:] if events.exists() else []
    return bool(last) and "sweep" not in json.loads(last[0])["event"]


def sample(pid: int, seconds: float) -> Sample:
    process = Path(f"/proc/{pid}")
    pages = int((process / "statm").read_text().split()[1])
    descriptors, threads = (len(list((process / name).iterdir())) for name in ("fd", "task"))
    return Sample(seconds, pages * 4096, descriptors, threads)


def _missing_events(run: Path, num_units: int) -> list[str]:
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    counts = Counter(event["event"] for event in events)
    expected = {"sweep started": 1, "unit started": num_units, "unit done": num_units, "sweep ended": 1}
    wrong = [
        f"{counts[name]} events '{name}', not {count}" for name, count in expected.items() if counts[name] != count
    ]
    started, done = ([e["unit"] for e in events if e["event"] == f"unit {what}"] for what in ("started", "done"))
    if sorted(started) != sorted(done) or len(set(done)) != num_units:
        wrong.append("not every unit was started and done once")
    return wrong


def growth(samples: list[Sample], num_units: int) -> list[str]:
    early, late = samples[len(samples) // 5 : len(samples) * 2 // 5], samples[len(samples) * 4 // 5 :]
    found = []
    more = median(s.descriptors for s in late) - median(s.descriptors for s in early)
    if more > _MOST_DESCRIPTORS:
        found.append(f"{more:g} more open files at the end")
    more = median(s.resident for s in late) - median(s.resident for s in early)
    if more > max(_MOST_MEMORY[0], _MOST_MEMORY[1] * num_units):
        found.append(f"{more / 1e6:.0f} MB more at the end")
    return found


def main() -> int:
    """Soak, and say what was held."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--units", type=int, default=5000)
    parser.add_argument("--executor", default="ray", choices=["ray", "local"])
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rayasd-soak-") as folder:
        samples, problems = soak(Path(folder), chosen.units, chosen.executor)
    seconds = samples[-1].seconds - samples[0].seconds
    print(f"{chosen.units} units by {chosen.executor} in {seconds:.0f} s, {chosen.units / seconds:.2f} a second")
    for share in (0.1, 0.25, 0.5, 0.75, 1.0):
        at = samples[min(len(samples) - 1, int(share * len(samples)))]
        print(
            f"after {at.seconds:6.0f} s: {at.resident / 1e6:5.0f} MB, {at.descriptors} open files, {at.threads} threads"
        )
    print("\n".join(problems) or "nothing grew, every event is there")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
