"""What ``rayasd data fetch`` does, once its imports are paid for."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import TransferSpeedColumn as SpeedColumn
from rich.text import Text

from rayasd.cli.display import wide_console
from rayasd.cli.options import choose
from rayasd.data.downloading import OnProgress, checked_base
from rayasd.data.fetch import fetch, missing_bytes
from rayasd.data.zenodo import RECORDS, ZENODO, list_archives
from rayasd.errors import UserError, unknown
from rayasd.sweep.lock import locked
from rayasd.wording import counted, size

_REDRAW_BYTES = 1 << 20


def fetch_data(
    dataset: str, out: Path, machines: str, parts: str, url_base: str | None, num_jobs: int, keep_archives: bool
) -> None:
    """Fetch a data set, or what is missing of it, and say what to do next."""
    console = wide_console()
    if dataset not in RECORDS:
        raise unknown("data set", dataset, RECORDS)
    base = checked_base(url_base) if url_base is not None else None
    archives = list_archives(dataset, choose("part", parts, list(RECORDS[dataset])), base)
    of_machines = sorted({archive.machine for archive in archives if archive.machine is not None})
    if machines != "all" and not of_machines:
        raise UserError("the ground truth is one archive of all machines: leave --machines out, or add --parts eval")
    chosen = choose("machine", machines, of_machines)
    archives = [archive for archive in archives if archive.machine is None or archive.machine in chosen]
    out.mkdir(parents=True, exist_ok=True)
    with locked(out / ".fetch.lock"):
        to_fetch = size(missing_bytes(dataset, archives, out))
        plan = f"{dataset}: {counted(len(archives), 'archive')}, {to_fetch} to fetch from {base or ZENODO}"
        console.print(Text(plan), soft_wrap=True)
        with _bars(console) as on_progress:
            done = fetch(
                dataset, archives, out, num_jobs=num_jobs, keep_archives=keep_archives, on_progress=on_progress
            )
    said = f"{counted(done.num_new, 'archive')} unpacked in {out}, {done.num_there} there already"
    console.print(Text(f"{said}: rayasd data check {out}"), soft_wrap=True)


@contextmanager
def _bars(console: Console) -> Iterator[OnProgress]:
    """Show a bar for each archive that is being brought; outside a terminal, a line for each that is done."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), SpeedColumn(), TimeRemainingColumn())
    tasks: dict[str, tuple[str, TaskID]] = {}
    shown: dict[str, int] = {}
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:

        def update(name: str, what: str, done: int, total: int) -> None:
            before, task = tasks.get(name, (None, None))
            if task is not None and what != before:
                bars.remove_task(task)
            if what == "done":
                console.print(Text(f"done     {name}, {size(total)}"), soft_wrap=True)
            elif task is None or what != before:
                tasks[name] = what, bars.add_task(escape(f"{what} {name}"), total=total, completed=done)
            elif done == total or abs(done - shown.get(name, 0)) >= _REDRAW_BYTES:
                bars.update(task, completed=done)
                shown[name] = done

        yield update
