"""``rayasd export``: results in the form that others ask for."""

from pathlib import Path
from typing import Any

import click

from rayasd.cli.options import RUN
from rayasd.cli.score import choose_extractor, chosen


@click.group()
def export() -> None:
    """Write results in the form that others ask for."""


@export.command()
@RUN
@click.option("--system-label", "label", required=True, metavar="LABEL", help="Lastname_Institute_task2_1")
@click.option("--variant", help="Entry of the leaderboard: both, both+seeds …; default: the first in rank.")
@click.option(
    "--seed", type=int, help="Which of its seeds, where the entry is no ensemble of them; default: the lowest."
)
@click.option("--name", default="Outlier exposure and inlier modelling", show_default=True, help="Of the system.")
@click.option("--abbreviation", default="rayasd", show_default=True, help="Of the system, at most 10 characters.")
@click.option("--author", "authors", multiple=True, metavar="LAST,FIRST,EMAIL,INSTITUTE",
              help="Once an author, the corresponding one first.")  # fmt: skip
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Other rules: evaluation.threshold_percentile=95"
)
@click.option("-o", "--out", type=click.Path(path_type=Path, file_okay=False), help="Default RUN/submission/LABEL.")
def dcase(run: Path, **options: Any) -> None:
    """Write RUN's scores and decisions as official CSV files.

    With them goes the description of the system, as YAML.

    \b
        rayasd export dcase runs/first --system-label Doe_Lab_task2_1
        rayasd export dcase runs/first --system-label Doe_Lab_task2_2 --variant both+seeds \\
            --author Doe,Jo,jo@lab.org,Lab
    """
    from rayasd.cli.exporting import export_dcase

    export_dcase(run, **options)


@export.command()
@RUN
@choose_extractor
@click.option("--input", "given", type=click.Choice(["waveform", "mel"]), default="waveform", show_default=True,
              help="What the network is given: standardised windows, or their mel spectrograms.")  # fmt: skip
@click.option("-o", "--out", type=click.Path(path_type=Path, dir_okay=False), help="Default MACHINE.onnx")
def onnx(run: Path, **options: Any) -> None:
    """Write the extractor of one of RUN's machines as ONNX.

    It gives embedding, machine logit and product logits of windows.

    \b
        rayasd export onnx runs/first --machine fan -o fan.onnx
    """
    from rayasd.cli.exporting import export_extractor
    from rayasd.scoring.loading import Choice

    export_extractor(run, Choice(**chosen(options)), **options)
