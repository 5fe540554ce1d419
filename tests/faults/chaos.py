"""Kill a sweep again and again, at random and in the middle of its writes, and see that it ends as an undisturbed one.

``python -m tests.faults.chaos --kills 100 --seed 0 --executor local``; exit code 1 if anything differs or is left over.
``--storm`` kills faster: workers mostly, one or two seconds apart, wherever they are.
"""

import argparse
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rayasd.errors import EXIT_INTERRUPTED
from tests.command import command_line, environment
from tests.conftest import run_locally, small_sweep, write_tree
from tests.faults.eio import failing, library
from tests.faults.results import results_of
from tests.faults.victims import DAEMONS, STAGES, Process, Processes, writer_of

MORE = (
    "--set", "exposure.epochs=6", "--set", "evaluation.ensembles=seeds,greedy", "--max-tries", "1000",
)  # fmt: skip
PLANS = (("--variants", "both"), ("--variants", "both,statistics", "--seeds", "0,1"))
"""A run that grows, so that there are files to be replaced as well as to be written."""
STORM_PLANS = (("--variants", "both,statistics", "--seeds", "0-3"),)
MOMENTS = ("random", "unit writes", "driver writes", "file stands")
REPORT = "report writes"
KILLS_A_RUN = {False: 24, True: 70}
"""Then it is left to end; by whether it is a storm."""
ENDS = {
    "local": {-signal.SIGKILL},
    "ray": {-signal.SIGKILL, EXIT_INTERRUPTED},
    "mpi": {-signal.SIGKILL, 128 + signal.SIGKILL, EXIT_INTERRUPTED},  # mpirun that has lost a rank
}
"""Exit codes after which the same command is run again."""
ENDED = {
    "local": "(?!)",
    "ray": "Failed to connect to GCS within|local raylet failed",
    "mpi": r"mpirun noticed .* signal 9",
}
"""What Ray or mpirun print where they end the driver with 1; another 1 is an error."""
DISK = r"look at its disk|Input/output error|I/O"
"""What a command prints that a failing disk has ended, with 1, 2 or 75."""
RARE = {"local": 0.06, "ray": 0.04, "mpi": 0.06}
"""How many of a storm's kills go to the driver or to a daemon."""
MPIRUN = ("mpirun", "--allow-run-as-root", "--oversubscribe", "-np", "3")
_STANDING = (
    "DONE", "_DONE", "model.safetensors", "state.pt", "progress.json", "lock.json", "manifest.json", "events.jsonl",
    "ray-token", "cells.parquet", "leaderboard.parquet",
)  # fmt: skip
_LOOK_SECONDS = 0.001
_PAUSE_SECONDS = 4.0  # at most, before the next moment is waited for
_PATIENCE_SECONDS = {"local": 4.0, "ray": 20.0, "mpi": 10.0}  # for a moment that may not come any more
_END_SECONDS = 80.0  # the kernel and Ray end what lost its driver; an agent that was starting asks a dead GCS for 60 s


