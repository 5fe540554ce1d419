"""What ``rayasd sweep`` and its single stages do, once their heavy imports are paid for."""

import shutil
import signal
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path

import pyarrow.compute as pc
from rich.console import Console
from rich.text import Text

from rayasd import presets
from rayasd.cli.display import clip_progress, counted, wide_console
from rayasd.cli.dry_run import DryRun, Simulation, size
from rayasd.cli.execution import check_execution, execute
from rayasd.cli.options import Execution, cache_folder, choose, data_source, parse_seeds
from rayasd.config import Config, varied
from rayasd.data.anomalies import set_aside
from rayasd.data.catalog import (
    Catalog,
    check_outlier_exposure,
    read_catalog,
    scan_labelled,
    with_labels_of,
)
from rayasd.data.oddities import odd_contents
from rayasd.data.waveforms import data_fingerprint, decode
from rayasd.errors import StorageError, UserError
from rayasd.files import file_digest
from rayasd.host import end_with_parent
from rayasd.inlier.detectors import parse_detectors
from rayasd.inlier.pooling import check_poolings
from rayasd.sweep.forecast import Clips, output_bytes
from rayasd.sweep.plan import Plan, stages_of
from rayasd.sweep.store import RunStore
from rayasd.unit import Stage

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
) -> int:
    """Do everything from clips to the leaderboard; returns the exit code."""
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
        config, chosen = varied(config, chosen, *presets.parse_values(vary))
    weights = _check_variants(config, chosen)
    scanned = scan_labelled(data_source(source), ground_truth)
    if ground_truth is None and store.exists:
        scanned = with_labels_of(scanned, read_catalog(store.paths.catalog, scanned.root))
    plan = Plan(choose("machine", machines, scanned.machines), chosen, parse_seeds(seeds))
    part = plan.machines if only is None else choose("machine", only, list(plan.machines))
    if only is not None:
        store = RunStore(run_dir, part)
    trained = [variant for variant in chosen if "train" in stages_of(config.variant(variant))]
    if trained:
        check_outlier_exposure(scanned, plan.machines)
    for variant in chosen:
        for machine in plan.machines:
            exposure = config.variant(variant).exposure
            set_aside(scanned.table.filter(pc.field("machine") == machine), machine, exposure)
    if dry_run:
        dry = DryRun(plan, config, scanned, execution, run_dir)
        dry.print_plan(console)
        if simulation is not None:
            dry.simulate(console, simulation)
        return 0
    with store.held():
        sizes = {variant: _largest_weights(store, variant) for variant in chosen}
        if not store.exists or store.config() != config:
            sizes |= _check_extractors({variant: config.variant(variant) for variant in chosen})
        with clip_progress(console, "decoding") as on_progress:
            catalog = decode(scanned, config.data, cache_folder(execution.cache), on_progress=on_progress)
        _check_what_is_left(catalog, plan.machines)
        if trained:
            check_outlier_exposure(catalog, plan.machines)
        data = {
            "root": str(catalog.root),
            "synthetic": catalog.synthetic,
            "clips": catalog.table.num_rows,
            "skipped": [f"{odd.path} {odd.problem}" for odd in catalog.oddities if odd.unusable],
            "emptied": _emptied(scanned, catalog),
            "fingerprint": data_fingerprint(catalog),
            "pretrained": weights,
        }
        _say_what_is_odd(console, scanned, catalog, plan)
        _check_space(store, config, plan, catalog, sizes)
        store.set_up(config, catalog, data, plan, sys.argv, accept_changes=accept_changes)
        if set_up_only:
            console.print(Text(f"set up: {store.paths.root}, machines {', '.join(plan.machines)}"), soft_wrap=True)
            return 0
        units = [unit for unit in plan.units(config) if unit.machine in part]
        return execute(console, store, units, execution)


def run_stages(run_dir: Path, stages: Sequence[Stage], machines: str, execution: Execution) -> int:
    """Run what is missing of these stages of a run, for these machines; returns the exit code."""
    store = RunStore(run_dir)
    units = list(store.specs())
    available = sorted({unit.machine for unit in units})
    chosen = choose("machine", machines, available)
    if set(chosen) != set(available):
        store = RunStore(run_dir, chosen)
    asked = [unit for unit in units if unit.stage in stages and unit.machine in chosen]
    check_execution(execution)
    with store.held():
        return execute(wide_console(), store, asked, execution)


def _check_variants(config: Config, chosen: Sequence[str]) -> dict[str, str]:
    """Check all that can be checked of the chosen variants before anything starts; returns weights files' sha256."""
    weights = {}
    for variant in chosen:
        resolved = config.variant(variant)
        parse_detectors(resolved.inlier.detectors, resolved.inlier)
        check_poolings(resolved.inlier.poolings)
        if path := resolved.network.pretrained:
            if not Path(path).is_file():
                raise UserError(f"network.pretrained: no such file: {path}")
            weights[path] = file_digest(Path(path))
    return weights


