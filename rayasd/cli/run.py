"""What ``rayasd sweep`` and its single stages do, once their heavy imports are paid for."""

import signal
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rich.console import Console

from rayasd import config as configuration
from rayasd.cli.display import Display, decoding_progress, print_failures, print_plan
from rayasd.cli.options import cache_folder, choose, data_source, parse_seeds
from rayasd.config import Config
from rayasd.data.catalog import Catalog, check_outlier_exposure, scan, with_ground_truth
from rayasd.data.store import read_catalog, write_catalog
from rayasd.data.waveforms import data_fingerprint, decode
from rayasd.evaluation.leaderboard import Leaderboard
from rayasd.files import digest
from rayasd.inlier.detectors import parse_detectors, split_detectors
from rayasd.inlier.pooling import check_poolings
from rayasd.report.terminal import print_leaderboard
from rayasd.report.write import write_report
from rayasd.sweep.driver import State, Sweep, check_request, drive, survey
from rayasd.sweep.executors import Executor, Request
from rayasd.sweep.plan import Plan, stages_of
from rayasd.sweep.store import RunStore
from rayasd.unit import STAGES, RunDirectory, Stage, Unit, UnitSpec


def run_sweep(
    *,
    source: Path | None,
    ground_truth: Path | None,
    machines: str,
    preset: str,
    variants: str,
    seeds: str,
    detectors: str | None,
    overrides: Sequence[str],
    run_dir: Path,
    accept_changes: bool,
    dry_run: bool,
    **execution: Any,
) -> int:
    """Do everything from clips to the leaderboard; returns the exit code."""
    console = Console()
    config = configuration.load(preset, overrides)
    if detectors is not None:
        config = replace(config, inlier=replace(config.inlier, detectors=tuple(split_detectors(detectors))))
    chosen = choose("variant", variants, sorted(config.variants))
    for variant in chosen:
        inlier = config.variant(variant).inlier
        parse_detectors(inlier.detectors, inlier)
        check_poolings(inlier.poolings)
    scanned = _scan(data_source(source), ground_truth)
    plan = Plan(choose("machine", machines, scanned.machines), chosen, parse_seeds(seeds))
    if any("train" in stages_of(config.variant(variant)) for variant in chosen):
        check_outlier_exposure(scanned, plan.machines)
    if dry_run:
        from rayasd.exposure.network import num_parameters  # imports torch: 3 s

        trained = {variant: config.variant(variant) for variant in plan.variants}
        parameters = {name: num_parameters(c) for name, c in trained.items() if "train" in stages_of(c)}
        print_plan(console, plan, config, scanned, parameters, execution)
        return 0
    catalog = _decode(console, scanned, config, execution["cache"])
    data = {
        "source": str((source or catalog.root).absolute()),
        "root": str(catalog.root),
        "ground_truth": str(ground_truth.absolute()) if ground_truth else None,
        "synthetic": catalog.synthetic,
        "clips": catalog.table.num_rows,
        "skipped": [f"{odd.path} {odd.problem}" for odd in catalog.oddities if odd.unusable],
        "fingerprint": data_fingerprint(catalog),
    }
    store = RunStore(run_dir)
    plan = store.set_up(config, data, plan, sys.argv, accept_changes=accept_changes)
    write_catalog(store.paths.catalog, catalog)
    return run_stages(run_dir, STAGES, console=console, **execution)


def run_stages(
    run_dir: Path,
    stages: Sequence[Stage],
    *,
    executor: str,
    address: str | None,
    cpus_per_unit: float,
    gpus_per_unit: float | None,
    device: str,
    max_tries: int,
    retry_failed: bool,
    fail_fast: bool,
    cache: Path | None,
    console: Console | None = None,
) -> int:
    """Run what is missing of these stages of a run, and report; returns the exit code."""
    console, store, began = console or Console(), RunStore(run_dir), time.monotonic()
    manifest, config = store.manifest(), store.config()
    specs = unit_specs(store, device=device, cache=cache_folder(cache), num_threads=max(1, round(cpus_per_unit)))
    sweep = survey(store, specs, stages, retry_failed=retry_failed)
    waiting = sweep.count(State.WAITING)
    if waiting:
        _check_backbones(sweep, config)
        console.print(f"{waiting} units to do, {sweep.count(State.DONE)} done before, in {run_dir}")
        with _interruptible():
            running = _start(executor, address, store.paths)
            try:
                gpus = gpus_per_unit if gpus_per_unit is not None else min(1.0, running.largest_node.gpus)
                request = Request(cpus_per_unit, gpus)
                check_request(request, running)
                console.print(running.describe(), highlight=False, soft_wrap=True)
                store.record("sweep started", waiting=waiting, executor=running.describe())
                with Display(console, store.paths, began) as display:
                    drive(sweep, store, running, request, max_tries=max_tries, fail_fast=fail_fast,
                          on_change=display.update)  # fmt: skip
                store.record("sweep ended", **{s.value: sweep.count(s) for s in State})
            except KeyboardInterrupt:
                store.record("sweep interrupted")
                raise
            finally:
                running.close()
    else:
        console.print(f"nothing to do: {sweep.count(State.DONE)} units of {run_dir} are done")
    print_failures(console, sweep, stages)
    if "detect" in stages and any(s is State.DONE for u, s in sweep.states.items() if u.stage == "detect"):
        _report(console, store, sweep, read_catalog(store.paths.catalog, Path(manifest["data"]["root"])))
    missing = any(s is not State.DONE for u, s in sweep.states.items() if u.stage in stages)
    return 1 if missing else 0


