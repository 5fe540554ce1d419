"""The rayasd command line in tests: within this process (no start-up, no imports), or as a process of its own."""

import io
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

from rayasd.cli.main import main
from rayasd.sweep.executors import Resources
from rayasd.sweep.worker import Outcome, do_unit
from rayasd.unit import Unit, UnitSpec

Done = subprocess.CompletedProcess[str]
Rayasd = Callable[..., Done]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM, signal.SIGUSR1)


class SameProcess:
    """An executor without workers: does a unit in the process that waits for it, as plain processes would."""

    nodes: Sequence[Resources] = (Resources(2),)

    def __init__(self) -> None:
        self._queue: deque[UnitSpec] = deque()

    def describe(self) -> list[str]:
        return [f"this host, {self.nodes[0]}"]

    def submit(self, spec: UnitSpec, resources: Resources) -> None:
        self._queue.append(spec)

    def wait(self, timeout: float) -> list[Outcome]:
        if not self._queue:
            time.sleep(timeout)
            return []
        return [do_unit(self._queue.popleft())]

    def cancel(self, unit: Unit) -> None:
        self._queue = deque(spec for spec in self._queue if spec.unit != unit)

    def close(self) -> None:
        self._queue.clear()


@contextmanager
def same_process(_: int) -> Iterator[SimpleNamespace]:
    """Give what maps as ``worker_pool`` does, without the seconds in which its processes import torch."""
    yield SimpleNamespace(map=map)


def command_line(*arguments: object) -> list[str]:
    """Words of a rayasd command."""
    return [sys.executable, "-m", "rayasd", *map(str, arguments)]


def environment(cache: Path, **variables: str) -> dict[str, str]:
    """Environment of a rayasd process in a test: no settings of the person who runs it."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAYASD_", "RAY_"))}
    return kept | {"RAYASD_CACHE": str(cache), "COLUMNS": "200", **variables}


def call(*arguments: object, cache: Path, folder: Path | None = None, given: str = "", **variables: str) -> Done:
    """Run a command within this process; units of ``--executor local`` run in it, too.

    Args:
        arguments: words after ``rayasd``.
        cache: of the waveforms.
        folder: where it runs; default where we are.
        given: its standard input.
        variables: of its environment.

    """
    out, err = io.StringIO(), io.StringIO()
    words = [str(word) for word in arguments]
    with (
        signals_kept(), _working_in(folder), _importing_from(variables.get("PYTHONPATH")),
        redirect_stdout(out), redirect_stderr(err),
        mock.patch.dict(os.environ, environment(cache, **variables), clear=True),
        mock.patch.object(sys, "argv", ["rayasd", *words]), mock.patch.object(sys, "stdin", io.StringIO(given)),
        mock.patch("rayasd.study.driving.LocalExecutor", SameProcess),
        mock.patch("rayasd.sweep.checks.worker_pool", same_process),
    ):  # fmt: skip
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
    return Done(words, code, out.getvalue(), err.getvalue())


def call_process(
    *arguments: object, cache: Path, folder: Path | None = None, timeout: float = 240, **variables: str
) -> Done:
    """Run a command in a process of its own: for what only a process shows (signals, imports, start-up, workers)."""
    return subprocess.run(
        command_line(*arguments), cwd=folder, env=environment(cache, **variables), timeout=timeout,
        capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip


@contextmanager
def signals_kept() -> Iterator[None]:
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    left, began = signal.setitimer(signal.ITIMER_REAL, 0)[0], time.monotonic()  # pytest's own time limit
    try:
        yield
    finally:
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(1.0, left - (time.monotonic() - began)))
        else:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def _importing_from(folder: str | None) -> Iterator[None]:
    """Import from a folder, and forget afterwards what came from there: another folder may hold the same names."""
    if folder is None:
        yield
        return
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
        for name, module in list(sys.modules.items()):
            if (getattr(module, "__file__", None) or "").startswith(f"{folder}{os.sep}"):
                del sys.modules[name]


@contextmanager
def _working_in(folder: Path | None) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder or before)
    try:
        yield
    finally:
        os.chdir(before)
