"""Compare systems on real recordings: AUC over seeds, intervals between neighbours, processor time, memory.

python -m benchmarks evidence              # every system, raw and level-free, 3 seeds: a day on two cores
python -m benchmarks evidence --quick      # the main rows of two sets, level-free, 2 seeds: 20 minutes
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
from rich.console import Console
from rich.table import Table

from benchmarks.measure import Usage, run_rayasd
from rayasd.errors import UserError
from rayasd.evaluation.bootstrap import Cell, CellScores, compare
from rayasd.evaluation.cells import cell_scores, labels_of
from rayasd.report.run_report import RunReport

DATA = {
    "mimii-mini": ("mimii-mini", "all"),
    "mimii": ("bench/mimii.csv", "all"),
    "uavmix": ("bench/uavmix.csv", "uavmix"),
    **{f"motor{each}": (f"bench/motor{each}.csv", f"motor{each}") for each in "ABC"},
}
"""Manifest or folder, and the machines that are reported; the others only train."""
CONTROLS = ("level", "statistics", "max-statistics", "untrained", "shared-untrained")
TRAINED = ("both", "serial-oe", "shared", "shared-sections", "shared-multires", "recommended", "recommended-whole")
ABLATIONS = ("machine-only", "product-only", "no-mixup")
QUICK = (*CONTROLS, "recommended")
QUICK_DATA = ("mimii-mini", "uavmix")
QUICK_BOTH = ("uavmix",)  # one training per seed; on mimii-mini, four
PRESET = Path(__file__).with_suffix(".toml")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the main rows of two sets, level-free, two seeds")
    parser.add_argument("--recordings", type=Path, default=Path("../shared/data"), help="folder of the recordings")
    parser.add_argument("--only", choices=DATA, action="append", help="these data alone; may be repeated")
    parser.add_argument("--out", type=Path, default=Path("runs/evidence"), help="folder of the runs")
    asked = parser.parse_args(sys.argv[2:])
    console = Console(width=None if sys.stdout.isatty() else 120)
    for name in asked.only or (QUICK_DATA if asked.quick else DATA):
        source, machines = DATA[name]
        if not (data := asked.recordings / source).exists():
            console.print(f"{name}: skipped, there is no {data}", style="yellow")
            continue
        for level in ("clip",) if asked.quick else ("keep", "clip"):
            seeds = 2 if asked.quick else 3
            more = ("both",) if name in QUICK_BOTH else ()
            variants = (*QUICK, *more) if asked.quick else (*CONTROLS, *TRAINED, *ABLATIONS)
            run = asked.out / f"{name}-{level}"
            costs = {}
            for variant in variants:
                with console.status(f"{name}, level {level}: {variant}"):
                    costs[variant] = sweep(run, data, machines, variant, level, seeds)
            console.print(compared(run, f"{name}, level {level}, seeds 0-{seeds - 1}", costs))


def sweep(run: Path, data: Path, machines: str, variant: str, level: str, seeds: int) -> Usage:
    """Run one variant, on top of those that the run has."""
    words = ["sweep", "--preset", PRESET, "--data", data, "--run-dir", run, "--machines", machines,
             "--variants", variant, "--seeds", f"0-{seeds - 1}", "--executor", "local",
             "--set", f"data.level={level}", "--set", "evaluation.ensembles=seeds,both&shared"]  # fmt: skip
    return run_rayasd(words, run.with_suffix(".log"))


def compared(run: Path, title: str, costs: dict[str, Usage]) -> Table:
    """Rank a run's entries by the mean AUC of their source cells, each beside the next one below it."""
    report = RunReport.of(run)
    entries = sorted(_entries(report), key=lambda entry: -entry[1])
    shown = Table(title=title, box=None, pad_edge=False, header_style="dim", title_justify="left")
    for column in ("entry", "source", "±", "target", "lead over next", "95 % interval", "CPU minutes", "peak MB"):
        shown.add_column(column, justify="left" if column == "entry" else "right")
    for (name, source, deviation, target, scores), below in zip(entries, [*entries[1:], None], strict=True):
        cost, lead = costs.get(name), _lead(scores, below[-1], report.evaluation.year) if below else ("", "")
        shown.add_row(name, f"{source:.1f}", "" if deviation is None else f"{deviation:.1f}",
                      "" if np.isnan(target) else f"{target:.1f}", *lead,
                      *((f"{cost.cpu_minutes:.1f}", f"{cost.peak_mb:.0f}") if cost else ("", "")))  # fmt: skip
    return shown


_Entry = tuple[str, float, float | None, float, dict[Cell, CellScores]]


def _entries(report: RunReport) -> Iterator[_Entry]:
    chosen = report.cells.filter(pc.field("selected") & (pc.field("status") == "ok"))
    for variant in pc.unique(chosen["variant"]).to_pylist():
        cells = chosen.filter(pc.field("variant") == variant)
        of_source = cells.filter(pc.field("domain") == "source")
        by_seed = [np.mean(of_source.filter(pc.field("seed") == seed)["auc"]) for seed in
                   pc.unique(of_source["seed"]).to_pylist() if seed is not None]  # fmt: skip
        of_target = cells.filter(pc.field("domain") == "target")["auc"].to_numpy()
        scores = cell_scores(report.scored, labels_of(report.catalog.table), of_source, report.evaluation.year)
        deviation = 100 * float(np.std(by_seed, ddof=1)) if len(by_seed) > 1 else None
        target = 100 * float(np.mean(of_target)) if len(of_target) else np.nan
        yield variant, 100 * float(np.mean(of_source["auc"])), deviation, target, scores


def _lead(first: dict[Cell, CellScores], second: dict[Cell, CellScores], year: int) -> tuple[str, str]:
    try:
        _, auc = compare(first, second, year)
    except UserError:  # another number of seeds
        return "", ""
    lead, low, high = (f"{round(100 * value, 1) + 0.0:.1f}" for value in (auc.lead, auc.low, auc.high))
    return lead, f"{low} to {high}"
