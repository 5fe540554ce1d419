"""What ``rayasd sweep`` and its single stages do, once their heavy imports are paid for."""

import os
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
from rayasd.errors import EXIT_STOPPED, UserError
from rayasd.files import file_digest
from rayasd.host import usable_cpus, visible_gpus
from rayasd.inlier.detectors import parse_detectors
from rayasd.inlier.pooling import check_poolings
from rayasd.sweep.driver import State, Sweep, check_request, drive, survey
from rayasd.sweep.executors import Executor, Request, Resources
from rayasd.sweep.executors.local import LocalExecutor
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
    set_up_only: bool,
    only: str | None,
    **execution: Any,
) -> int:
    """Do everything from clips to the leaderboard; returns the exit code."""
    console, store = wide_console(), RunStore(run_dir)
    if not (dry_run or set_up_only):
        _check_request(**execution)
    config = presets.load(preset, [*overrides, *([] if detectors is None else [f"inlier.detectors={detectors}"])])
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
        if set_up_only:
            console.print(Text(f"set up: {store.paths.root}, machines {', '.join(plan.machines)}"), soft_wrap=True)
            return 0
        units = [unit for unit in plan.units(config) if unit.machine in part]
        return _run(console, store, units, **execution)


def run_stages(run_dir: Path, stages: Sequence[Stage], machines: str, **execution: Any) -> int:
    """Run what is missing of these stages of a run, for these machines; returns the exit code."""
    store = RunStore(run_dir)
    available = sorted({unit.machine for unit in store.specs()})
    chosen = choose("machine", machines, available)
    if set(chosen) != set(available):
        store = RunStore(run_dir, chosen)
    asked = [unit for unit in store.specs() if unit.stage in stages and unit.machine in chosen]
    _check_request(**execution)
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
    ranks_per_unit: int | None,
    device: str,
    max_tries: int,
    hang_seconds: float,
    grace: float,
    retry_failed: bool,
    fail_fast: bool,
    cache: Path | None,
) -> int:
    began = time.monotonic()
    num_ranks = ranks_per_unit or max(1, int(gpus_per_unit or 1))
    asked_for = (cpus_per_unit, gpus_per_unit, num_ranks, device)
    specs = store.specs(
        device=device, cache=cache_folder(cache), num_threads=max(1, round(cpus_per_unit)), num_ranks=num_ranks
    )
    sweep = survey(store, specs, set(asked), retry_failed=retry_failed)
    done = sum(sweep.states[unit] is State.DONE for unit in asked)
    waiting = sweep.count(State.WAITING)
    if waiting:
        console.print(f"{counted(waiting, 'unit')} to do, {done} done before, in {store.paths.root}", highlight=False)
        running = _start(executor, address, cpus_per_unit, store)
        interrupted = _note_interruptions(store, grace)  # after Ray's own SIGTERM handler, which would end us at once
        try:
            request = _request(running.nodes, *asked_for)
            console.print(running.describe(), highlight=False, soft_wrap=True)
            store.record("sweep started", waiting=waiting, executor=running.describe().splitlines()[0])
            with Display(console, store.paths, began, running.publish) as display:

                def on_change(sweep: Sweep) -> None:
                    if interrupted.is_set():
                        raise KeyboardInterrupt
                    display.update(sweep)

                left = drive(sweep, store, running, request, max_tries=max_tries, fail_fast=fail_fast,
                             hang_seconds=hang_seconds, on_change=on_change)  # fmt: skip
            store.record("sweep ended", **{state.value: sweep.count(state) for state in State})
            if left:
                console.print(left, highlight=False)
                if store.stop_file.exists() and store.stop_file.read_text():
                    return EXIT_STOPPED
                raise KeyboardInterrupt
        except KeyboardInterrupt:
            store.record("sweep interrupted")
            raise
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            running.close()
            for unit in sweep.units(State.RUNNING):
                store.paths.progress(unit).unlink(missing_ok=True)
    elif done == len(asked):
        console.print(f"nothing to do: {counted(done, 'unit')} of {store.paths.root} done", highlight=False)
    print_failures(console, sweep, asked)
    complete = all(sweep.states[unit] is State.DONE for unit in asked)
    scored = any(unit.stage == "detect" for unit in sweep.units(State.DONE))
    if store.part is None and scored and any(unit.stage == "detect" for unit in asked):
        complete = _report(console, store, sweep, waiting) and complete
    return 0 if complete else 1


