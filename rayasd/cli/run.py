"""What ``rayasd sweep`` and its single stages do, once their heavy imports are paid for."""

import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from threading import Event
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console
from rich.text import Text

from rayasd import presets
from rayasd.cli.display import (
    Display,
    clip_progress,
    counted,
    print_failed_cells,
    print_failures,
    print_plan,
    wide_console,
)
from rayasd.cli.options import cache_folder, choose, data_source, parse_seeds
from rayasd.cli.reporting import report_stands, show_report
from rayasd.config import Config, varied
from rayasd.data.anomalies import set_aside
from rayasd.data.catalog import (
    Catalog,
    check_outlier_exposure,
    read_catalog,
    scan_labelled,
    with_labels_of,
)
from rayasd.data.waveforms import data_fingerprint, decode
from rayasd.errors import UserError
from rayasd.files import file_digest
from rayasd.inlier.detectors import parse_detectors
from rayasd.inlier.pooling import check_poolings
from rayasd.sweep.driver import State, Sweep, check_request, drive, survey
from rayasd.sweep.executors import Executor, Request
from rayasd.sweep.plan import Plan, stages_of
from rayasd.sweep.store import RunStore
from rayasd.unit import Stage, Unit


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
    vary: str | None,
    run_dir: Path,
    accept_changes: bool,
    dry_run: bool,
    **execution: Any,
) -> int:
    """Do everything from clips to the leaderboard; returns the exit code."""
    console, store = wide_console(), RunStore(run_dir)
    config = presets.load(preset, [*overrides, *([] if detectors is None else [f"inlier.detectors={detectors}"])])
    chosen = choose("variant", variants, sorted(config.variants))
    if vary is not None:
        config, chosen = varied(config, chosen, *presets.parse_values(vary))
    weights = _check_variants(config, chosen)
    scanned = scan_labelled(data_source(source), ground_truth)
    if ground_truth is None and store.exists:
        scanned = with_labels_of(scanned, read_catalog(store.paths.catalog, scanned.root))
    plan = Plan(choose("machine", machines, scanned.machines), chosen, parse_seeds(seeds))
    trained = [variant for variant in chosen if "train" in stages_of(config.variant(variant))]
    if trained:
        check_outlier_exposure(scanned, plan.machines)
    for variant in chosen:
        for machine in plan.machines:
            exposure = config.variant(variant).exposure
            set_aside(scanned.table.filter(pc.field("machine") == machine), machine, exposure)
    if dry_run:
        from rayasd.exposure.network import num_parameters  # imports torch: 3 s

        parameters = {variant: num_parameters(config.variant(variant)) for variant in trained}
        print_plan(console, plan, config, scanned, parameters, execution)
        return 0
    with store.held():
        if not store.exists or store.config() != config:
            _check_extractors([config.variant(variant) for variant in chosen])
        with clip_progress(console, "decoding") as on_progress:
            catalog = decode(scanned, config.data, cache_folder(execution["cache"]), on_progress=on_progress)
        data = {
            "root": str(catalog.root),
            "synthetic": catalog.synthetic,
            "clips": catalog.table.num_rows,
            "skipped": [f"{odd.path} {odd.problem}" for odd in catalog.oddities if odd.unusable],
            "fingerprint": data_fingerprint(catalog),
            "pretrained": weights,
        }
        _say_what_is_odd(console, catalog, plan)
        store.set_up(config, catalog, data, plan, sys.argv, accept_changes=accept_changes)
        return _run(console, store, plan.units(config), **execution)


def run_stages(run_dir: Path, stages: Sequence[Stage], **execution: Any) -> int:
    """Run what is missing of these stages of a run; returns the exit code."""
    store = RunStore(run_dir)
    asked = [unit for unit in store.specs() if unit.stage in stages]
    with store.held():
        return _run(wide_console(), store, asked, **execution)


