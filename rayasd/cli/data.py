"""``rayasd data``: fetch, check and index recordings, make synthetic ones."""

from pathlib import Path
from typing import Any

import click

from rayasd.cli.options import GROUND_TRUTH


@click.group()
def data() -> None:
    """Fetch, check, make or index recordings."""


@data.command()
@click.argument("dataset", metavar="DATASET")
@click.option("-o", "--out", type=click.Path(path_type=Path, file_okay=False), required=True,
              help="ROOT: the folder that gets dev_data/, eval_data/ and ground_truth_data/.")  # fmt: skip
@click.option("--machines", default="all", show_default=True, help="all, or some: fan,pump.")
@click.option("--parts", default="all", show_default=True, help="all, or some of dev,eval,ground-truth.")
@click.option("--keep-archives", is_flag=True, help="Leave the zip files in ROOT/archives.")
def fetch(dataset: str, out: Path, machines: str, parts: str, keep_archives: bool) -> None:
    """Fetch a DCASE Task 2 data set from Zenodo.

    DATASET is one of dcase2020 to dcase2025. Run again, it continues where it stopped.

    \b
        rayasd data fetch dcase2021 --out data/dcase2021
        rayasd data fetch dcase2021 --out data/dcase2021 --machines fan,pump --parts dev
    """
    from rayasd.cli.fetching import fetch_data

    fetch_data(dataset, out, machines, parts, keep_archives)


@data.command()
@click.argument("root", type=click.Path(path_type=Path))
@GROUND_TRUTH
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="data.resample=true, data.channel=0 …")
def check(root: Path, ground_truth: Path | None, overrides: tuple[str, ...]) -> None:
    """Count and read every clip below ROOT, and name all that is odd.

    Exit code 1 when something is unusable.

    \b
        rayasd data check data/synthetic
        rayasd data check recordings.csv --set data.resample=true --set data.channel=mean
    """
    from rayasd.cli.recordings import check_data

    raise SystemExit(check_data(root, ground_truth, overrides))


@data.command()
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option("--machines", default="all", show_default=True, help="all, or some of the seven 2021 machine types.")
@click.option("--sections", "num_sections", type=click.IntRange(min=1, max=99), default=6, show_default=True,
              help="Sections per machine type; 00-02 are development, the rest evaluation.")  # fmt: skip
@click.option("--train", "num_source_train", type=click.IntRange(min=1), default=1000, show_default=True,
              help="Source-domain training clips per section.")  # fmt: skip
@click.option("--target-train", "num_target_train", type=click.IntRange(min=0), default=3, show_default=True,
              help="Target-domain training clips per section.")  # fmt: skip
@click.option("--test", "num_test", type=click.IntRange(min=1), default=100, show_default=True,
              help="Normal, and as many anomalous, test clips per section and domain.")  # fmt: skip
@click.option("--seconds", type=click.FloatRange(min=0.5), default=10.0, show_default=True, help="Length of a clip.")
@click.option("--difficulty", type=click.FloatRange(min=0, max=1), default=0.5, show_default=True,
              help="0: loud anomalies; 1: faint ones.")  # fmt: skip
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Each seed gives other machines."
)
def synth(out: Path, machines: str, **plan: Any) -> None:
    """Write synthetic machine recordings to OUT.

    They are laid out and named as DCASE 2021 Task 2.

    \b
        rayasd data synth data/synthetic --train 30 --test 10 --seconds 4
    """
    from rayasd.cli.recordings import synthesize_data

    synthesize_data(out, machines, plan)


@data.command()
@click.argument("root", type=click.Path(path_type=Path, file_okay=False))
@click.option("--pattern", default="{machine}/id_{section}/{label}/*.wav", show_default=True,
              help="Where machine, section, domain, split and label stand in a path; * is anything.")  # fmt: skip
@click.option("--test-fraction", type=click.FloatRange(min=0, max=0.5), default=None,
              help="Share of normal clips held out for the test; default: as many as there are anomalies.")  # fmt: skip
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Which normal clips are held out.",
)
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Manifest to write; default ROOT/clips.csv.",
)
def index(root: Path, pattern: str, test_fraction: float | None, seed: int, out: Path | None) -> None:
    """Make a manifest of your own recordings below ROOT, for --data.

    The default pattern is the original MIMII tree (fan/id_00/normal/00000000.wav, 8 channels):

    \b
        rayasd data index MIMII --out MIMII/clips.csv
        rayasd sweep --data MIMII/clips.csv --set data.channel=0

    A manifest is a CSV or Parquet table of path (relative to it), machine, section, domain, split and label, which you
    may as well write yourself.
    """
    from rayasd.cli.recordings import index_data

    index_data(root, pattern, test_fraction, seed, out)
