"""A watch over a plant in which something goes wrong every 10 s: each clip is scored once, and as without faults.

``python -m tests.faults.plant --minutes 60 --seed 0``; exit code 1 if not. What it may do is in docs/scoring.md.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from rayasd.scoring import load
from tests.command import call, command_line, environment
from tests.conftest import RATE, run_locally, write_clip, write_tree
from tests.faults.eio import failing, library
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
_A_FOLDER = 30
"""Clips in a folder."""
LESS_POWER = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search")  # permissions hold for root, too
Version = tuple[str, int, int]
"""Name, size and time of change of a clip."""


def recalibrated(tree: Path, cache: Path, folder: Path) -> Path:
    """Pack a control's model that was recalibrated to 20 clips, which lie beside it in ``normal``."""
    run = run_locally(tree, cache, folder / "run", "--variants", "statistics", "--detectors", "knn-1")
    for n in range(20):
        write_clip(folder / f"normal/{n:02}.wav", 300.0 + n, seed=n)
    words = ("--machine", "fan", "--section", "00", "--normal", folder / "normal", "-o", folder / "fan.rayasd")
    done = call("recalibrate", run, *words, cache=cache)
    assert done.returncode == 0, done.stderr
    return folder / "fan.rayasd"


@dataclass
class Plant:
    """Clips that arrive, faults, and the watch over them."""

    folder: Path
    packed: Path
    cache: Path
    seed: int = 0
    quick: bool = False
    """Whether everything, the watch's pauses too, is ten times as fast."""
    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    """What the last watch held."""

    def __post_init__(self) -> None:
        self.rng, self.pace, self.number, self.runs = random.Random(self.seed), 0.1 if self.quick else 1.0, 0, 0
        self.incoming, self.out, self.pool = self.folder / "in", self.folder / "disk/scores.jsonl", self.folder / "pool"
        for folder in (self.incoming, self.out.parent, self.pool):
            folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "mode").touch()
        self.disk = Place(self.out.parent, "size=64m") if os.geteuid() == 0 else None
        self.eio, self.seen = library(self.folder), Processes(self.folder)
        self.was: dict[Version, str] = {}
        self.due: list[tuple[float, Callable[[], object]]] = []
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
        if code := self.watch.poll():
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

    # What arrives

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
        there = {(path.name, facts.st_size, facts.st_mtime_ns) for path in self.incoming.rglob("*.wav")
                 if path.stem.isdecimal() and (facts := path.stat())}  # fmt: skip
        return there - self.records().keys()

    def records(self) -> dict[Version, list[dict[str, Any]]]:
        """Read the results by version; and by path, since a clip in a folder that is renamed is scored again."""
        found: dict[Version, list[dict[str, Any]]] = defaultdict(list)
        lines = self.out.read_text().splitlines(keepends=True) if self.out.exists() else []
        for record in (json.loads(line) for line in lines if line.endswith("\n")):
            found[Path(record["clip"]).name, record["size"], record["mtime_ns"]].append(record)
        return found

    def check(self) -> None:
        """Compare the results with what the clips have without faults, and look for what is left over."""
        for version in self.missing():
            self._problem(f"no record: {version}, {self.was.get(version)}")
        alarms, told = set[tuple[str, float]](), Counter[tuple[str, str, float]]()
        for version, records in self.records().items():
            content = self.was.get(version)
            if content is None:
                self._problem(f"never there: {version}: {records[:2]}")
                continue
            of_path: dict[str, list[dict[str, Any]]] = defaultdict(list)
            for record in records:
                of_path[record["clip"]].append(record)
            for path, lines in of_path.items():
                scores = [line["score"] for line in lines if line["score"] is not None]
                if scores != pytest.approx(self.expected[content], abs=1e-5) or len(lines) != lines[0]["pieces"]:
                    self._problem(f"{path} {version}, {content}: {lines[:3]}")
                if not scores and not lines[0]["reason"]:
                    self._problem(f"{path} has neither score nor reason")
                alarms |= {(path, line["start"]) for line in lines if line["alarm"]}
                self.counts["records" if scores else "records with a reason"] += 1
        for line in (self.folder / "alarms").read_text().splitlines():
            run, _, text = line.partition(" ")
            if text:
                record = json.loads(text)
                told[run, f"{record['clip']} {record['mtime_ns']}", record["start"]] += 1
        for each, count in told.items():
            if count > 1:
                self._problem(f"told {count} times: {each}")
        self._problem_if({path for path, _ in alarms} - {each[1].rpartition(" ")[0] for each in told}, "alarm not told")
        self.counts |= Counter({"alarms": len(alarms), "alarms told": len(told), "clips": len(self.was)})
        for process in self.seen.alive_after(40 * self.pace):
            self._problem(f"still alive: {process} {process.command}")
            process.kill()
        self._problem_if(growth(self.samples, 0), "")

    def _problem_if(self, found: Any, what: str) -> None:
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
    plant = Plant(folder / "plant", recalibrated(tree, cache, folder), cache, given.seed, given.quick)
    plant.run(60 * given.minutes)
    for kind, count in plant.counts.items():
        print(f"{count:5}  {kind}")
    first, last = plant.samples[len(plant.samples) // 5], plant.samples[-1]
    print(f"the last watch: {first.resident / 1e6:.0f} MB, {first.descriptors} open files after "
          f"{first.seconds - plant.samples[0].seconds:.0f} s; {last.resident / 1e6:.0f} MB, {last.descriptors} after "
          f"{last.seconds - plant.samples[0].seconds:.0f} s; {len(plant.problems)} problems; {folder}")  # fmt: skip
    return bool(plant.problems)


if __name__ == "__main__":
    sys.exit(main())
