"""Callbacks of a running study."""

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, nullcontext

from rayasd.report.run_report import RunReport
from rayasd.sweep.executors import Reported
from rayasd.sweep.states import Sweep
from rayasd.sweep.store import RunStore
from rayasd.unit import Unit


class Watcher:
    """Methods that a study calls; each does nothing here. What one raises ends the run."""

    interval: float = 15.0  # seconds between two calls of ``progressed``, at least

    def say(self, line: str) -> None:
        """Receive a line about what happens."""

    def warn(self, line: str) -> None:
        """Receive a line about something odd."""

    def busy(self, what: str) -> AbstractContextManager[object]:
        """Surround work that takes seconds and reports no progress."""
        return nullcontext()

    def decoding(self) -> AbstractContextManager[Callable[[int, int], None]]:
        """Surround the decoding of clips; the context's value gets the number of clips done, and of all."""
        return nullcontext(lambda done, total: None)

    def driving(self, store: RunStore) -> AbstractContextManager[None]:
        """Surround the time in which units run; entered once the executor has started."""
        return nullcontext()

    def changed(self, sweep: Sweep) -> None:
        """Receive the sweep, at least every half second while units run."""

    def progressed(self, sweep: Sweep, progress: Reported) -> None:
        """Receive how far running units are, from their progress files."""

    def ended(self, sweep: Sweep, asked: Collection[Unit]) -> None:
        """Receive the states of all units, once none of those asked for can continue."""

    def reported(self, report: RunReport, *, is_new: bool) -> None:
        """Receive the report: ``is_new`` if it is about to be written, else as it is on disk."""
