"""Run parts of the benchmark and keep what they measured.

python -m benchmarks                 # all parts: a quarter of an hour on two cores
python -m benchmarks metrics driver  # some
python -m benchmarks evidence --help   # systems side by side on real recordings
python -m benchmarks rehearsal --help  # one sweep as large as DCASE 2021
"""

import argparse
import importlib
import json
import sys
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import evidence, rehearsal
from benchmarks.measure import Figure, machine

PARTS = ("ingest", "training", "packing", "neighbours", "inlier", "back_ends", "thresholds", "metrics", "driver")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--out", type=Path, default=Path("benchmarks.json"), help="JSON file with all figures")
    arguments = parser.parse_args()
    console, figures = Console(width=None if sys.stdout.isatty() else 180), []
    for name in arguments.parts or PARTS:
        with console.status(name):
            figures += importlib.import_module(f"benchmarks.{name}").measure()
    console.print(table(figures))
    facts = machine()
    if facts["GPU"] == "none":
        console.print("training, embedding and packing on a GPU: skipped, no CUDA device is visible", style="yellow")
    console.print(", ".join(f"{key} {value}" for key, value in facts.items()), style="dim", highlight=False)
    arguments.out.write_text(json.dumps({"machine": facts, "figures": list(map(asdict, figures))}, indent=2) + "\n")


def table(figures: list[Figure]) -> Table:
    shown = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("part", "figure", "rayasd", "compared with", "other", "ratio", "wanted", "bound", "note"):
        shown.add_column(name, justify="right" if name in ("rayasd", "other", "ratio", "wanted", "bound") else "left")
    for figure in figures:
        ratio, wanted = figure.ratio, "" if figure.wanted is None else f"{figure.wanted:g}"
        shown.add_row(
            figure.part, figure.what, f"{figure.ours:.4g} {figure.unit}", figure.compared_with,
            "" if figure.other is None else f"{figure.other:.4g}", "" if ratio is None else f"{ratio:.2f}", wanted,
            "" if figure.floor is None else f"{figure.floor:.4g}", figure.note,
        )  # fmt: skip
    return shown


if __name__ == "__main__":
    if sys.argv[1:2] == ["evidence"]:
        evidence.main()
    elif sys.argv[1:2] == ["rehearsal"]:
        rehearsal.main()
    else:
        main()
