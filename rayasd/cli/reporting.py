"""What ``rayasd report`` does, and how a run's leaderboard is shown."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from rayasd import presets
from rayasd.cli.display import wide_console
from rayasd.config import Config, EvaluationConfig, from_dict
from rayasd.data.catalog import write_catalog
from rayasd.data.ground_truth import with_ground_truth
from rayasd.errors import UserError
from rayasd.evaluation.leaderboard import Leaderboard
from rayasd.parquet import read_parquet
from rayasd.report.curves import find_curves
from rayasd.report.run_report import RunReport
from rayasd.report.terminal import print_curve, print_leaderboard, print_sections
from rayasd.sweep.driver import State
from rayasd.wording import counted, size


def report_run(
    run_dir: Path,
    ground_truth: Path | None,
    overrides: Sequence[str],
    *,
    all_systems: bool,
    oracle: bool,
    sections: bool,
    with_audio: bool,
) -> None:
    """Write and print a run's leaderboard from what stands, with labels and rules that may have come since."""
    console = wide_console()
    report = RunReport.of(run_dir)
    if ground_truth is not None:
        report = replace(report, catalog=with_ground_truth(report.catalog, ground_truth))
        write_catalog(report.store.paths.catalog, report.catalog)  # every later report and sweep knows these labels
    report = report.by_rules(with_overrides(report.store.config(), overrides))
    board = show_report(console, report, all_systems=all_systems, oracle=oracle)
    if sections:
        print_sections(console, read_parquet(report.store.paths.cells), board.standings[0].variant)
    num_bytes = report.write_page(board, with_audio=with_audio)
    sounds = ", most of it sounds: mono, 16 bits" if with_audio else ""
    written = f"written: {report.store.paths.html} ({size(num_bytes)}{sounds})"
    console.print(written, highlight=False, soft_wrap=True)
    if missing := len(report.sweep.states) - report.sweep.count(State.DONE):
        console.print(f"{counted(missing, 'unit')} not done or damaged: rayasd sweep goes on", style="yellow")


def with_overrides(config: Config, overrides: Sequence[str]) -> EvaluationConfig:
    """Change the rules of a run's report."""
    changes = presets.parse_overrides(overrides)
    for key in changes:
        if not key.startswith("evaluation."):
            raise UserError(f"--set {key}: a report can change evaluation.* alone, the rest is settled by the sweep")
    return from_dict(presets.with_overrides(config.as_dict(), changes)).evaluation


def show_report(console: Console, report: RunReport, *, all_systems: bool = False, oracle: bool = False) -> Leaderboard:
    """Write the leaderboard's files and print it."""
    leaderboard, paths = report.write(), report.store.paths
    machines = sorted(leaderboard.standings[0].machines)
    print_leaderboard(
        console, leaderboard, machines, title=f"{paths.root.name}: {counted(len(machines), 'machine type')}",
        synthetic=report.synthetic, all_systems=all_systems, oracle=oracle,
        remarks=[f"{name}: {text}" for name, text in report.remarks().items() if text != "none"],
    )  # fmt: skip
    for curve in find_curves(report.store.config().variants, leaderboard):
        print_curve(console, curve, leaderboard)
    written = f"written: {paths.leaderboard('md')} (.csv, .parquet), {paths.cells}"
    console.print(written, highlight=False, soft_wrap=True)
    return leaderboard


def coverage(entry: Mapping[str, Any]) -> str:
    """Say how many of an entry's cells there are."""
    return f"{entry['cells_ok']}/{entry['cells_expected']} cells"
