"""Where units run, for how long, and what becomes of signals: the options that all commands which run units share."""

import signal
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

import click
import pyarrow.compute as pc
from rich.console import Console
from rich.text import Text

from rayasd.cli.display import Display, print_failed_cells, print_failures
from rayasd.cli.options import Execution, cache_folder
from rayasd.cli.reporting import print_report, write_leaderboard
from rayasd.errors import EXIT_STOPPED, EXIT_UNITS_FAILED, StorageError, UserError
from rayasd.files import gone, storage_error
from rayasd.host import usable_cpus, visible_gpus
from rayasd.parquet import read_parquet
from rayasd.report.run_report import RunReport
from rayasd.stages import NumClips
from rayasd.sweep import markers
from rayasd.sweep.driver import check_request, drive
from rayasd.sweep.executors import Executor, Reported, Request, Resources
from rayasd.sweep.executors.local import LocalExecutor
from rayasd.sweep.states import State, Sweep, survey
from rayasd.sweep.store import RunStore
from rayasd.unit import Unit
from rayasd.wording import counted

if TYPE_CHECKING:
    from rayasd.cluster.metrics import Metrics


def execute(console: Console, store: RunStore, asked: Sequence[Unit], how: Execution, *, again: bool = True) -> int:
    """Do the units asked for that are not done, and report; returns the exit code.

    ``again``: do once more what turns out to be damaged on the way.
    """
    began = time.monotonic()
    specs = store.specs(
        device=how.device,
        cache=cache_folder(how.cache),
        num_threads=max(1, round(how.cpus_per_unit)),
        num_ranks=how.num_ranks,
    )
    sweep = survey(specs, set(asked), retry_failed=how.retry_failed, verify=how.verify)
    done = sum(sweep.states[unit] is State.DONE for unit in asked)
    waiting = sweep.count(State.WAITING)
    if waiting:
        begun = f"{counted(waiting, 'unit')} to do, {done} done before, in {store.paths.root}"
        console.print(begun, highlight=False)
        for why, count in Counter(sweep.again.values()).items():
            console.print(Text(f"again    {counted(count, 'unit')} done before: {why}", style="yellow"), soft_wrap=True)
        if stopped := _drive(console, store, sweep, how, began):
            return stopped
    elif done == len(asked):
        console.print(f"nothing to do: {counted(done, 'unit')} of {store.paths.root} done", highlight=False)
    print_failures(console, sweep, asked)
    complete = all(sweep.states[unit] is State.DONE for unit in asked)
    scored = any(unit.stage == "detect" for unit in sweep.units(State.DONE))
    if store.part is None and scored and any(unit.stage == "detect" for unit in asked):
        complete = _report(console, store, sweep, waiting) and complete
    if sweep.damaged and again:
        for unit in sweep.damaged:
            remedy = "done again" if unit in asked else "rayasd sweep does it again"
            console.print(Text(f"damaged: {unit}; {remedy}", style="yellow"), soft_wrap=True)
        if sweep.damaged <= set(asked):
            return execute(console, store, asked, how, again=False)
    return 0 if complete else 1


def _drive(console: Console, store: RunStore, sweep: Sweep, how: Execution, began: float) -> int | None:
    """Run what waits, shown as it goes; returns the exit code if the run was stopped by somebody.

    Raises:
        KeyboardInterrupt: units are left that could still be done.

    """
    clips = NumClips.of(store.catalog().table)
    running, metrics = _start(how, store)
    interrupted = _note_interruptions(store, how.grace)  # after Ray's own handler, which ends us at once

    def publish(sweep: Sweep, progress: Reported) -> None:
        if metrics:
            metrics.publish(sweep.counts, progress)

    try:
        request = _request(running.nodes, how)
        where = running.describe()
        console.print("\n".join(where), highlight=False, soft_wrap=True)
        waiting = sweep.count(State.WAITING)
        store.record("sweep started", waiting=waiting, executor=where[0])
        with Display(console, store.paths, began, publish) as display:

            def on_change(sweep: Sweep) -> None:
                if interrupted.is_set():
                    raise KeyboardInterrupt
                display.update(sweep)

            costs = {unit: spec.work(clips) for unit, spec in sweep.specs.items()}
            left = drive(sweep, store, running, request, max_tries=how.max_tries, fail_fast=how.fail_fast,
                         hang_seconds=how.hang_seconds, costs=costs, on_change=on_change)  # fmt: skip
        store.record("sweep ended", **{state.value: sweep.count(state) for state in State})
        if left:
            console.print(left, highlight=False)
            if store.stop_file.exists() and store.stop_file.read_text():
                return EXIT_STOPPED
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        with suppress(OSError):  # where that cannot be written, it is an interruption all the same
            store.record("sweep interrupted")
        raise
    except (OSError, StorageError) as error:
        trouble = storage_error(error, store.paths.root, Path("/"))
        if not store.paths.catalog.exists():
            trouble = gone(store.paths.root)
        if trouble is None:
            raise
        click.echo(f"error: {trouble}", err=True)
        return EXIT_UNITS_FAILED
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        running.close()
        for unit in sweep.units(State.RUNNING):
            with suppress(OSError):
                store.paths.progress(unit).unlink()
    return None


def _report(console: Console, store: RunStore, sweep: Sweep, waiting: int) -> bool:
    """Show the leaderboard; tells whether every ranked system has all its cells."""
    report = RunReport(store, sweep, store.catalog(), store.config().evaluation)
    if waiting == 0 and report.is_current:
        console.print(f"its leaderboard stands: {store.paths.leaderboard('md')}", highlight=False, soft_wrap=True)
    else:
        for unit, why in report.damaged.items():
            markers.forget(sweep.specs[unit])
            sweep.move(unit, State.FAILED, why)
            sweep.damaged.add(unit)
        if sweep.damaged:
            return False
        print_report(console, report)
        write_leaderboard(console, report)
    failed = print_failed_cells(console, read_parquet(store.paths.cells))
    ranked = read_parquet(store.paths.leaderboard("parquet"), filters=[("rank", ">", 0)])
    lacking = pc.any(pc.less(ranked["cells_ok"], ranked["cells_expected"])).as_py()
    return not (failed and lacking)


def check_execution(how: Execution) -> None:
    """Refuse at once what cannot be given, where that is known before data are read or Ray is started.

    Raises:
        UserError: no node can give what a unit asks for, or that makes no sense.

    """
    standing = (how.address or "local") != "local"
    if how.executor == "mpi":
        _request(_mpi(how).nodes, how)
    elif how.executor == "local" or not standing:
        _request([Resources(usable_cpus(), len(visible_gpus()))], how)


def _request(nodes: Sequence[Resources], how: Execution) -> Request:
    """Settle what a unit asks for: by default one GPU per rank, where there are any.

    Raises:
        UserError: no node can give it, or it makes no sense.

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


def _start(how: Execution, store: RunStore) -> "tuple[Executor, Metrics | None]":
    if how.executor == "local":
        return LocalExecutor(), None
    if how.executor == "mpi":
        return _mpi(how), None
    from rayasd.cluster.executor import RayExecutor
    from rayasd.cluster.metrics import Metrics

    executor = RayExecutor(how.address, store.token_file)
    return executor, Metrics(store.paths.root.name, executor.name)


def _mpi(how: Execution) -> Executor:
    from rayasd.sweep.executors.mpi import MPIExecutor

    return MPIExecutor(how.cpus_per_unit)
