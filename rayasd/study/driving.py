"""Do what is missing of a run: resources, executor, driver, leaderboard."""

import os
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rayasd.errors import NothingSavedError, RunStopped, StorageError, StorageLostError, UserError
from rayasd.evaluation.scores import FIXED
from rayasd.files import gone, storage_error
from rayasd.host import usable_cpus, visible_gpus
from rayasd.report.run_report import RunReport
from rayasd.stages import STAGES, NumClips
from rayasd.study.choices import cache_folder
from rayasd.study.execution import Execution
from rayasd.study.watcher import Watcher
from rayasd.sweep import markers
from rayasd.sweep.driver import check_request, drive
from rayasd.sweep.executors import Executor, Request, Resources
from rayasd.sweep.executors.local import LocalExecutor
from rayasd.sweep.states import State, Sweep, read_progress, survey
from rayasd.sweep.store import RunStore
from rayasd.unit import STATE, Unit
from rayasd.wording import counted, near

if TYPE_CHECKING:
    from rayasd.cluster.metrics import Metrics


def complete(store: RunStore, asked: Sequence[Unit], how: Execution, watcher: Watcher, *, again: bool = True) -> Sweep:
    """Do the units asked for that are not done, then write the leaderboard. The caller holds the run's lock.

    A part of a run gets no leaderboard. ``again``: do once more what turns out to be damaged on the way.

    Returns states of all units of the run.

    Raises:
        UserError: no node can give what a unit asks for; ``StorageLostError``: storage failed while units ran.
        KeyboardInterrupt: units are left that could still be done; ``RunStopped``: somebody asked the run to stop.
    """
    specs = store.specs(
        device=how.device,
        cache=cache_folder(how.cache),
        num_threads=max(1, round(how.cpus_per_unit)),
        num_ranks=how.num_ranks,
    )
    sweep = survey(specs, set(asked), retry_failed=how.retry_failed, verify=how.verify)
    done = sum(sweep.states[unit] is State.DONE for unit in asked)
    if waiting := sweep.count(State.WAITING):
        watcher.say(f"{counted(waiting, 'unit')} to do, {done} done before, in {near(store.paths.root)}")
        for why, count in Counter(sweep.again.values()).items():
            watcher.warn(f"again    {counted(count, 'unit')} done before: {why}")
        _drive(store, sweep, how, watcher)
    elif done == len(asked):
        watcher.say(f"nothing to do: {counted(done, 'unit')} of {store.paths.root} done")
    watcher.ended(sweep, asked)
    scored = any(unit.stage == "detect" for unit in sweep.units(State.DONE))
    if store.part is None and scored and any(unit.stage == "detect" for unit in asked):
        _report(store, sweep, watcher, has_run=waiting > 0, html=how.html)
    if sweep.damaged and again:
        for unit in sweep.damaged:
            watcher.warn(f"damaged: {unit}; {'done again' if unit in asked else 'rayasd sweep does it again'}")
        if sweep.damaged <= set(asked):
            return complete(store, asked, how, watcher, again=False)
    return sweep


def check_execution(how: Execution) -> None:
    """Refuse at once what cannot be given, where that is known before data are read or Ray is started.

    Raises UserError: no node can give what a unit asks for, or that makes no sense.
    """
    has_cluster = (how.address or os.environ.get("RAY_ADDRESS") or "local") != "local"
    if how.executor == "mpi":
        _request(_mpi(how).nodes, how)
    elif how.executor == "local" or not has_cluster:
        _request([Resources(usable_cpus(), len(visible_gpus()))], how)


