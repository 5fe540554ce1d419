"""``rayasd gc``: remove what killed processes left behind."""

from pathlib import Path

import click

from rayasd.cli.options import FOLDER
from rayasd.printing import tell


@click.command()
@click.argument("runs", nargs=-1, type=FOLDER)
@click.option("--cache", type=FOLDER, help="Waveform cache to search.")
@click.option("--temp-dir", "temp_root", type=FOLDER, help="Folder to search for temporary files of Ray.")
@click.option("--launches", "launch_root", type=FOLDER, help="Folder to search where launches were started.")
@click.option("--older-than", "hours", type=click.FloatRange(min=0), default=1.0, show_default=True, metavar="HOURS",
              help="Minimum age of files in the cache and temporary folders.")  # fmt: skip
@click.option("--unused-for", "unused_days", type=click.FloatRange(min=0), metavar="DAYS",
              help="With --cache: also decoded clips and features that were not used for this many days.")  # fmt: skip
@click.option("--yes", is_flag=True, help="Remove what is listed.")
def gc(
    runs: tuple[Path, ...], cache: Path | None, temp_root: Path | None, launch_root: Path | None, hours: float,
    unused_days: float | None, yes: bool,
) -> None:  # fmt: skip
    """List what killed processes left; --yes removes it.

    It searches only what you name: RUNS, --cache, --temp-dir and --launches. It finds unfinished files, locks, tokens
    and folders of processes that have ended, never results. docs/files.md has the list.

    \b
        rayasd gc runs/*
        rayasd gc runs/night --yes
        rayasd gc --cache ~/.cache/rayasd --unused-for 30 --yes
        rayasd gc --temp-dir /tmp
    """
    from rayasd.cluster import meeting
    from rayasd.cluster.folder import abandoned
    from rayasd.errors import UserError
    from rayasd.sweep import leftovers
    from rayasd.sweep.store import RunStore
    from rayasd.wording import counted, size

    if unused_days is not None and cache is None:
        raise UserError("--unused-for needs --cache DIR")
    if not runs and not any((cache, temp_root, launch_root)):
        raise UserError("name what to look at: runs, --cache DIR, --temp-dir DIR, --launches DIR")
    for folder in (temp_root, launch_root):
        if folder is not None and not folder.is_dir():
            raise UserError(f"no such folder: {folder}")
    stores = [RunStore(run) for run in runs]
    for store in stores:
        store.manifest()  # raises for what is no run, before anything is removed
    elsewhere = [] if cache is None else leftovers.of_cache(cache, hours, unused_days)
    elsewhere += [
        leftovers.Leftover(folder, num_bytes, "folder of a Ray of ours that is gone")
        for folder, num_bytes in ([] if temp_root is None else abandoned(temp_root, hours))
    ]
    elsewhere += [
        leftovers.Leftover(folder, 0, "meeting of a launch that is gone")
        for folder in ([] if launch_root is None else meeting.abandoned(launch_root, hours))
    ]
    found: list[leftovers.Leftover] = []
    errors: list[str] = []
    for store in stores:
        try:
            removed, failed = leftovers.clear_run(store, hours) if yes else (leftovers.of_run(store, hours), [])
        except UserError as error:
            tell(f"left alone: {error}")
        else:
            found, errors = found + removed, errors + failed
    removed, failed = leftovers.remove(elsewhere) if yes else (elsewhere, [])
    found, errors = found + removed, errors + failed
    for leftover in found:
        tell(f"{size(leftover.size):>8}  {leftover.path}  ({leftover.what})")
    total, verb = size(sum(leftover.size for leftover in found)), "removed" if yes else "would be removed by --yes"
    tell(f"{counted(len(found), 'leftover')}, {total} {verb}" if found else "nothing is left over")
    for why in errors:
        tell(f"error: {why}", err=True)
    raise SystemExit(1 if errors else 0)
