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
from rayasd.report.curves import find_curves
from rayasd.report.run_report import RunReport
from rayasd.report.terminal import print_curve, print_leaderboard, print_sections
from rayasd.sweep.states import State
from rayasd.unit import RunDirectory
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
    out: Path | None = None,
) -> None:
    """Print a run's leaderboard, computed from its finished scores, and write it.

    The run's own report, by its own rules, goes into the run; one by other rules only where ``out`` names a folder.
    """
    console = wide_console()
    report = RunReport.of(run_dir)
    if ground_truth is not None:
        report = replace(report, catalog=with_ground_truth(report.catalog, ground_truth))
    report = report.by_rules(with_overrides(report.store.config(), overrides))
    print_report(console, report, all_systems=all_systems, oracle=oracle)
    if sections:
        print_sections(console, report.results.cells, report.results.leaderboard.standings[0].variant)
    if missing := len(report.sweep.states) - report.sweep.count(State.DONE) + len(report.damaged):
        console.print(f"{counted(missing, 'unit')} not done or damaged: rayasd sweep goes on", style="yellow")
    if out is not None:
        if (out / "manifest.json").exists():
            raise UserError(f"--out {out} is a run directory, whose own report would be lost: choose another folder")
        _write(console, report, RunDirectory(out.absolute()), with_audio=with_audio)
    elif overrides:
        console.print("nothing written: these are not the run's own rules; --out FOLDER writes them there", style="dim")
    else:
        with report.store.held("--out FOLDER writes the report elsewhere"):
            if ground_truth is not None:  # every later report and sweep knows these labels
                write_catalog(report.store.paths.catalog, report.catalog)
            _write(console, report, None, with_audio=with_audio)


def _write(console: Console, report: RunReport, to: RunDirectory | None, *, with_audio: bool) -> None:
    write_leaderboard(console, report, to)
    num_bytes = report.write_page(to, with_audio=with_audio)
    sounds = ", most of it sounds: mono, 16 bits" if with_audio else ""
    written = f"written: {(to or report.store.paths).html} ({size(num_bytes)}{sounds})"
    console.print(written, highlight=False, soft_wrap=True)


def with_overrides(config: Config, overrides: Sequence[str]) -> EvaluationConfig:
    """Change the rules of a run's report."""
    changes = presets.parse_overrides(overrides)
    for key in changes:
        if not key.startswith("evaluation."):
            raise UserError(f"--set {key}: a report can change evaluation.* alone, the rest is settled by the sweep")
    return from_dict(presets.with_overrides(config.as_dict(), changes)).evaluation


def print_report(console: Console, report: RunReport, *, all_systems: bool = False, oracle: bool = False) -> None:
    """Print the leaderboard and its curves."""
    leaderboard = report.results.leaderboard
    machines = sorted(leaderboard.standings[0].machines)
    name = report.store.paths.root.name
    print_leaderboard(
        console, leaderboard, machines, title=f"{name}: {counted(len(machines), 'machine type')}",
        synthetic=report.synthetic, all_systems=all_systems, oracle=oracle,
        remarks=[f"{name}: {text}" for name, text in report.remarks().items() if text != "none"],
    )  # fmt: skip
    for curve in find_curves(report.store.config().variants, leaderboard):
        print_curve(console, curve, leaderboard)


def write_leaderboard(console: Console, report: RunReport, to: RunDirectory | None = None) -> None:
    """Write the leaderboard's files, and print which."""
    report.write(to)
    paths = to or report.store.paths
    written = f"written: {paths.leaderboard('md')} (.csv, .parquet), {paths.cells}"
    console.print(written, highlight=False, soft_wrap=True)


def coverage(entry: Mapping[str, Any]) -> str:
    """Say how many of an entry's cells there are."""
    return f"{entry['cells_ok']}/{entry['cells_expected']} cells"
