"""``rayasd score`` and ``rayasd pack``: what a run has learned, used on new clips."""

from pathlib import Path
from typing import Any

import click

from rayasd.cli.options import DEVICE, RUN, output_format

_MODEL = [
    click.option("--machine", help="Of the run; may be left out where it has one alone."),
    click.option("--variant", help="Default: the run's first in rank."),
    click.option("--seed", type=int, help="Default: the lowest."),
    click.option("--detector", help="Default: what the run's report chose."),
    click.option("--pooling", help="Default: what the run's report chose."),
]


def choose_model(command: Any) -> Any:
    """Add the options that choose one machine's model of a run."""
    for option in reversed(_MODEL):
        command = option(command)
    return command


def chosen(options: dict[str, Any]) -> dict[str, Any]:
    """Take out of a command's options those that choose a model."""
    names = ("machine", "variant", "seed", "detector", "pooling")
    return {name: options.pop(name) for name in names if name in options}


@click.command()
@click.argument("words", nargs=-1, metavar="[RUN] CLIP|FOLDER|-…")
@click.option("--model", type=click.Path(path_type=Path, dir_okay=False), help="File of rayasd pack, instead of RUN.")
@choose_model
@click.option("--section", help="Which product; default: the nearest by the product head.")
@output_format("table", "csv", "jsonl", "parquet")
@click.option("-o", "--out", type=click.Path(path_type=Path, dir_okay=False), help="File; default: the terminal.")
@click.option("--watch", is_flag=True, help="Go on with what arrives in the folders, as JSON lines, until Ctrl-C.")
@DEVICE
@click.option("--trust", is_flag=True, help="Run code that a packed model names by import path.")
def score(words: tuple[str, ...], **options: Any) -> None:
    """Score new clips of one machine.

    Each gets a score, a decision, its percentile among normal training clips and its worst window. RUN is a run
    directory whose report stands. Folders are searched for audio files; - reads names from the input, one a line.
    Recordings longer than training clips are scored piece by piece.

    \b
        rayasd score runs/first --machine fan --section 00 new/
        rayasd score --model fan.rayasd recording.wav --format jsonl
        find . -name '*.wav' | rayasd score runs/first --machine fan - --format csv --out scores.csv
    """
    from rayasd.cli.scoring import score_clips
    from rayasd.scoring.loading import Choice

    raise SystemExit(score_clips(words, choice=Choice(**chosen(options)), **options))


@click.command()
@RUN
@choose_model
@click.option("-o", "--out", type=click.Path(path_type=Path, dir_okay=False), help="Default MACHINE.rayasd")
@click.option("--licence", default="", help="Under which the model may be used; kept in the file.")
def pack(run: Path, **options: Any) -> None:
    """Make one file of RUN's model of one machine.

    For rayasd score --model on any host. It holds weights (safetensors), normal embeddings (Parquet), configuration
    and thresholds (JSON), and no code.

    \b
        rayasd pack runs/first --machine fan -o fan.rayasd
    """
    from rayasd.cli.scoring import pack_model
    from rayasd.scoring.loading import Choice

    pack_model(run, Choice(**chosen(options)), **options)
