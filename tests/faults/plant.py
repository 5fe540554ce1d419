"""A watch over a plant in which something goes wrong every 10 s: each clip is scored once, and as without faults.

``python -m tests.faults.plant --minutes 60 --seed 0``; exit code 1 if not. What it may do is in docs/scoring.md.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.command import command_line, environment
from tests.conftest import write_tree
from tests.faults.eio import failing, library
from tests.faults.incoming import Incoming, Version, recalibrated
from tests.faults.places import Place
from tests.faults.soak import Sample, growth, sample
from tests.faults.victims import Processes

FAULTS = ("kill", "half", "grows", "damaged", "replaced", "denied_file", "denied_folder", "removed", "renamed", "full",
          "alarm_fails", "alarm_hangs", "silence", "clock", "burst", "no_file")  # fmt: skip
"""Methods of ``Plant``. They come in a new order each time; EIO comes from a start, every other one."""
EIO_ONE_IN = (300, 0, 40, 0)
ON_ALARM = (
    'line=$(cat); printf "%s %s\\n" "$RUN" "$line" >> "$PLANT/alarms"; mode=$(cat "$PLANT/mode"); : > "$PLANT/mode"; '
    'case "$mode" in fails) exit 5;; hangs) sleep 1000;; esac'
)
QUICK = """
import sys
from rayasd.__main__ import console
from rayasd.scoring import arrivals, monitoring
arrivals._AGAIN_SECONDS = arrivals._QUIET_SECONDS = arrivals._PAUSE_SECONDS = 0.2
monitoring._COMMAND_SECONDS = 1.0
console()
"""
"""A watch that waits for less."""
LESS_POWER = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search")  # permissions hold for root, too


class Plant(Incoming):
    """Faults, and the watch over what arrives."""

    def __init__(self, folder: Path, packed: Path, cache: Path, seed: int = 0, *, quick: bool = False) -> None:
        """Prepare; ``quick``: everything is ten times as fast, the watch's pauses too."""
        super().__init__(folder, packed, seed)
        self.cache, self.quick, self.pace, self.runs = cache, quick, 0.1 if quick else 1.0, 0
        self.out = folder / "disk/scores.jsonl"
        self.out.parent.mkdir()
        (folder / "mode").touch()
        self.disk = Place(self.out.parent, "size=64m") if os.geteuid() == 0 else None
        self.eio, self.seen = library(folder), Processes(folder)
        self.due: list[tuple[float, Callable[[], object]]] = []
        self.counts: Counter[str] = Counter()
        self.problems: list[str] = []
        self.samples: list[Sample] = []  # what the last watch held

    def run(self, seconds: float) -> None:
        """Let clips arrive for so long, with a fault every 10 s; then wait until all are scored, and look."""
        self.start()
        began, next_fault, deck = time.monotonic(), 0.0, list[str]()
        while (now := time.monotonic() - began) < seconds:
            self.arrive()
            if now > next_fault:
                deck = deck or self.rng.sample(FAULTS, len(FAULTS))
                self.fault(deck.pop(), last=now > seconds / 2)
                next_fault += 10 * self.pace
            time.sleep(self.rng.uniform(0.2, 1.2) * self.pace)
            self._look()
        for _, undo in self.due:
            undo()
        self.due.clear()
        until = time.monotonic() + 600 * self.pace
        while self.missing() and time.monotonic() < until:
            time.sleep(self.pace)
            self._look()
        self.watch.send_signal(signal.SIGTERM)
        if code := self.watch.wait(60):
            self._problem(f"exit code {code} after SIGTERM")
        self.check()
        if self.disk:
            self.disk.detach()

    def fault(self, kind: str, *, last: bool) -> None:
        """Do a fault. In the ``last`` half nothing is killed, so that growth shows."""
        if kind == "kill" and last:
            return
        self.counts[kind] += 1
        getattr(self, kind)()

    def _look(self) -> None:
        """Undo what is due, and see what the watch holds."""
        now = time.monotonic()
        late = [undo for when, undo in self.due if when <= now]
        self.due = [each for each in self.due if each[0] > now]
        for undo in late:
            undo()
        if (code := self.watch.poll()) is not None:
            self._problem(f"the watch ended with exit code {code}")
            self.start()
        self.seen.look(self.watch.pid, now_and_then=True)
        if Path(f"/proc/{self.watch.pid}/statm").exists():
            self.samples.append(sample(self.watch.pid, now))

    def later(self, seconds: float, undo: Callable[[], object]) -> None:
        self.due.append((time.monotonic() + seconds * self.pace, undo))

    def start(self) -> None:
        """Start the watch."""
        one_in = EIO_ONE_IN[self.runs % len(EIO_ONE_IN)]
        self.counts["starts with EIO"] += one_in > 0
        self.runs += 1
        words = command_line("score", self.packed, "--section", "00", "--percentile", "100", "--watch", self.incoming,
                             "--out", self.out, "--on-alarm", ON_ALARM)  # fmt: skip
        words = [sys.executable, "-c", QUICK, *words[3:]] if self.quick else words
        variables = failing(self.eio, self.incoming, one_in) if one_in else {}
        variables |= {"RUN": str(self.runs), "PLANT": str(self.folder)}
        with (self.folder / "said").open("a") as said:
            self.watch = subprocess.Popen(
                [*LESS_POWER * (os.geteuid() == 0), *words], env=environment(self.cache, **variables), stderr=said
            )
        self.samples.clear()

    # What goes wrong

    def kill(self) -> None:
        time.sleep(self.rng.uniform(0, 2) * self.pace)
        self.seen.look(self.watch.pid)
        self.watch.kill()
        self.watch.wait()
        self.start()

    def half(self, pieces: int = 2) -> None:
        """Write a clip at its place: with pauses in which it does not change, or (``grows``) without."""
        path, content = self.path(), self.choose("normal")
        parts = np.array_split(np.frombuffer((self.pool / content).read_bytes(), np.uint8), pieces)
        file = path.open("wb", buffering=0)

        def write(number: int = 0) -> None:
            file.write(parts[number].tobytes())
            self.note(path, os.fstat(file.fileno()), content if number + 1 == pieces else "bad-half.wav")
            if number + 1 < pieces:
                self.later(5 if pieces == 2 else 1, lambda: write(number + 1))

        write()

    def grows(self) -> None:
        self.half(10)

    def damaged(self) -> None:
        self.arrive(self.choose("bad"))

    def replaced(self) -> None:
        """Put other clips in the place of new and of old ones."""
        clips = sorted(path for path in self.incoming.rglob("*.wav") if path.stem.isdecimal())
        for path in self.rng.sample(clips[-40:], min(5, len(clips))):
            self.arrive(onto=path)

    def denied_file(self) -> None:
        """Let a clip arrive without permission to read it: it has a reason, until it changes."""
        path, content = self.path(), self.choose("normal")
        part = path.with_name(f".{path.name}.part")
        shutil.copyfile(self.pool / content, part)
        part.chmod(0)
        file = os.open(part, os.O_RDONLY)
        self.note(path, os.fstat(file), "none")
        part.rename(path)

        def allow() -> None:
            os.utime(file)
            self.note(path, os.fstat(file), content)
            os.fchmod(file, 0o644)

        self.later(8, allow)

    def denied_folder(self) -> None:
        folder = self.old()
        file = os.open(folder, os.O_RDONLY)
        os.fchmod(file, self.rng.choice((0, 0o444)))
        self.later(8, lambda: os.fchmod(file, 0o755))

    def removed(self) -> None:
        shutil.rmtree(self.old())

    def renamed(self) -> None:
        folder = self.old()
        folder.rename(folder.with_name(f"{folder.name}x"))

    def full(self) -> None:
        if self.disk:
            filler = self.disk.fill(0)
            self.later(15, filler.unlink)

    def alarm_fails(self) -> None:
        (self.folder / "mode").write_text("fails")
        self.arrive(self.choose("fault"))

    def alarm_hangs(self) -> None:
        (self.folder / "mode").write_text("hangs")
        self.arrive(self.choose("fault"))

    def silence(self) -> None:
        self.arrive("silence.flac")

    def clock(self) -> None:
        """Let clips arrive with times of change that lie in the future, and at the beginning of time."""
        self.arrive(mtime=time.time() + 86400 + self.number)
        self.arrive(mtime=float(self.number))

    def burst(self) -> None:
        for _ in range(100):
            self.arrive()

    def no_file(self) -> None:
        """Let things arrive that have a clip's name and are none."""
        kind, path = self.rng.randrange(3), self.path()
        name = path.with_name(f"{path.stem}-none.wav")
        [name.mkdir, lambda: os.mkfifo(name), lambda: name.symlink_to(name)][kind]()
        self.note(name, name.lstat(), "none")

    # What must be

    def missing(self) -> set[Version]:
        """Versions of clips that are there and have no record."""
        there = {(str(path), facts.st_size, facts.st_mtime_ns) for path in self.incoming.rglob("*.wav")
                 if path.stem.isdecimal() and (facts := path.stat())}  # fmt: skip
        return there - self.records().keys()

    def records(self) -> dict[Version, list[dict[str, Any]]]:
        """Read the results."""
        found: dict[Version, list[dict[str, Any]]] = defaultdict(list)
        lines = self.out.read_text().splitlines(keepends=True) if self.out.exists() else []
        for record in (json.loads(line) for line in lines if line.endswith("\n")):
            found[record["clip"], record["size"], record["mtime_ns"]].append(record)
        return found

    def check(self) -> None:
        """Compare the results with what the clips have without faults, and look for what is left over."""
        for version in self.missing():
            self._problem(f"no record: {version}")
        alarms, told = set[tuple[Version, float]](), Counter[tuple[str, tuple[Version, float]]]()
        for (clip, *stamp), records in self.records().items():
            content = self.was.get((Path(clip).name, *stamp))
            scores = [record["score"] for record in records if record["score"] is not None]
            if content is None or scores != pytest.approx(self.expected[content], abs=1e-5):
                self._problem(f"{clip} was {content}: {len(records)} records, {records[:3]}")
            if not scores and not records[0]["reason"]:
                self._problem(f"{clip} has neither score nor reason")
            alarms |= {((clip, *stamp), record["start"]) for record in records if record["alarm"]}
            self.counts["records" if scores else "records with a reason"] += 1
        for line in (self.folder / "alarms").read_text().splitlines():
            run, _, text = line.partition(" ")
            if text:  # else the watch was killed before it could tell
                record = json.loads(text)
                told[run, ((record["clip"], record["size"], record["mtime_ns"]), record["start"])] += 1
        self._problems("alarm not told", alarms - {alarm for _, alarm in told})
        self._problems("told again without a kill", {each for each, count in told.items() if count > 1})
        again = len(told) - len({alarm for _, alarm in told})
        self.counts |= Counter({"alarms": len(alarms), "told again after a kill": again, "clips": len(self.was)})
        for process in self.seen.alive_after(40 * self.pace):
            self._problem(f"still alive: {process} {process.command}")
            process.kill()
        self._problems("", growth(self.samples, 0))

    def _problems(self, what: str, found: Iterable[object]) -> None:
        for each in found:
            self._problem(f"{what} {each}")

    def _problem(self, text: str) -> None:
        self.problems.append(text)
        print(text, flush=True)


def main() -> int:
    """Run from the command line; prints what was done and what went wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="Everything ten times as fast.")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="rayasd-plant-"))
    tree, cache = write_tree(folder / "tree", ("fan",)), folder / "cache"
    plant = Plant(folder / "plant", recalibrated(tree, cache, folder), cache, given.seed, quick=given.quick)
    plant.run(60 * given.minutes)
    for kind, count in plant.counts.items():
        print(f"{count:5}  {kind}")
    first, last = plant.samples[len(plant.samples) // 5], plant.samples[-1]
    print(f"the last watch: {first.resident / 1e6:.0f} MB, {first.descriptors} open files after "
          f"{first.seconds - plant.samples[0].seconds:.0f} s; {last.resident / 1e6:.0f} MB, {last.descriptors} after "
          f"{last.seconds - plant.samples[0].seconds:.0f} s; {len(plant.problems)} problems")  # fmt: skip
    if plant.problems:
        print(f"kept: {folder}")
    else:
        shutil.rmtree(folder)
    return bool(plant.problems)


if __name__ == "__main__":
    sys.exit(main())