@dataclass
class Chaos:
    """Rounds of a sweep that is killed; each round is a run of its own, with a waveform cache of its own."""

    folder: Path
    tree: Path
    expected: dict[str, bytes]
    executor: str = "local"
    seed: int = 0
    storm: bool = False
    eio: int = 0
    """One of so many calls on files of run, data and cache ends with EIO, as long as there are kills; 0: none."""
    kills: Counter[str] = field(default_factory=Counter)
    """By victim and moment."""
    codes: Counter[str] = field(default_factory=Counter)
    restarts: int = 0
    rounds: int = 0
    faults: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.failing = failing(library(self.folder), self.folder, self.eio) if self.eio else {}

    def run(self, num_kills: int, minutes: float = math.inf) -> None:
        """Do rounds until so many kills have been done or so much time is over, and the last round to its end."""
        until = time.monotonic() + 60 * minutes
        while (left := num_kills - self.kills.total()) > 0 and time.monotonic() < until:
            self.rounds += 1
            self._round(min(left, KILLS_A_RUN[self.storm]))
            print(f"round {self.rounds}: {self.kills.total()} kills, {self.restarts} restarts so far", flush=True)

    def _round(self, num_kills: int) -> None:
        run, cache = self.folder / f"run-{self.rounds}", self.folder / f"cache-{self.rounds}"
        seen = Processes(run)
        plans = STORM_PLANS if self.storm else PLANS
        for plan, part in zip(plans, (1 / 3, 1)[-len(plans) :], strict=True):
            of_plan = math.ceil(num_kills * part)
            until, num_kills = self.kills.total() + of_plan, num_kills - of_plan
            late = until - math.ceil(of_plan / 6)  # the last ones are kept for the report, which is written in the end
            while code := self._attempt(run, cache, plan, seen, late, until):
                output = (self.folder / "output").read_text(errors="replace")
                by_disk = bool(self.eio) and code in (1, 2, EXIT_INTERRUPTED) and re.search(DISK, output)
                if not (
                    code in ENDS[self.executor] or by_disk or (code == 1 and re.search(ENDED[self.executor], output))
                ):
                    self._fault(f"exit code {code}: {output[-2000:]}")
                    return
                self.restarts += 1
                self.codes[f"exit code {code}{' of the disk' * bool(by_disk)}"] += 1
        self._check(run, cache, seen)

    def _attempt(self, run: Path, cache: Path, plan: Iterable[str], seen: Processes, late: int, until: int) -> int:
        """Run the sweep's command once, with kills until there are so many; returns its exit code."""
        words = small_sweep(self.tree, run, *MORE, *plan)
        words[words.index("local")] = self.executor
        with (self.folder / "output").open("wb") as output:
            driver = subprocess.Popen(
                [*MPIRUN * (self.executor == "mpi"), *command_line(*words)],
                env=environment(cache, **self.failing if self.kills.total() < until else {}),
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            )  # fmt: skip
        try:
            while driver.poll() is None and self.kills.total() < until:
                moment = REPORT if self.kills.total() >= late else self.rng.choice(MOMENTS)
                come = self._strike(driver, seen) if self.storm else self._await(moment, driver, run, cache, seen)
                moment = "storm" if self.storm else moment
                for victim, kind in come:
                    seen.look(driver.pid)
                    if victim.kill():
                        self.kills[f"{kind}, {moment}"] += 1
                        break
            return seen.wait_for(driver)
        finally:
            if driver.poll() is None:
                driver.kill()
                driver.wait()

    def _await(
        self, moment: str, driver: "subprocess.Popen[bytes]", run: Path, cache: Path, seen: Processes
    ) -> Iterator[tuple[Process, str]]:
        """Wait for a moment and give whom to kill then, and what it is; nobody if it does not come."""
        pause = time.monotonic() + self.rng.uniform(0.05, _PAUSE_SECONDS) * (moment != REPORT)
        while time.monotonic() < pause and driver.poll() is None:
            time.sleep(0.02)
            seen.look(driver.pid, now_and_then=True)
        patience = _PATIENCE_SECONDS[self.executor]
        of_driver, stage = (Process.of(driver.pid), "driver"), self.rng.choice(list(STAGES.values()))
        if moment == "random":
            to_worker = self.rng.random() < 0.6
            until = time.monotonic() + patience
            while to_worker and not seen.units(driver.pid) and time.monotonic() < until and driver.poll() is None:
                time.sleep(0.02)
            units = seen.units(driver.pid) or seen.others(driver.pid)
            units = [(process, kind) for process, kind in units if kind == stage] or units
            yield self.rng.choice(units) if units and to_worker else of_driver
            return
        delay = self.rng.choice((0.0, 0.0, 0.002, 0.01))
        before, until = _names(run, cache), time.monotonic() + patience
        while (moment == REPORT or time.monotonic() < until) and driver.poll() is None:
            time.sleep(_LOOK_SECONDS)
            seen.look(driver.pid, now_and_then=True)
            names = _names(run, cache)
            new, before = {path for path, what in names.items() if before.get(path) != what}, names
            for path in sorted(new):
                of_unit = STAGES.get(path.relative_to(run).parts[0]) if run in path.parents else None
                if not _fits(path, moment, of_unit) or (moment == "unit writes" and of_unit != stage):
                    continue
                if moment != "unit writes" and self.rng.random() < 0.4:
                    continue  # not always the first
                time.sleep(delay)
                to_driver = not of_unit or (moment == "file stands" and self.rng.random() < 0.3)
                if victim := of_driver if to_driver else writer_of(path, seen, driver.pid):
                    yield victim

    def _strike(self, driver: "subprocess.Popen[bytes]", seen: Processes) -> Iterator[tuple[Process, str]]:
        """Wait a moment, now and then a long one, in which units get on; give whom to kill, and what it is."""
        until = time.monotonic() + (self.rng.uniform(3, 8) if self.rng.random() < 0.15 else self.rng.uniform(0.1, 1.5))
        while time.monotonic() < until and driver.poll() is None:
            time.sleep(0.05)
            seen.look(driver.pid, now_and_then=True)
        rare = self.rng.random() < RARE[self.executor]
        units, others = seen.units(driver.pid), seen.others(driver.pid)
        daemons = [other for other in others if other[1] in {*DAEMONS.values(), "MPI rank"}]
        if rare:
            yield self.rng.choice([(Process.of(driver.pid), "driver"), *daemons])
        elif victims := units if units and self.rng.random() < 0.7 else [v for v in others if v not in daemons]:
            kind = self.rng.choice(sorted({kind for _, kind in victims}))
            yield self.rng.choice([victim for victim in victims if victim[1] == kind])

    def _check(self, run: Path, cache: Path, seen: Processes) -> None:
        """Compare the run with the undisturbed one, and look for what is left over."""
        got = results_of(run)
        for name in sorted(got.keys() | self.expected.keys()):
            if got.get(name) != self.expected.get(name):
                what = (
                    "differs" if name in got and name in self.expected else "lacks" if name not in got else "is extra"
                )
                self._fault(f"{name} {what}")
        names = [path for path in run.rglob("*") if path.is_file()]
        for path in names:
            if path.suffix == ".part" or path.name.lstrip("_") in ("FAILED", "state.pt", "progress.json", "stop"):
                self._fault(f"left: {path.relative_to(run)}")
            if path.parent == run and path.name.startswith(("lock", "ray-token")):
                self._fault(f"left: {path.name}")
        for number, line in enumerate((run / "events.jsonl").read_bytes().splitlines()):
            try:
                json.loads(line)
            except ValueError:
                if line.count(b'{"time"') > 1:
                    self._fault(f"events.jsonl:{number + 1} is glued to a cut line")
        for process in seen.alive_after(_END_SECONDS):
            self._fault(f"still alive: {process} {process.command}")
            process.kill()
        self._check_gc(run, cache)

    def _check_gc(self, run: Path, cache: Path) -> None:
        """What is left in the cache goes by ``rayasd gc``, and what is needed stays."""
        kept = {path.name for path in cache.iterdir() if path.suffix in (".i16", ".parquet", ".features", ".TAG")}
        command = command_line("gc", run, "--cache", cache, "--older-than", "0", "--yes")
        done = subprocess.run(command, env=environment(cache), capture_output=True, text=True, check=False, timeout=120)
        if done.returncode:
            self._fault(f"rayasd gc: {done.stdout}{done.stderr}")
        left = {path.name for path in cache.iterdir()}
        if left != kept:
            self._fault(f"rayasd gc left {sorted(left)} of {sorted(kept)}")

    def _fault(self, text: str) -> None:
        self.faults.append(f"round {self.rounds}: {text}")
        print(self.faults[-1], flush=True)