def _report(console: Console, store: RunStore, sweep: Sweep, waiting: int) -> bool:
    """Show the leaderboard; tells whether every ranked system has all its cells."""
    catalog = read_catalog(store.paths.catalog, Path(store.manifest()["data"]["root"]))
    evaluation = store.config().evaluation
    if waiting == 0 and report_stands(store, sweep, catalog, evaluation):
        console.print(f"its leaderboard stands: {store.paths.leaderboard('md')}", highlight=False, soft_wrap=True)
    else:
        show_report(console, store, sweep, catalog, evaluation)
    failed = print_failed_cells(console, pq.read_table(store.paths.cells))
    ranked = pq.read_table(store.paths.leaderboard("parquet"), filters=[("rank", ">", 0)])
    lacking = pc.any(pc.less(ranked["cells_ok"], ranked["cells_expected"])).as_py()
    return not (failed and lacking)


def _check_request(
    *,
    executor: str,
    address: str | None,
    cpus_per_unit: float,
    gpus_per_unit: float | None,
    ranks_per_unit: int | None,
    device: str,
    **_: Any,
) -> None:
    """Refuse at once what cannot be given, where that is known before data are read or Ray is started."""
    standing = address or os.environ.get("RAY_ADDRESS", "local") != "local"
    if executor == "mpi":
        nodes = _mpi(cpus_per_unit).nodes
    elif executor == "local" or not standing:
        nodes = [Resources(usable_cpus(), len(visible_gpus()))]
    else:
        return
    num_ranks = ranks_per_unit or max(1, int(gpus_per_unit or 1))
    _request(nodes, cpus_per_unit, gpus_per_unit, num_ranks, device)


def _request(nodes: Sequence[Resources], cpus: float, gpus: float | None, num_ranks: int, device: str) -> Request:
    """Settle what a unit asks for: by default a GPU a rank, where there are any.

    Raises:
        UserError: no node can give it, or it makes no sense.

    """
    most = max((node.gpus for node in nodes), default=0.0)
    if device == "cuda" and not most:
        raise UserError("--device cuda, but no node has a GPU")
    if device == "cpu" or (gpus is None and not most):
        gpus = 0.0
    elif gpus is None:
        gpus = float(num_ranks) if num_ranks > 1 else min(1.0, most)
    if gpus > 1 and gpus != int(gpus):
        raise UserError(f"--gpus-per-unit {gpus:g}: a part of one GPU, or a whole number")
    if gpus and num_ranks not in (1, gpus):
        raise UserError(f"--ranks-per-unit {num_ranks} with {gpus:g} GPUs a unit: each rank has one, or all use CPUs")
    request = Request(cpus, gpus)
    check_request(request, nodes)
    return request


def _note_interruptions(store: RunStore, grace: float) -> Event:
    """Remember Ctrl-C and SIGTERM besides raising them: raised within a callback of Ray's, Python only prints them.

    SIGUSR1, a batch system's word that the time limit is near, asks the run to stop, and interrupts it ``grace``
    seconds later if units have not ended by then.
    """
    interrupted = Event()

    def interrupt(*_: object) -> None:
        interrupted.set()
        raise KeyboardInterrupt

    def stop(*_: object) -> None:
        store.stop_file.touch()
        signal.setitimer(signal.ITIMER_REAL, grace)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, interrupt)
    signal.signal(signal.SIGUSR1, stop)
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


def _start(executor: str, address: str | None, cpus_per_unit: float, store: RunStore) -> Executor:
    if executor == "local":
        return LocalExecutor()
    if executor == "mpi":
        return _mpi(cpus_per_unit)
    from rayasd.sweep.executors.ray import RayExecutor

    return RayExecutor(address, store.paths.of_driver("ray-token", store.part), store.paths.root.name)


def _mpi(cpus_per_unit: float) -> Executor:
    from rayasd.sweep.executors.mpi import MPIExecutor

    return MPIExecutor(cpus_per_unit)