def _drive(store: RunStore, sweep: Sweep, how: Execution, watcher: Watcher) -> None:
    clips = NumClips.of(store.catalog().table)
    with watcher.busy(f"starting {how.executor}"):
        executor, metrics = _start(how, store)
    next_look, saved = 0.0, _saved(store)

    def on_change(sweep: Sweep) -> None:
        nonlocal next_look
        watcher.changed(sweep)
        began = time.monotonic()
        if began < next_look:
            return
        progress = read_progress(store.paths, sweep)
        watcher.progressed(sweep, progress)
        if metrics:
            metrics.publish(sweep.counts, progress)
        ended = time.monotonic()  # where many units run, reading how far they are takes time
        next_look = ended + max(watcher.interval, 5 * (ended - began))

    try:
        with watcher.driving(store):
            request = _request(executor.nodes, how)
            if request.gpus and how.device == "auto":  # a GPU that is given but not seen is an error
                sweep.specs = {unit: replace(spec, device="cuda") for unit, spec in sweep.specs.items()}
            where = executor.describe()
            for line in where:
                watcher.say(line)
            shown = getattr(executor, "dashboard", {})
            store.record("sweep started", waiting=sweep.count(State.WAITING), executor=where[0], dashboard=shown)
            costs = {unit: spec.work(clips) for unit, spec in sweep.specs.items()}
            left = drive(sweep, store, executor, request, max_tries=how.max_tries, fail_fast=how.fail_fast,
                         hang_seconds=how.hang_seconds, costs=costs, on_change=on_change)  # fmt: skip
            store.record("sweep ended", **{state.value: sweep.count(state) for state in State})
        if left:
            watcher.say(left)
            asked = store.stop_file.exists() and store.stop_file.read_text()
            raise RunStopped(left) if asked else KeyboardInterrupt(left)
    except RunStopped:
        raise
    except KeyboardInterrupt:
        with suppress(OSError):  # where that cannot be written, it is an interruption all the same
            store.record("sweep interrupted")
            if store.stop_file.exists() and not store.stop_file.read_text() and _saved(store) == saved:
                raise NothingSavedError(  # an empty stop file is of a time limit: see note_interruptions
                    "the time limit came before a unit or an epoch was saved: give the job more time; it would "
                    "begin again forever"
                ) from None
        raise
    except (OSError, StorageError) as error:
        trouble = storage_error(error, store.paths.root, Path("/"))
        if not store.paths.catalog.exists():
            trouble = gone(store.paths.root)
        if trouble is None:
            raise
        raise StorageLostError(str(trouble)) from error
    finally:
        executor.close()
        for unit in sweep.units(State.RUNNING):
            with suppress(OSError):
                store.paths.progress(unit).unlink()


def _saved(store: RunStore) -> dict[Path, int]:
    """Return when each finished unit and each state of a training was written."""
    return {
        path: path.stat().st_mtime_ns
        for stage in STAGES.values()
        for name in (f"{stage.hidden}DONE", STATE)
        for path in store.paths.root.glob(f"{stage.folder.format(variant='*', machine='*', seed='*')}/{name}")
    }


def _report(store: RunStore, sweep: Sweep, watcher: Watcher, *, has_run: bool, html: bool) -> None:
    """Write leaderboard and page where they are not current; damaged scores are noted in the sweep instead."""
    from rayasd.report.html.page import write_page  # a second to import

    store.check_held()
    report = RunReport(store, sweep, store.catalog(), store.config().evaluation)
    if not report.catalog.has_tests:
        watcher.say(
            f"no test clips, so nothing is evaluated or ranked: rayasd score and pack take {FIXED[0]}, {FIXED[1]}; "
            f"rayasd report {near(store.paths.root)} shows thresholds"
        )
        return
    if not has_run and report.is_current:
        watcher.say(f"leaderboard up to date: {near(store.paths.leaderboard('md'))}")
        watcher.reported(report, is_new=False)
        if html and not store.paths.html.exists():
            watcher.say(write_page(report))
        return
    for unit, why in report.damaged.items():
        markers.forget(sweep.specs[unit])
        sweep.move(unit, State.FAILED, why)
        sweep.damaged.add(unit)
    if not sweep.damaged:
        watcher.reported(report, is_new=True)
        watcher.say(report.write())
        if html:
            with watcher.busy("writing report.html"):
                written = write_page(report)
            watcher.say(written)


def _request(nodes: Sequence[Resources], how: Execution) -> Request:
    """Settle what a unit asks for: by default one GPU per rank, where there are any.

    Raises UserError: no node can give it, or it makes no sense.
    """
    gpus, num_ranks, most = how.gpus_per_unit, how.num_ranks, max((node.gpus for node in nodes), default=0.0)
    if how.device == "cuda" and not most:
        raise UserError("--device cuda, but no node has a GPU: leave it out, or ask for nodes with GPUs")
    if how.device == "cpu" or (gpus is None and not most):
        gpus = 0.0
    elif gpus is None:
        gpus = float(num_ranks) if num_ranks > 1 else min(1.0, most)
    if gpus > 1 and gpus != int(gpus):
        raise UserError(f"--gpus-per-unit {gpus:g}: a part of one GPU, or a whole number")
    if gpus and num_ranks not in (1, gpus):
        raise UserError(f"--ranks-per-unit {num_ranks} with --gpus-per-unit {gpus:g}: give as many GPUs, or 0")
    request = Request(how.cpus_per_unit, gpus)
    check_request(request, nodes)
    return request


def _start(how: Execution, store: RunStore) -> "tuple[Executor, Metrics | None]":
    if how.executor == "local":
        return LocalExecutor(), None
    if how.executor == "mpi":
        return _mpi(how), None
    from rayasd.cluster.executor import RayExecutor
    from rayasd.cluster.metrics import Metrics

    name = f"sweep {store.paths.root}"
    executor = RayExecutor(how.address, store.token_file, name=name, dashboard_host=how.dashboard_host)
    return executor, Metrics(store.paths.root.name, executor.name)


def _mpi(how: Execution) -> Executor:
    from rayasd.sweep.executors.mpi import MPIExecutor

    return MPIExecutor(how.cpus_per_unit)