def report_run(run_dir: Path, ground_truth: Path | None) -> None:
    """Write and print a run's leaderboard from what stands, with labels that may have come since."""
    store = RunStore(run_dir)
    catalog = read_catalog(store.paths.catalog, Path(store.manifest()["data"]["root"]))
    if ground_truth is not None:
        catalog = with_ground_truth(catalog, ground_truth)
        write_catalog(store.paths.catalog, catalog)
    specs = unit_specs(store, device="cpu", cache=Path(), num_threads=1)
    _report(Console(), store, survey(store, specs, (), retry_failed=False), catalog)


def unit_specs(store: RunStore, *, device: str, cache: Path, num_threads: int) -> dict[Unit, UnitSpec]:
    """Spell out every unit of a run's plan, each after the one it builds on."""
    config, manifest, plan = store.config(), store.manifest(), store.plan()
    resolved = {variant: config.variant(variant) for variant in plan.variants}
    data = digest(manifest["data"]["fingerprint"])
    return {
        unit: UnitSpec(
            unit=unit, config=resolved[unit.variant], run=store.paths, cache=cache,
            data_root=Path(manifest["data"]["root"]), data=data, device=device, num_threads=num_threads,
        )
        for unit in plan.units(config)
    }  # fmt: skip


def _scan(source: Path, ground_truth: Path | None) -> Catalog:
    catalog = scan(source)
    if ground_truth is None and (catalog.root / "ground_truth_data").is_dir():
        ground_truth = catalog.root / "ground_truth_data"
    return catalog if ground_truth is None else with_ground_truth(catalog, ground_truth)


def _decode(console: Console, catalog: Catalog, config: Config, cache: Path | None) -> Catalog:
    with decoding_progress(console) as on_progress:
        return decode(catalog, config.data, cache_folder(cache), on_progress=on_progress)


def _check_backbones(sweep: Sweep, config: Config) -> None:
    """Refuse an unknown backbone before it fails in every unit."""
    names = {sweep.specs[unit].config.network.backbone for unit in sweep.units(State.WAITING) if unit.stage == "train"}
    if names:
        # in a process of its own: timm brings torch, whose memory the driver would hold for the whole sweep
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            list(pool.map(_check_backbone, sorted(names)))


def _check_backbone(name: str) -> None:
    from rayasd.exposure.network import check_backbone

    check_backbone(name)


def _start(executor: str, address: str | None, paths: RunDirectory) -> Executor:
    if executor == "local":
        from rayasd.sweep.executors.local import LocalExecutor

        return LocalExecutor()
    from rayasd.sweep.executors.ray import RayExecutor

    return RayExecutor(address, paths.root / "ray-token")


def _report(console: Console, store: RunStore, sweep: Sweep, catalog: Catalog) -> Leaderboard:
    manifest = store.manifest()
    detects = [unit for unit in sweep.states if unit.stage == "detect"]
    scored = [
        (unit.variant, unit.machine, unit.seed, store.paths.table(unit))
        for unit in detects
        if sweep.states[unit] is State.DONE
    ]
    expected: dict[str, list[str]] = {}
    for unit in detects:
        expected.setdefault(unit.variant, []).append(unit.machine)
    provenance: Mapping[str, Any] = {
        "run": store.paths.root.name,
        "command": " ".join(manifest["invocations"][-1]["command"]),
        "rayasd": manifest["rayasd"],
        "revision": manifest["revision"],
        "data": manifest["data"]["root"],
        "data_fingerprint": digest(manifest["data"]["fingerprint"])[:12],
        "synthetic": manifest["data"]["synthetic"],
    }
    sections = store.config().evaluation.development_sections
    leaderboard = write_report(store.paths, scored, catalog.table, sections, expected, provenance)
    machines = sorted(leaderboard.standings[0].machines)
    print_leaderboard(console, leaderboard, machines, title=f"{store.paths.root.name}: {len(machines)} machine types",
                      synthetic=bool(provenance["synthetic"]))  # fmt: skip
    written = f"written: {store.paths.leaderboard('md')} (.csv, .parquet), {store.paths.cells}"
    console.print(written, highlight=False, soft_wrap=True)
    return leaderboard


class _interruptible:  # noqa: N801 - a context, used like a keyword
    """Within it, SIGTERM interrupts as Ctrl-C does: units are ended and the run can be resumed."""

    def __enter__(self) -> None:
        self._before = signal.signal(signal.SIGTERM, self._interrupt)

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, self._before)

    @staticmethod
    def _interrupt(*_: object) -> None:
        raise KeyboardInterrupt
