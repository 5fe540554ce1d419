"""``rayasd doctor``: what could stop a sweep on this node."""

import os
from pathlib import Path

import click

from rayasd.cli.options import CACHE, FOLDER, PATH, TEMP_DIR, output_format
from rayasd.printing import tell


@click.command()
@click.option("--run-dir", type=FOLDER, default=Path("runs/default"),
              show_default=True, help="Folder for results; does not need to exist.")  # fmt: skip
@click.option("--data", "source", type=PATH, help="Recordings that must be readable; default $RAYASD_DATA.")
@CACHE
@TEMP_DIR
@output_format("table", "json")
def doctor(run_dir: Path, source: Path | None, cache: Path | None, temp_root: Path, form: str) -> None:
    """Check this node for what could stop a sweep.

    Checks CPUs, GPUs, the placement from Slurm or MPI, and folders: space, file system, locks, length of the temporary
    path. Exit code 1 if anything is bad. It leaves no files. Use pip check for packages.

    \b
        rayasd doctor --run-dir /scratch/runs/night --data /scratch/dcase
        srun --ntasks-per-node=1 rayasd doctor --format json
    """
    import json

    from rich.text import Text

    from rayasd import __version__
    from rayasd.cli.display import plain_table, wide_console
    from rayasd.cluster.doctor import examine
    from rayasd.study.choices import cache_folder
    from rayasd.wording import counted

    if source is None and "RAYASD_DATA" in os.environ:
        source = Path(os.environ["RAYASD_DATA"])
    findings = examine(os.environ, run_dir=run_dir, cache=cache_folder(cache), data=source, temp_root=temp_root)
    bad, notes = (sum(finding.severity == state for finding in findings) for state in ("bad", "note"))
    host = os.uname().nodename
    if form == "json":
        listed = [vars(finding) for finding in findings]
        tell(json.dumps({"host": host, "rayasd": __version__, "bad": bad, "notes": notes, "findings": listed},
                              indent=2, ensure_ascii=False))  # fmt: skip
    else:
        table = plain_table((host, "", f"rayasd {__version__}"), overflow="fold")
        table.columns[0].no_wrap = table.columns[1].no_wrap = True
        styles = {"ok": "green", "note": "yellow", "bad": "red"}
        for finding in findings:
            severity = Text(finding.severity, style=styles[finding.severity])
            table.add_row(Text(finding.check), severity, Text(finding.detail))
        console = wide_console()
        console.print(table)
        console.print(f"{bad} bad, {counted(notes, 'note')}", style="red" if bad else "", highlight=False)
    raise SystemExit(1 if bad else 0)
