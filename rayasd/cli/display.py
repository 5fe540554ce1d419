"""Tables, bars and consoles of the command line."""

import os
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rayasd.console import SafeConsole
from rayasd.sweep.states import State, Sweep
from rayasd.unit import Unit
from rayasd.wording import counted, elapsed

_SHOWN_REASONS = 10


def plain_table(titles: Iterable[str], right: Collection[str] = (), *, header: str = "dim", **column: Any) -> Table:
    """Make a table without lines; titles in ``right`` are those of numbers."""
    table = Table(box=None, pad_edge=False, header_style=header)
    for title in titles:
        table.add_column(title, justify="right" if title in right else "left", **column)
    return table


def counts(sweep: Sweep) -> str:
    """Return how many units are in each state."""
    return ", ".join(f"{sweep.count(state)} {state.value}" for state in State if sweep.count(state))


def running_table(progress: Mapping[Unit, Mapping[str, Any]]) -> Table:
    """Lay out running units, one a row."""
    numbers = ("seed", "done", "loss", "clips/s", "left")
    table = plain_table(("stage", "machine", "variant", "seed", "", *numbers[1:], "host"), numbers)
    for unit, state in progress.items():
        done, total = state.get("done", 0), state.get("total", 0)
        loss, rate = state.get("loss"), state.get("clips_per_second", 0.0)
        left = state.get("seconds_left")
        table.add_row(
            unit.stage, Text(unit.machine), Text(unit.variant), str(unit.seed),
            ProgressBar(total=max(total, 1), completed=done, width=20), f"{done}/{total}" if total else "loading",
            "" if loss is None else f"{loss:.4f}", f"{rate:.0f}" if rate else "",
            "" if left is None else elapsed(left), Text(state.get("host", "")),
        )  # fmt: skip
    return table


@contextmanager
def clip_progress(console: Console, what: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar of clips done."""
    shown = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("clips"),
        TimeRemainingColumn(),
    )
    with Progress(*shown, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def print_failures(console: Console, sweep: Sweep, asked: Collection[Unit]) -> None:
    """List what failed of the units asked for, and what could not be done because of it."""
    failed = [unit for unit in sweep.units(State.FAILED) if unit in asked]
    blocked = [unit for unit in sweep.units(State.BLOCKED) if unit in asked]
    if not failed and not blocked:
        return
    console.print(f"{counted(len(failed), 'unit')} failed, {len(blocked)} blocked by them", highlight=False)
    table = plain_table(["unit", "reason"])
    table.columns[0].no_wrap = True
    for unit in failed or blocked:
        table.add_row(Text(str(unit)), Text(sweep.reasons[unit], style="red"))
    console.print(table)
    if sweep.lacking:
        console.print("These units are not marked as failed: the same command does them.", highlight=False)
    elif failed:
        console.print("Each unit's FAILED file has the traceback; --retry-failed tries again.", highlight=False)


def print_failed_cells(console: Console, cells: pa.Table) -> int:
    """Print which detectors could not be fitted and why; returns the number of failed cells."""
    failed = cells.filter(pc.field("status") == "failed")
    cells_of = ("variant", "seed", "machine", "section", "domain", "detector", "reason")
    once = failed.group_by(cells_of).aggregate([])  # a cell fails under all poolings alike
    reasons = Counter(zip(once["detector"].to_pylist(), once["reason"].to_pylist(), strict=True))
    for (detector, reason), count in reasons.most_common(_SHOWN_REASONS):
        console.print(Text(f"{counted(count, 'cell')} without {detector}: {reason}", style="yellow"), soft_wrap=True)
    return int(once.num_rows)


def wide_console() -> Console:
    """Console of the terminal's width; 200 columns where there is no terminal that could be too narrow."""
    piped = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    by_mpi = any(name in os.environ for name in ("OMPI_COMM_WORLD_RANK", "PMI_RANK"))  # mpirun's terminal is a log
    return SafeConsole(width=200 if piped else None, force_terminal=False if by_mpi else None)
