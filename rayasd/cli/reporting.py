"""The leaderboard of a run, written and shown, and two runs compared."""

import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rayasd import __version__
from rayasd.cli.display import counted, wide_console
from rayasd.data.catalog import Catalog, read_catalog, with_ground_truth, write_catalog
from rayasd.errors import UserError, unknown
from rayasd.evaluation.bootstrap import compare
from rayasd.evaluation.cells import Scored, cell_scores
from rayasd.evaluation.leaderboard import Leaderboard
from rayasd.evaluation.published import published_systems, why_not_benchmark
from rayasd.files import digest
from rayasd.report.tables import coverage, markdown_table, percent
from rayasd.report.terminal import print_leaderboard
from rayasd.report.write import write_report
from rayasd.sweep.driver import State, Sweep, survey
from rayasd.sweep.store import RunStore
from rayasd.unit import RESULTS_VERSION


def report_run(run_dir: Path, ground_truth: Path | None, *, all_systems: bool) -> None:
    """Write and print a run's leaderboard from what stands, with labels that may have come since."""
    console = wide_console()
    store, catalog, sweep = _open(run_dir)
    if ground_truth is not None:
        catalog = with_ground_truth(catalog, ground_truth)
        write_catalog(store.paths.catalog, catalog)  # every later report and sweep knows these labels
    show_report(console, store, sweep, catalog, all_systems=all_systems)
    if missing := len(sweep.states) - sweep.count(State.DONE):
        console.print(f"{counted(missing, 'unit')} not done or damaged: rayasd sweep goes on", style="yellow")


def compare_runs(runs: tuple[Path, Path], variants: tuple[str | None, str | None], part: str) -> None:
    """Print which of two systems is better on one part's sections, by how much, and how sure."""
    console = wide_console()
    names, systems = [], []
    for path, variant in zip(runs, variants, strict=True):
        store, catalog, sweep = _open(path)
        leaderboard = _write_report(store, sweep, catalog)
        ranked = {standing.variant: standing for standing in leaderboard.ranked}
        if variant is not None and variant not in ranked:
            raise unknown(f"variant of {path}", variant, ranked)
        chosen = ranked[variant] if variant is not None else leaderboard.ranked[0]
        system = (chosen.variant, chosen.detector, chosen.pooling)
        cells = pq.read_table(store.paths.cells, filters=[("part", "=", part)])
        systems.append(cell_scores(_scored(store, sweep), catalog.table, cells, system))
        names.append(f"{store.paths.root.name} {' '.join(system)}")
    if not all(systems):
        raise UserError(f"no labelled {part} cells to compare on")
    result = compare(*systems)
    for name, score in zip(names, (result.first, result.second), strict=True):
        console.print(Text(f"{percent(score)}  {name}"))
    console.print(
        f"lead of the first: {percent(result.lead)} points of the official score on the {part} sections, 95 % interval "
        f"{percent(result.low)} to {percent(result.high)}; it leads in {percent(result.share)} % of the draws",
        highlight=False,
    )
    better = names[0] if result.lead > 0 else names[1]
    verdict = f"better: {better}" if result.sure else "no sure difference"
    console.print(Text(f"{verdict} (paired bootstrap over {len(systems[0])} cells' test clips)"))


def show_leaderboard(runs: Sequence[Path], part: str, form: str) -> None:
    """Print the ranked systems of several runs together, among published ones where the data are the same."""
    console = wide_console()
    rows: list[dict[str, Any]] = []
    comparable = True
    for path in runs:
        store, catalog, sweep = _open(path)
        leaderboard = _write_report(store, sweep, catalog)
        for standing in leaderboard.ranked:
            name = f"{standing.variant} {standing.detector} {standing.pooling}"
            where = f"{store.paths.root.name}, {counted(standing.num_seeds, 'seed')}, {coverage(standing)} cells"
            score, deviation = getattr(standing, part), getattr(standing, f"{part}_std")
            rows.append({"system": name, "score": score, "deviation": deviation, "from": where})
        why_not = why_not_benchmark(catalog.table, part, synthetic=store.manifest()["data"]["synthetic"])
        if why_not is not None:
            click.echo(f"{path}: published systems are left out: {why_not}", err=True)
            comparable = False
    for system in published_systems(part) if comparable else ():
        source = f"published: {system.source}"
        rows.append({"system": system.name, "score": system.score, "deviation": None, "from": source})
    rows.sort(key=lambda row: -(row["score"] or 0.0))
    if form == "json":
        click.echo(json.dumps([{"part": part, **row} for row in rows], indent=2, ensure_ascii=False))
        return
    titles = ["#", "system", f"official {part}", "from"]
    lines = [
        [str(i), row["system"], percent(row["score"], row["deviation"]), row["from"]] for i, row in enumerate(rows, 1)
    ]
    if form == "csv":
        csv.writer(sys.stdout, lineterminator="\n").writerows([titles, *lines])
    elif form == "md":
        click.echo(markdown_table(titles, lines))
    else:
        table = Table(header_style="bold", pad_edge=False, box=None)
        for title in titles:
            table.add_column(title, justify="right" if title in titles[::2] else "left", no_wrap=True)
        for line in lines:
            table.add_row(*map(Text, line), style="dim" if line[3].startswith("published") else "")
        console.print(table)


