"""Output of a running sweep, a live table in a terminal and plain lines elsewhere; handling of signals."""

import shlex
import signal
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from threading import Event

import pyarrow.compute as pc
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from rayasd.cli.display import clip_progress, counts, print_failed_cells, print_failures, running_table
from rayasd.errors import EXIT_UNITS_FAILED
from rayasd.files import no_links, read_record
from rayasd.report.run_report import RunReport
from rayasd.report.terminal import print_report
from rayasd.study.execution import Execution
from rayasd.study.watcher import Watcher
from rayasd.sweep.executors import Reported
from rayasd.sweep.states import State, Sweep
from rayasd.sweep.store import RunStore
from rayasd.unit import Unit
from rayasd.wording import elapsed, near

_REDRAW_SECONDS = 0.5
_PLAIN_SECONDS = 15.0


class Screen(Watcher):
    """Prints what a study reports; turns signals into interruptions while units run."""

    def __init__(self, console: Console, grace: float = Execution.grace) -> None:
        self.console, self.grace = console, grace
        self.interval = _REDRAW_SECONDS if console.is_terminal else _PLAIN_SECONDS
        self.is_complete = True
        """Whether all units that were asked for are done."""
        self.report: RunReport | None = None
        """The last that was written, or that is current."""
        self._live: Live | None = None
        self._said: set[str] = set()

    def say(self, line: str, style: str = "") -> None:
        """Print a line."""
        is_log = not self.console.is_terminal  # one line there, however long
        self.console.print(Text(line, style=style), soft_wrap=is_log)

    def warn(self, line: str) -> None:
        """Print a line in yellow."""
        self.say(line, "yellow")

    def busy(self, what: str) -> AbstractContextManager[object]:
        """Show that something is at work."""
        return self.console.status(f"{what} …") if self.console.is_terminal else nullcontext()

    def decoding(self) -> AbstractContextManager[Callable[[int, int], None]]:
        """Show a bar."""
        return clip_progress(self.console, "decoding")

    @contextmanager
    def driving(self, store: RunStore) -> Iterator[None]:
        """Show running units, and listen to signals until this process ends."""
        self._paths, self._began, self._shown = store.paths, time.monotonic(), 0
        self._interrupted = note_interruptions(store.stop_file, self.grace)  # after Ray's start, which sets its own
        if self.console.is_terminal:
            self._live = Live(console=self.console, auto_refresh=False, transient=True)
        try:
            with self._live or nullcontext():
                yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def changed(self, sweep: Sweep) -> None:
        """Print which units ended."""
        if self._interrupted.is_set():
            raise KeyboardInterrupt
        for unit, state in sweep.moves[self._shown :]:
            self._announce(sweep, unit, state)
        self._shown = len(sweep.moves)

    def progressed(self, sweep: Sweep, progress: Reported) -> None:
        """Draw running units, or print a summary where there is no terminal."""
        for reported in progress.values():
            self._say_once(reported.get("notes", ()))
        summary = f"{elapsed(time.monotonic() - self._began)}  {counts(sweep)}"
        if self._live:
            self._live.update(Group(running_table(progress), Text(summary, style="bold")), refresh=True)
        else:
            self.say(summary)

    def ended(self, sweep: Sweep, asked: Collection[Unit]) -> None:
        """Print what failed."""
        self.is_complete = all(sweep.states[unit] is State.DONE for unit in asked)
        print_failures(self.console, sweep, asked)

    def reported(self, report: RunReport, *, is_new: bool) -> None:
        """Print a new leaderboard."""
        self.report = report
        if is_new:
            print_report(self.console, report)

    def exit_code(self, sweep: Sweep) -> int:
        """Print why cells failed and what to do next.

        The code is 1 if units failed, or a ranked system lacks cells because of it.
        """
        lacking = False
        if self.report is not None and print_failed_cells(self.console, self.report.cells):
            lacking = any(row["cells_ok"] < row["cells_expected"] for row in self.report.entries().values())
        if self.report is not None:
            self._print_next(self.report)
        return EXIT_UNITS_FAILED if lacking or sweep.damaged or not self.is_complete else 0

    def _print_next(self, report: RunReport) -> None:
        root = report.store.paths.root
        run = shlex.quote(str(near(root)))
        machine = min(unit.machine for unit in report.units)
        section = min(report.catalog.table.filter(pc.field("machine") == machine)["section"].to_pylist())
        of = f"--machine {shlex.quote(machine)} --section {shlex.quote(section)}"
        self.say(f"next:    rayasd report {run} --by-section    # AUC and false alarms by section")
        self.say(f"         rayasd score {run} {of} CLIP    # new clips")

    def _announce(self, sweep: Sweep, unit: Unit, state: State) -> None:
        if state is State.DONE:
            marker = read_record(self._paths.marker(unit, "DONE"))
            self._say_once(marker.get("notes", ()))
            if not self._live:
                self.say(f"done     {unit}, {marker.get('seconds', 0):.1f} s")
        elif state is State.FAILED:
            self.say(f"failed   {unit}: {sweep.reasons[unit]}", "red")

    def _say_once(self, notes: Iterable[str]) -> None:
        for note in notes:
            device, closed, rest = note.partition("), ")  # arithmetic and weights may differ between networks
            own = note.startswith("windows  ")  # has its label already
            for label, line in (("" if own else "device   ", device + closed[:1]), ("network  ", rest)):
                if not any(said.startswith(line) for said in self._said):
                    self._said.add(line)
                    self.say(label + line, "dim")


def note_interruptions(stop_file: Path, grace: float) -> Event:
    """Remember Ctrl-C and SIGTERM besides raising them: raised within a callback of Ray's, Python only prints them.

    SIGUSR1, which a batch system sends when the time limit is near, asks the run to stop, and interrupts it ``grace``
    seconds later if units have not ended by then.
    """
    interrupted = Event()

    def interrupt(*_: object) -> None:
        interrupted.set()
        raise KeyboardInterrupt

    def stop(*_: object) -> None:
        open(stop_file, "a", opener=no_links).close()
        signal.setitimer(signal.ITIMER_REAL, grace)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, interrupt)
    signal.signal(signal.SIGUSR1, stop)
    return interrupted
