"""Processes that descend from a driver, by process id and start time: whom to kill, and who is still there."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from rayasd.files import read_record

_LOOK_SECONDS = 0.25
STAGES = {"models": "train", "embeddings": "embed", "scores": "detect"}
DAEMONS = {"/gcs_server": "Ray's gcs_server", "/raylet": "raylet", "ray::DashboardAgent": "Ray's agent",
           "ray::RuntimeEnvAgent": "Ray's agent", "/dashboard.py": "Ray's dashboard"}  # fmt: skip
"""Ray's own processes, by the end of their first words."""


@dataclass(frozen=True)
class Process:
    """A process, not to be taken for a later one of the same number."""

    pid: int
    started: str

    @classmethod
    def of(cls, pid: int) -> "Process":
        """Take the process that has this number now."""
        return cls(pid, _status(pid)[2])

    @property
    def alive(self) -> bool:
        """Whether it runs; one that has ended and is not yet waited for does not."""
        state, _, started = _status(self.pid)
        return started == self.started and state not in ("Z", "X", "")

    @property
    def command(self) -> str:
        """Its command line."""
        with suppress(OSError):
            return Path(f"/proc/{self.pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        return ""

    def kill(self) -> bool:
        """Kill it without a word; tells whether it was there."""
        if not self.alive:
            return False
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
            return True
        return False


@dataclass
class Processes:
    """All processes that descend from the drivers of a run, as they were seen."""

    run: Path
    seen: set[Process] = field(default_factory=set)
    looked: float = 0.0

    def look(self, driver: int, *, now_and_then: bool = False) -> list[Process]:
        """Remember the driver and its descendants, all of them or (``now_and_then``) if the last look is long ago."""
        if now_and_then and time.monotonic() - self.looked < _LOOK_SECONDS:
            return []
        self.looked = time.monotonic()
        found = [process for process in _family(driver) if process.started]
        self.seen.update(found)
        return found

    def units(self, driver: int) -> list[tuple[Process, str]]:
        """List the driver's processes that do units now, as their progress files say, with what they do."""
        family = {process.pid: process for process in self.look(driver)}
        found = []
        for tree, stage in STAGES.items():
            for path in (self.run / tree).rglob("*progress.json"):
                process = family.get(read_record(path).get("pid", 0))
                if process is not None and process.pid != driver:
                    found.append((process, stage))
        return found

    def others(self, driver: int) -> list[tuple[Process, str]]:
        """List the driver's other workers: idle, starting, or checking extractors."""
        busy = {process for process, _ in self.units(driver)}
        kinds = [(process, _kind(process.command)) for process in self.look(driver) if process not in busy]
        return [(process, kind) for process, kind in kinds if kind and process.pid != driver]

    def wait_for(self, driver: "subprocess.Popen[bytes]") -> int:
        """Wait until the driver has ended, and remember what it starts meanwhile; returns its exit code."""
        until = time.monotonic() + 400
        while driver.poll() is None:
            assert time.monotonic() < until, "the sweep does not end"
            self.look(driver.pid)
            time.sleep(0.05)
        return driver.returncode

    def alive_after(self, seconds: float) -> list[Process]:
        """Wait until all have ended, so long at most; returns those that have not."""
        until = time.monotonic() + seconds
        while (left := [process for process in self.seen if process.alive]) and time.monotonic() < until:
            time.sleep(0.1)
        return left


def writer_of(path: Path, processes: Processes, driver: int) -> tuple[Process, str] | None:
    """Find the driver's process that writes in a unit's folder: whose progress lies there, or who has the file open."""
    stage = STAGES[path.relative_to(processes.run).parts[0]]
    unit = next((folder for folder in path.parents if folder.name.startswith("seed=")), path.parent)
    for progress in unit.glob("*progress.json"):
        pid = read_record(progress).get("pid", 0)
        if pid in {process.pid for process in processes.look(driver)} - {driver}:
            return Process.of(pid), stage
    for process in processes.look(driver):
        with suppress(OSError):
            if any(entry.readlink() == path for entry in Path(f"/proc/{process.pid}/fd").iterdir()):
                return process, stage if process.pid != driver else "driver"
    return None


def _kind(command: str) -> str:
    words = command.split(" ")[:4]
    for end, kind in DAEMONS.items():
        if any(word.endswith(end) for word in words):
            return kind
    if "spawn_main" in command:
        return "idle or starting worker"
    if "-m rayasd sweep" in command:
        return "MPI rank"
    if command.startswith("ray::"):
        return "Ray actor" if "InlierModels" in command else "idle Ray worker"
    return ""


def _family(root: int) -> Iterator[Process]:
    """Give a process and all that descend from it."""
    children: dict[int, list[Process]] = {}
    for entry in os.listdir("/proc"):  # noqa: PTH208 - a hundred times a second
        if entry.isdecimal():
            _, parent, started = _status(int(entry))
            children.setdefault(parent, []).append(Process(int(entry), started))
    line = [Process.of(root)]
    while line:
        process = line.pop()
        yield process
        line += children.get(process.pid, [])


def _status(pid: int) -> tuple[str, int, str]:
    """State, parent and start time of a process; empty when there is none."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "", 0, ""
    return words[0], int(words[1]), words[19]
