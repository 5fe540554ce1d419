"""Time two ways to the same result in turn, on a machine that others may use: what counts is their ratio."""

import os
import platform
import resource
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rayasd.host import end_with_parent, package_versions, worker_pool


@dataclass(frozen=True)
class Figure:
    part: str
    what: str
    ours: float
    unit: str
    """A speed (…/s), where more is better, or a time (s) or size (MB), where less is."""
    compared_with: str = ""
    other: float | None = None
    wanted: float | None = None
    """Ratio."""
    note: str = ""
    floor: float | None = None
    """What counted bytes and operations would allow on this machine."""

    @property
    def ratio(self) -> float | None:
        """How many times better ours is."""
        if self.other is None:
            return None
        return self.ours / self.other if self.unit.endswith("/s") else self.other / self.ours


def in_turn(*ways: Callable[[], object], repeat: int = 3) -> list[float]:
    """Run each way ``repeat`` times, in turn; returns the median seconds of each."""
    seconds: list[list[float]] = [[] for _ in ways]
    for _ in range(repeat):
        for way, taken in zip(ways, seconds, strict=True):
            began = time.perf_counter()
            way()
            taken.append(time.perf_counter() - began)
    return [statistics.median(taken) for taken in seconds]


def alone(function: Callable[..., Any], *arguments: object) -> Any:
    """Call a function in a process of its own: what it does to threads and memory ends with it."""
    with worker_pool(1) as pool:
        return pool.submit(function, *arguments).result()


def apart(function: Callable[..., Any], *arguments: object) -> Any:
    """Call a function in a fork of this process, which has imported modules but has computed nothing yet.

    A fork of a process that has computed may wait for ever: its locks and its CUDA context belong to other threads.
    """
    with forks(1) as pool:
        return pool.submit(function, *arguments).result()


def forks(number: int) -> ProcessPoolExecutor:
    """Make a pool of forks of this process, under the condition of ``apart``; they end with this process."""
    return ProcessPoolExecutor(number, get_context("fork"), end_with_parent, (signal.SIGKILL,))


@dataclass(frozen=True)
class Usage:
    """What a command took, with all its processes."""

    minutes: float
    cpu_minutes: float
    peak_mb: float  # of the largest process, mapped recordings counted
    command_mb: float  # what the command holds alone, looked at twice a second; of a worker, the most
    worker_mb: float


def run_rayasd(words: Sequence[object], log: Path) -> Usage:
    """Run a command of rayasd; what it prints goes to the end of ``log``. Ends this process where it fails."""
    log.parent.mkdir(parents=True, exist_ok=True)
    began, most, ended = time.monotonic(), [0, 0], threading.Event()
    with log.open("a") as output:
        child = subprocess.Popen([sys.executable, "-m", "rayasd", *map(str, words)], stdout=output, stderr=output)

    def watch() -> None:
        while not ended.wait(0.5):
            most[0] = max(most[0], own(child.pid))
            most[1] = max([most[1], *map(own, below(child.pid))])

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, status, used = os.wait4(child.pid, 0)
    ended.set()
    watcher.join()
    if status:
        raise SystemExit(f"{words[0]} failed: {log} has its output")
    cpu_minutes = (used.ru_utime + used.ru_stime) / 60
    return Usage((time.monotonic() - began) / 60, cpu_minutes, used.ru_maxrss / 1024, most[0] / 1e6, most[1] / 1e6)


def below(process: int) -> list[int]:
    """List the processes that a process has started, and those that these have."""
    with suppress(OSError):
        started = [
            int(word) for path in Path(f"/proc/{process}/task").glob("*/children") for word in path.read_text().split()
        ]
        return [*started, *(each for child in started for each in below(child))]
    return []


def own(process: int) -> int:
    """Bytes that a process shares with no file; 0 if it has ended."""
    with suppress(OSError):
        pages = Path(f"/proc/{process}/statm").read_text().split()
        return (int(pages[1]) - int(pages[2])) * resource.getpagesize()
    return 0


def synchronise() -> None:
    """Wait until the GPU, if there is one, has done what it was given: before every reading of a clock."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def machine() -> dict[str, Any]:
    """Say where figures come from."""
    import torch

    names = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
             if line.startswith("model name")]  # fmt: skip
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "CPU": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "GPU": gpu,
        "Python": platform.python_version(),
        **package_versions(("torch", "numpy", "scikit-learn", "ray")),
    }
