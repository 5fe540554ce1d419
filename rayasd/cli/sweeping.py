"""What ``rayasd sweep`` and its single stages do, once their heavy imports are paid for."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pyarrow.compute as pc
from rich.console import Console
from rich.text import Text

from rayasd import presets
from rayasd.cli.display import clip_progress, wide_console
from rayasd.cli.dry_run import DryRun, Simulation
from rayasd.cli.execution import check_execution, execute
from rayasd.cli.options import Execution, cache_folder, choose, data_source, parse_seeds
from rayasd.data.catalog import Catalog, read_catalog
from rayasd.data.ground_truth import scan_labelled, with_labels_of
from rayasd.data.oddities import odd_contents
from rayasd.data.waveforms import data_fingerprint, decode
from rayasd.errors import UserError
from rayasd.stages import StageName
from rayasd.sweep.checks import check_data, check_extractors, check_space, check_variants, check_what_is_left
from rayasd.sweep.plan import Plan, check_asked
from rayasd.sweep.store import RunStore
from rayasd.wording import counted

_SHOWN_PROBLEMS = 5


def run_sweep(
    *,
    source: Path | None,
    ground_truth: Path | None,
    on_bad_clip: str | None,
    machines: str,
    preset: str,
    variants: str,
    seeds: str,
    detectors: str | None,
    overrides: Sequence[str],
    vary: str | None,
    run_dir: Path,
    accept_changes: bool,
    dry_run: bool,
    simulate: str | None,
    set_up_only: bool,
    only: str | None,
    execution: Execution,
    command: Sequence[str],
) -> int:
    """Do everything from clips to the leaderboard; returns the exit code.

    Arguments are as the command line has them; ``command`` is what the manifest says was asked.
    """
    console, store = wide_console(), RunStore(run_dir)
    if not (dry_run or set_up_only):
        check_execution(execution)
    if simulate is not None and not dry_run:
        raise UserError("--simulate goes with --dry-run")
    simulation = None if simulate is None else Simulation.parse(simulate)
    short = {"inlier.detectors": detectors, "data.on_bad_clip": on_bad_clip}
    config = presets.load(preset, [*overrides, *(f"{k}={value}" for k, value in short.items() if value is not None)])
    chosen = choose("variant", variants, sorted(config.variants))
    if vary is not None:
        config, chosen = presets.varied(config, chosen, *presets.parse_values(vary))
    configs = {variant: config.variant(variant) for variant in chosen}
    weights = check_variants(configs)
    scanned = scan_labelled(data_source(source), ground_truth)
    if ground_truth is None and store.exists:
        scanned = with_labels_of(scanned, read_catalog(store.paths.catalog, scanned.root))
    plan = Plan(choose("machine", machines, scanned.machines), chosen, parse_seeds(seeds))
    parts = plan.parts(config)
    part = tuple(parts) if only is None else choose("machine", only, parts)
    if only is not None:
        store = RunStore(run_dir, part)
    check_data(scanned, plan.machines, configs)
    if dry_run:
        dry = DryRun(plan, config, scanned, execution, run_dir)
        dry.print_plan(console)
        if simulation is not None:
            dry.simulate(console, simulation)
        return 0
    with store.held():
        num_parameters = {} if store.exists and store.config() == config else check_extractors(configs)
        with clip_progress(console, "decoding") as on_progress:
            catalog = decode(scanned, config.data, cache_folder(execution.cache), on_progress=on_progress)
        check_what_is_left(catalog, plan.machines)
        check_data(catalog, plan.machines, configs)
        data = {
            "root": str(catalog.root),
            "synthetic": catalog.synthetic,
            "clips": catalog.table.num_rows,
            "skipped": [f"{odd.path} {odd.problem}" for odd in catalog.oddities if odd.unusable],
            "emptied": _emptied(scanned, catalog),
            "fingerprint": data_fingerprint(catalog),
            "pretrained": weights,
        }
        _say_what_is_odd(console, catalog, plan, data["emptied"])
        check_space(store, config, plan, catalog, num_parameters)
        store.set_up(config, catalog, data, plan, command, accept_changes=accept_changes)
        if set_up_only:
            console.print(Text(f"set up: {store.paths.root}, machines {', '.join(plan.machines)}"), soft_wrap=True)
            return 0
        units = [unit for unit in plan.units(config) if unit.machine in part]
        return execute(console, store, units, execution)


def run_stages(run_dir: Path, stages: Sequence[StageName], machines: str, execution: Execution) -> int:
    """Run what is missing of these stages of a run, for these machines; returns the exit code."""
    store = RunStore(run_dir)
    units = list(store.specs())
    available = sorted({unit.machine for unit in units})
    chosen = choose("machine", machines, available)
    check_asked(units, stages, chosen)
    if set(chosen) != set(available):
        store = RunStore(run_dir, chosen)
    asked = [unit for unit in units if unit.stage in stages and unit.machine in chosen]
    check_execution(execution)
    with store.held():
        return execute(wide_console(), store, asked, execution)


def _emptied(scanned: Catalog, catalog: Catalog) -> list[str]:
    """List machines' sections of which no training clip, or no test clip, could be decoded."""
    before, after = (
        {tuple(row.values()) for row in c.table.select(["machine", "section", "split"]).to_pylist()}
        for c in (scanned, catalog)
    )
    return [" ".join(group) for group in sorted(before - after)]


def _say_what_is_odd(console: Console, catalog: Catalog, plan: Plan, emptied: Sequence[str]) -> None:
    """Say what a person should know of the data before hours go into it."""

    def say(line: str) -> None:
        console.print(Text(line, style="yellow"), soft_wrap=True)

    for machine in plan.machines:
        if len(pc.unique(catalog.of(machine).filter(catalog.is_train)["section"])) == 1:
            say(f"note     {machine} has one section: the product loss has nothing to tell apart")
    for found in odd_contents(catalog.table):
        say(f"note     {found}")
    skipped = Counter(odd.problem for odd in catalog.oddities if odd.unusable)
    for problem, count in (often := skipped.most_common(_SHOWN_PROBLEMS)):
        say(f"skipped  {counted(count, 'clip')}: {problem}")
    if rest := skipped.total() - sum(count for _, count in often):
        say(f"skipped  {counted(rest, 'clip')} for other reasons: manifest.json has all")
    for group in emptied:
        say(f"skipped  all of {group}")