def _largest_weights(store: RunStore, variant: str) -> int:
    """Count the parameters of a variant's trained extractor; 0 where none has been trained."""
    trained = store.paths.root.glob(f"models/{variant}/*/*/model.safetensors")
    return max((path.stat().st_size // 4 for path in trained), default=0)


def _check_space(store: RunStore, config: Config, plan: Plan, catalog: Catalog, sizes: Mapping[str, int]) -> None:
    """Refuse a sweep whose results have no room.

    Raises:
        StorageError: what units leave that stand nowhere yet is more than is free.

    """
    clips, needed = Clips.of(catalog), Counter[Stage]()
    resolved = {variant: config.variant(variant) for variant in plan.variants}
    for unit in plan.units(config):
        if not store.paths.marker(unit, "DONE").exists():
            needed[unit.stage] += output_bytes(unit, resolved[unit.variant], clips, sizes[unit.variant])
    free = shutil.disk_usage(store.paths.root).free
    if needed.total() > free:
        parts = ", ".join(f"{stage} {size(count)}" for stage, count in needed.items())
        raise StorageError(
            f"this sweep leaves about {size(needed.total())} more in {store.paths.root} ({parts}), {size(free)} are "
            "free: make room, choose another --run-dir, or ask for less (--dry-run shows how much)"
        )


def _check_extractors(configs: Mapping[str, Config]) -> dict[str, int]:
    """Make each extractor and find each loss once, so that what is wrong there is refused before every unit fails.

    Returns:
        Number of learned parameters by variant.

    """
    alike = {variant: repr((config.network, config.exposure)) for variant, config in configs.items()}
    different = {alike[variant]: config for variant, config in configs.items()}
    # in a process of its own: timm brings torch, whose memory the driver would hold for the whole sweep
    # and ended with us, even if we are killed: it would wait for work for ever
    with (
        suppress(BrokenProcessPool),  # it was killed, for memory perhaps: the units will tell
        ProcessPoolExecutor(1, get_context("spawn"), initializer=_end_with_driver) as pool,
    ):
        sizes = dict(zip(different, pool.map(_make_extractor, different.values()), strict=True))
        return {variant: sizes[alike[variant]] for variant in configs}
    return {}


def _end_with_driver() -> None:
    end_with_parent(signal.SIGKILL)


def _make_extractor(config: Config) -> int:
    from rayasd.exposure.losses import find_losses
    from rayasd.exposure.network import Extractor, make_control

    if config.network.extractor == "network":
        find_losses(config.exposure)
        return sum(parameter.numel() for parameter in Extractor(config, 1).parameters())
    make_control(config)
    return 0


def _check_what_is_left(catalog: Catalog, machines: Sequence[str]) -> None:
    """Make sure that no machine lost all its training clips because they could not be used."""
    left = set(catalog.table.filter(catalog.is_train)["machine"].to_pylist())
    if gone := [machine for machine in machines if machine not in left]:
        raise UserError(
            f"no training clips are left of {', '.join(gone)}: rayasd data check {catalog.root} says why, --machines "
            "chooses others"
        )


def _say_what_is_odd(console: Console, scanned: Catalog, catalog: Catalog, plan: Plan) -> None:
    """Say what a person should know of the data before hours go into it."""
    train = catalog.table.filter(catalog.is_train)
    for machine in plan.machines:
        sections = pc.unique(train.filter(pc.field("machine") == machine)["section"])
        if len(sections) == 1:
            note = f"{machine} has one section: the product loss has nothing to tell apart"
            console.print(Text(f"note     {note}", style="yellow"))
    for found in odd_contents(catalog.table):
        console.print(Text(f"note     {found}", style="yellow"), soft_wrap=True)
    skipped = Counter(odd.problem for odd in catalog.oddities if odd.unusable)
    for problem, count in (often := skipped.most_common(_SHOWN_PROBLEMS)):
        console.print(Text(f"skipped  {counted(count, 'clip')}: {problem}", style="yellow"), soft_wrap=True)
    if rest := skipped.total() - sum(count for _, count in often):
        console.print(
            Text(f"skipped  {counted(rest, 'clip')} for other reasons: manifest.json has all", style="yellow")
        )
    for group in _emptied(scanned, catalog):
        console.print(Text(f"skipped  all of {group}", style="yellow"))


def _emptied(scanned: Catalog, catalog: Catalog) -> list[str]:
    """List machines' sections of which no training clip, or no test clip, could be decoded."""
    before, after = (
        {tuple(row.values()) for row in c.table.select(["machine", "section", "split"]).to_pylist()}
        for c in (scanned, catalog)
    )
    return [" ".join(group) for group in sorted(before - after)]
