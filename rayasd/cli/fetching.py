"""What ``rayasd data fetch`` does, once its imports are paid for."""

from pathlib import Path

from rich.markup import escape
from rich.progress import DownloadColumn, Progress, TransferSpeedColumn
from rich.text import Text

from rayasd.cli.display import wide_console
from rayasd.cli.options import choose
from rayasd.data.fetch import DataRoot
from rayasd.data.zenodo import RECORDS, list_archives
from rayasd.errors import UserError, unknown
from rayasd.sweep.lock import locked
from rayasd.wording import counted, size


def fetch_data(dataset: str, out: Path, machines: str, parts: str, keep_archives: bool) -> None:
    """Fetch a data set, or what is missing of it, and print what to do next."""
    console = wide_console()
    if dataset not in RECORDS:
        raise unknown("data set", dataset, RECORDS)
    archives = list_archives(dataset, choose("part", parts, list(RECORDS[dataset])))
    available = sorted({archive.machine for archive in archives if archive.machine is not None})
    if machines != "all" and not available:
        raise UserError("the ground truth is one archive of all machines: leave --machines out, or add --parts eval")
    chosen = choose("machine", machines, available)
    archives = [archive for archive in archives if archive.machine is None or archive.machine in chosen]
    out.mkdir(parents=True, exist_ok=True)
    with locked(out / ".fetch.lock"):
        root = DataRoot(dataset, out)
        missing = [archive for archive in archives if not root.has(archive)]
        to_download = size(sum(map(root.bytes_to_download, missing)))
        plan = f"{dataset}: {counted(len(missing), 'archive')} to fetch from Zenodo, {to_download}"
        console.print(Text(plan), soft_wrap=True)
        columns = *Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn()
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
            bar = bars.add_task("", total=None)

            def update(name: str, done: int, total: int) -> None:
                bars.update(bar, description=escape(name), completed=done, total=total)

            root.fetch(missing, keep_archives=keep_archives, on_progress=update)
    done = f"{counted(len(missing), 'archive')} unpacked in {out}, {len(archives) - len(missing)} there already"
    console.print(Text(f"{done}: rayasd data check {out}"), soft_wrap=True)