def show_report(
    console: Console, store: RunStore, sweep: Sweep, catalog: Catalog, *, all_systems: bool = False
) -> Leaderboard:
    """Write the leaderboard's files and print it."""
    leaderboard = _write_report(store, sweep, catalog)
    machines = sorted(leaderboard.standings[0].machines)
    title = f"{store.paths.root.name}: {counted(len(machines), 'machine type')}"
    synthetic = store.manifest()["data"]["synthetic"]
    print_leaderboard(console, leaderboard, machines, title=title, synthetic=synthetic, all_systems=all_systems)
    written = f"written: {store.paths.leaderboard('md')} (.csv, .parquet), {store.paths.cells}"
    console.print(written, highlight=False, soft_wrap=True)
    return leaderboard


def report_stands(store: RunStore, sweep: Sweep, catalog: Catalog) -> bool:
    """Whether the run's leaderboard was made from just these scores and labels, so that it need not be made again."""
    files = [store.paths.leaderboard(suffix) for suffix in ("parquet", "csv", "md")]
    if not all(path.exists() for path in [*files, store.paths.cells]):
        return False
    return (pq.read_schema(files[0]).metadata or {}).get(b"inputs") == _inputs(store, sweep, catalog).encode()


def _inputs(store: RunStore, sweep: Sweep, catalog: Catalog) -> str:
    """Digest of all that decides a leaderboard: which scores, which labels, which sections choose."""
    scores = {
        str(unit): [state, sweep.specs[unit].identity] for unit, state in sweep.states.items() if unit.stage == "detect"
    }
    labels = [catalog.table[name].to_pylist() for name in ("clip", "label")]
    return digest([__version__, RESULTS_VERSION, scores, labels, store.config().evaluation.development_sections])


def _open(run_dir: Path) -> tuple[RunStore, Catalog, Sweep]:
    """Read a run as it stands; nothing is to be done."""
    store = RunStore(run_dir)
    catalog = read_catalog(store.paths.catalog, Path(store.manifest()["data"]["root"]))
    return store, catalog, survey(store, store.specs(), (), retry_failed=False)


def _write_report(store: RunStore, sweep: Sweep, catalog: Catalog) -> Leaderboard:
    manifest = store.manifest()
    planned: dict[str, list[str]] = {}
    for unit in sweep.states:
        if unit.stage == "detect":
            planned.setdefault(unit.variant, []).append(unit.machine)
    last = manifest["invocations"][-1]
    provenance = {
        "run": store.paths.root.name,
        "command": " ".join(last["command"]),
        "rayasd": last["rayasd"],
        "revision": last["revision"],
        "data": manifest["data"]["root"],
        "data_fingerprint": digest(manifest["data"]["fingerprint"])[:12],
        "synthetic": manifest["data"]["synthetic"],
        "inputs": _inputs(store, sweep, catalog),
    }
    sections = store.config().evaluation.development_sections
    return write_report(store.paths, _scored(store, sweep), catalog.table, sections, planned, provenance)


def _scored(store: RunStore, sweep: Sweep) -> list[Scored]:
    """List the finished detect units with their scores."""
    return [
        (unit.variant, unit.machine, unit.seed, store.paths.table(unit))
        for unit in sweep.units(State.DONE)
        if unit.stage == "detect"
    ]
