"""What a killed process leaves in the middle of its work does not stop, slow or confuse those who come after it."""

import multiprocessing
import os
import signal
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from rayasd.host import end_with_parent
from rayasd.report import write
from rayasd.report.run_report import RunReport
from rayasd.sweep.driver import drive
from rayasd.sweep.executors import Request, Resources
from rayasd.sweep.executors.local import LocalExecutor
from rayasd.sweep.markers import mark_done
from rayasd.sweep.states import State, survey
from rayasd.sweep.store import RunStore
from rayasd.sweep.worker import Outcome
from tests.cli.test_sweep import wait_until
from tests.conftest import SpecOf, small_sweep
from tests.faults.bench import Bench
from tests.faults.victims import Process, Processes


@pytest.mark.parametrize("cut", [b'{"time": "2026", "event": "unit sta', '{"event": "é'.encode()[:-1]])
def test_an_event_after_a_cut_line_has_a_line_of_its_own(tmp_path: Path, cut: bytes):
    store = RunStore(tmp_path)
    store.record("first")
    with store.events_file.open("ab") as file:
        file.write(cut)
    assert [event["event"] for event in store.events()] == ["first"]
    store.record("second")
    store.record("third")
    assert [event["event"] for event in store.events()] == ["first", "second", "third"]
    assert len(store.events_file.read_bytes().splitlines()) == 4


def test_whoever_drives_a_run_next_removes_what_the_last_driver_left(tmp_path: Path):
    store = RunStore(tmp_path)
    left = [
        tmp_path / ".cells.parquet.abc.part",
        tmp_path / "ensembles/variant=both+seeds/machine=fan/seed=all/.part-0.parquet.abc.part",
        tmp_path / "plots/.both-exposure.epochs.svg.abc.part",
        tmp_path / "ray-token",
    ]
    of_unit = tmp_path / "models/both/fan/seed=0/.state.pt.abc.part"  # its unit's to remove, which may still be written
    for path in (*left, of_unit):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    with RunStore(tmp_path, ["pump"]).held():
        assert all(path.exists() for path in left)  # of who drives the whole
    with store.held():
        assert not any(path.exists() for path in left)
    assert of_unit.exists()


def test_a_unit_whose_worker_died_after_its_marker_stood_is_done(spec_of: SpecOf):
    spec = spec_of()
    store = RunStore(spec.run.root)

    class Dying:
        nodes = (Resources(1),)
        submitted = 0

        def submit(self, spec: object, resources: Resources) -> None:
            self.submitted += 1

        def wait(self, timeout: float) -> list[Outcome]:
            mark_done(spec)
            return [Outcome(spec.unit, "its worker process died (SIGKILL)")]

    executor = Dying()
    sweep = survey({spec.unit: spec}, {spec.unit}, retry_failed=False)
    drive(sweep, store, executor, Request(1, 0))  # type: ignore[arg-type]
    assert sweep.states[spec.unit] is State.DONE
    assert executor.submitted == 1
    assert [event["event"] for event in store.events()] == ["unit started", "unit done"]


@pytest.mark.slow
def test_a_worker_that_dies_while_it_is_idle_is_replaced(spec_of: SpecOf, monkeypatch: pytest.MonkeyPatch):
    executor = LocalExecutor(1, [])
    try:
        executor.submit(spec_of("detect"), Resources(1))
        wait_until(lambda: executor.wait(0.1))
        (worker,) = executor._workers
        os.kill(worker.process.pid, signal.SIGKILL)
        worker.process.join()
        monkeypatch.setattr(worker.process, "is_alive", lambda: True)  # as it is for a moment after its pipe is closed
        executor.submit(spec_of("detect"), Resources(1))
        assert executor._workers != [worker]
        (outcome,) = next(outcomes for _ in range(600) if (outcomes := executor.wait(0.1)))
        assert outcome.error.startswith("embed fan both seed 0 of")
    finally:
        executor.close()


def orphan(told: Connection) -> None:
    """Start a process and be killed before it can ask the kernel to end it."""
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    child = multiprocessing.get_context("spawn").Process(target=wait_for_ever, args=(theirs,))
    child.start()
    theirs.close()
    ours.recv()
    told.send(child.pid)
    told.recv()
    os.kill(os.getpid(), signal.SIGKILL)


def wait_for_ever(told: Connection) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    told.send("began")
    wait_until(lambda: os.getppid() != parent.pid)
    end_with_parent(signal.SIGKILL)
    signal.pause()


@pytest.mark.slow
def test_a_process_whose_parent_died_before_it_asked_ends_all_the_same():
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    parent = multiprocessing.get_context("spawn").Process(target=orphan, args=(theirs,))
    parent.start()
    child = Process.of(ours.recv())
    assert child.alive
    ours.send("go on")
    parent.join()
    wait_until(lambda: not child.alive, seconds=30)


@pytest.mark.slow
def test_a_driver_that_is_killed_while_it_checks_extractors_leaves_no_process(bench: Bench, tmp_path: Path):
    run = tmp_path / "run"
    seen = Processes(run)
    with bench.start(*small_sweep(bench.tree, run)) as driver:
        wait_until(lambda: seen.others(driver.pid), driver)
        assert not (run / "events.jsonl").exists()  # it is not a worker
        driver.kill()
    assert len(seen.seen) > 1
    assert seen.alive_after(60) == []
    bench.goes_on(run)


@pytest.mark.slow
def test_a_sweep_goes_on_when_the_process_that_checks_extractors_is_killed(bench: Bench, tmp_path: Path):
    seen = Processes(tmp_path / "run")
    words = small_sweep(bench.tree, tmp_path / "run", "--variants", "statistics", "--machines", "fan")
    with bench.start(*words) as driver:
        wait_until(lambda: seen.others(driver.pid), driver)
        ((checking, _),) = seen.others(driver.pid)
        assert checking.kill()
        output, _ = driver.communicate(timeout=240)
    assert driver.returncode == 0, output


@pytest.mark.slow
def test_a_leaderboard_of_which_only_a_part_was_replaced_does_not_stand(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = bench.copy(tmp_path / "run")
    report = RunReport.of(run).by_settings(["evaluation.year=2022"])
    rules = report.evaluation

    def killed(*arguments: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(write, "_markdown", killed)
    with pytest.raises(KeyboardInterrupt):
        report.write()
    assert not replace(RunReport.of(run), evaluation=rules).is_current
    monkeypatch.undo()
    report.write()
    assert replace(RunReport.of(run), evaluation=rules).is_current