def _fits(path: Path, moment: str, of_unit: str | None) -> bool:
    """Whether a file that has just come, of a unit's stage or of the driver, is what a moment waits for."""
    unfinished = path.suffix == ".part"
    if moment == REPORT:
        return path.name.strip("_.").startswith(("cells", "leaderboard")) or "ensembles" in path.parts
    if moment == "file stands":
        return not unfinished
    return unfinished and bool(of_unit) == (moment == "unit writes")


def undisturbed(folder: Path, tree: Path, plan: Iterable[str] = PLANS[-1]) -> dict[str, bytes]:
    """Sweep without a kill, within this process; returns its results."""
    return results_of(run_locally(tree, folder / "cache", folder / "undisturbed", *MORE, *plan))


def _names(run: Path, cache: Path) -> dict[Path, tuple[int, int]]:
    """List what lies in a run and a cache: inode and size of each file that tells of a write."""
    found: dict[Path, tuple[int, int]] = {}
    folders = [run, cache]
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(Path(entry.path))
                    elif entry.name.endswith(".part") or entry.name in _STANDING:
                        status = entry.stat(follow_symlinks=False)
                        size = status.st_size if entry.name == "events.jsonl" else 0
                        found[Path(entry.path)] = (status.st_ino, size)
        except OSError:
            continue  # gone meanwhile, or not there yet
    return found


def main() -> int:
    """Run from the command line; prints what was killed and what went wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=math.inf, help="No new run after these.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--executor", choices=list(ENDS), default="local")
    parser.add_argument("--storm", action="store_true", help="Kill faster, and wherever a process is.")
    parser.add_argument("--eio", type=int, default=0, help="One of so many calls ends with EIO.")
    parser.add_argument("--keep", action="store_true", help="Keep the folder of the runs.")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends the sweep with us
    began, folder = time.monotonic(), Path(tempfile.mkdtemp(prefix="rayasd-chaos-"))
    tree = write_tree(folder / "tree", ("fan", "pump"))
    expected = undisturbed(folder, tree, (STORM_PLANS if given.storm else PLANS)[-1])
    chaos = Chaos(folder, tree, expected, given.executor, given.seed, given.storm, given.eio)
    chaos.run(given.kills, given.minutes)
    for kind, count in sorted((chaos.kills + chaos.codes).items()):
        print(f"{count:5}  {kind}")
    print(f"{chaos.kills.total():5}  kills in {chaos.rounds} runs, {chaos.restarts} restarts")
    print(f"{time.monotonic() - began:.0f} s, {len(chaos.expected)} files compared a run, {len(chaos.faults)} faults")
    if given.keep or chaos.faults:
        print(f"kept: {folder}")
    else:
        shutil.rmtree(folder)
    return 1 if chaos.faults else 0


if __name__ == "__main__":
    sys.exit(main())
