"""``rayasd export``: results in the form that others ask for."""

from pathlib import Path
from typing import Any

import click

from rayasd.cli.options import RUN


@click.group()
def export() -> None:
    """Write results in the form that others ask for."""


@export.command()
@RUN
@click.option("--system-label", "label", required=True, metavar="LABEL", help="Lastname_Institute_task2_1")
@click.option("--entry", help="Entry of the leaderboard: both, both+seeds …; default: the first in rank.")
@click.option(
    "--seed", type=int, help="Which of its seeds, where the entry is no ensemble of them; default: the lowest."
)
@click.option("--name", default="Outlier exposure and inlier modelling", show_default=True, help="Of the system.")
@click.option("--abbreviation", default="rayasd", show_default=True, help="Of the system, at most 10 characters.")
@click.option("--author", "authors", multiple=True, metavar="LAST,FIRST,EMAIL,INSTITUTE",
              help="Once an author, the corresponding one first.")  # fmt: skip
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Other rules: evaluation.false_alarm_rate=0.05"
)
@click.option("-o", "--out", type=click.Path(path_type=Path, file_okay=False), help="Default RUN/submission/LABEL.")
def dcase(run: Path, overrides: tuple[str, ...], **options: Any) -> None:
    """Write RUN's scores and decisions as official CSV files.

    With them goes the description of the system, as YAML.

    \b
        rayasd export dcase runs/first --system-label Doe_Lab_task2_1
        rayasd export dcase runs/first --system-label Doe_Lab_task2_2 --entry both+seeds \\
            --author Doe,Jo,jo@lab.org,Lab
    """
    from rich.text import Text

    from rayasd.cli.display import wide_console
    from rayasd.report.dcase import write_submission
    from rayasd.study.study import Study

    written, *notes = write_submission(Study.open(run).report().by_settings(overrides), **options)
    wide_console().print(Text(written), soft_wrap=True)
    for note in notes:
        wide_console().print(note, style="yellow")