def _run(
    console: Console,
    store: RunStore,
    asked: Sequence[Unit],
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
) -> int:
    began = time.monotonic()
    specs = store.specs(device=device, cache=cache_folder(cache), num_threads=max(1, round(cpus_per_unit)))
    sweep = survey(store, specs, set(asked), retry_failed=retry_failed)
    done = sum(sweep.states[unit] is State.DONE for unit in asked)
    waiting = sweep.count(State.WAITING)
    if waiting:
        console.print(f"{counted(waiting, 'unit')} to do, {done} done before, in {store.paths.root}", highlight=False)
        running = _start(executor, address, store)
        interrupted = _note_interruptions()  # after Ray's own SIGTERM handler, which would end the driver at once
        try:
            gpus = gpus_per_unit
            if device == "cuda" and not any(node.gpus for node in running.nodes):
                raise UserError("--device cuda, but no node has a GPU")
            if gpus is None:
                gpus = 1.0 if device != "cpu" and any(node.gpus >= 1 for node in running.nodes) else 0.0
            request = Request(cpus_per_unit, gpus)
            check_request(request, running)
            console.print(running.describe(), highlight=False)
            store.record("sweep started", waiting=waiting, executor=running.describe())
            with Display(console, store.paths, began) as display:

                def on_change(sweep: Sweep) -> None:
                    if interrupted.is_set():
                        raise KeyboardInterrupt
                    display.update(sweep)

                drive(sweep, store, running, request, max_tries=max_tries, fail_fast=fail_fast,
                      on_change=on_change)  # fmt: skip
            store.record("sweep ended", **{state.value: sweep.count(state) for state in State})
        except KeyboardInterrupt:
            store.record("sweep interrupted")
            raise
        finally:
            running.close()
    elif done == len(asked):
        console.print(f"nothing to do: {counted(done, 'unit')} of {store.paths.root} done", highlight=False)
    print_failures(console, sweep, asked)
    complete = all(sweep.states[unit] is State.DONE for unit in asked)
    scored = any(unit.stage == "detect" for unit in sweep.units(State.DONE))
    if scored and any(unit.stage == "detect" for unit in asked):
        catalog = read_catalog(store.paths.catalog, Path(store.manifest()["data"]["root"]))
        evaluation = store.config().evaluation
        if waiting == 0 and report_stands(store, sweep, catalog, evaluation):
            console.print(f"its leaderboard stands: {store.paths.leaderboard('md')}", highlight=False, soft_wrap=True)
        else:
            show_report(console, store, sweep, catalog, evaluation)
        failed = print_failed_cells(console, pq.read_table(store.paths.cells))
        ranked = pq.read_table(store.paths.leaderboard("parquet"), filters=[("rank", ">", 0)])
        lacking = pc.any(pc.less(ranked["cells_ok"], ranked["cells_expected"])).as_py()
        complete = complete and not (failed and lacking)
    return 0 if complete else 1


def _note_interruptions() -> Event:
    """Remember Ctrl-C and SIGTERM besides raising them: raised within a callback of Ray's, Python only prints them."""
    interrupted = Event()

    def interrupt(*_: object) -> None:
        interrupted.set()
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    return interrupted


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


def _check_extractors(configs: Sequence[Config]) -> None:
    """Make each extractor and find each loss once, so that what is wrong there is refused before every unit fails."""
    different = list({repr((config.network, config.exposure)): config for config in configs}.values())
    # in a process of its own: timm brings torch, whose memory the driver would hold for the whole sweep
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        list(pool.map(_make_extractor, different))


def _make_extractor(config: Config) -> None:
    from rayasd.exposure.losses import find_losses
    from rayasd.exposure.network import Extractor, make_control

    if config.network.extractor == "network":
        find_losses(config.exposure)
        Extractor(config, 1)
    else:
        make_control(config)


def _say_what_is_odd(console: Console, catalog: Catalog, plan: Plan) -> None:
    """Say what a person should know of the data before hours go into it."""
    train = catalog.table.filter(catalog.is_train)
    for machine in plan.machines:
        sections = pc.unique(train.filter(pc.field("machine") == machine)["section"])
        if len(sections) == 1:
            note = f"{machine} has one section: the product loss has nothing to tell apart"
            console.print(Text(f"note     {note}", style="yellow"))
    for odd, count in Counter(odd.problem for odd in catalog.oddities if odd.unusable).most_common(5):
        console.print(Text(f"skipped  {count} clips: {odd}", style="yellow"))


def _start(executor: str, address: str | None, store: RunStore) -> Executor:
    if executor == "local":
        from rayasd.sweep.executors.local import LocalExecutor

        return LocalExecutor()
    from rayasd.sweep.executors.ray import RayExecutor

    return RayExecutor(address, store.paths.root / "ray-token")
