"""``rayasd gc``: remove what killed processes left behind."""

from pathlib import Path

import click

from rayasd.cli.options import CACHE, TEMP_DIR
from rayasd.printing import tell


@click.command()
@click.argument("runs", nargs=-1, type=click.Path(path_type=Path, file_okay=False))
@CACHE
@TEMP_DIR
@click.option("--older-than", "hours", type=click.FloatRange(min=0), default=1.0, show_default=True, metavar="HOURS",
              help="Only remove files of the cache and of Rays that are older than this.")  # fmt: skip
@click.option("--unused-for", "unused_days", type=click.FloatRange(min=0), metavar="DAYS",
              help="Also remove decoded waveforms and features that no unit has opened for so long.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="List what would be removed, and remove nothing.")
def gc(
    runs: tuple[Path, ...], cache: Path | None, temp_root: Path, hours: float, unused_days: float | None, dry_run: bool
) -> None:
    """Remove what killed processes left behind.

    In RUNS that nobody drives: unfinished files, locks and tokens. In the waveform cache: unfinished files, locks and
    halves. On this host: your folders of sweeps' and launches' own Rays whose processes are gone. Results are never
    touched.

    \b
        rayasd gc --dry-run runs/*
        rayasd gc runs/night --older-than 24
        rayasd gc --unused-for 30
    """
    from rayasd.cluster.folder import abandoned, root_of_own
    from rayasd.errors import UserError
    from rayasd.study.choices import cache_folder
    from rayasd.sweep import leftovers
    from rayasd.sweep.store import RunStore
    from rayasd.wording import counted, size

    stores = [RunStore(run) for run in runs]
    for store in stores:
        store.manifest()  # says so if it is none, before anything is removed
    found: list[leftovers.Leftover] = []
    errors: list[str] = []
    for store in stores:
        try:
            removed, failed = (leftovers.of_run(store, hours), []) if dry_run else leftovers.clear_run(store, hours)
        except UserError as error:
            tell(f"left alone: {error}")
        else:
            found, errors = found + removed, errors + failed
    roots = sorted({temp_root.absolute(), root_of_own()})
    elsewhere = [
        *leftovers.of_cache(cache_folder(cache), hours, unused_days),
        *(
            leftovers.Leftover(folder, num_bytes, "folder of a Ray of ours that is gone")
            for root in roots
            for folder, num_bytes in abandoned(root, hours)
        ),
    ]
    removed, failed = (elsewhere, []) if dry_run else leftovers.remove(elsewhere)
    found, errors = found + removed, errors + failed
    for leftover in found:
        tell(f"{size(leftover.size):>8}  {leftover.path}  ({leftover.what})")
    total, verb = size(sum(leftover.size for leftover in found)), "would be removed" if dry_run else "removed"
    tell(f"{counted(len(found), 'leftover')}, {total} {verb}" if found else "nothing is left over")
    for why in errors:
        tell(f"error: {why}", err=True)
    raise SystemExit(1 if errors else 0)
