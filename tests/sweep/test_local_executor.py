import os
import signal
import time
from dataclasses import replace

import pytest

from rayasd import presets
from rayasd.sweep.executors import Resources
from rayasd.sweep.executors.local import LocalExecutor
from tests.conftest import SMALL, SpecOf


def long_training(spec_of: SpecOf):
    return spec_of(config=presets.load("demo", [*SMALL, "exposure.epochs=30000"]))


def wait_for_progress(spec, executor: LocalExecutor) -> None:
    until = time.monotonic() + 120
    while not spec.run.progress(spec.unit).exists() and time.monotonic() < until:
        assert executor.wait(0.1) == []


def test_a_units_share_of_gpus():
    executor = LocalExecutor(4, ["a", "b", "c", "d"])

    class Busy:
        def __init__(self, gpus: tuple[int, ...], share: float) -> None:
            self.gpus, self.share, self.unit = gpus, share, "some"

    assert executor._free_gpus(0.0) == ()
    assert executor._free_gpus(1.0) == (0,)
    assert executor._free_gpus(3.0) == (0, 1, 2)
    executor._workers += [Busy((0,), 0.5), Busy((2,), 1.0)]  # type: ignore[list-item]
    assert executor._free_gpus(0.5) == (1,)  # the one that is used least
    assert executor._free_gpus(2.0) == (1, 3)
    executor._workers.clear()


def test_a_cancelled_unit_is_gone_at_once_even_if_it_is_frozen(spec_of: SpecOf):
    executor, spec = LocalExecutor(1, []), long_training(spec_of)
    try:
        executor.submit(spec, Resources(1))
        wait_for_progress(spec, executor)
        (worker,) = executor._workers
        os.kill(worker.process.pid, signal.SIGSTOP)
        executor.cancel(spec.unit)
        assert not worker.process.is_alive()
        assert executor.wait(0.2) == []
        executor.submit(spec_of("detect"), Resources(1))  # has no embeddings: the next unit has a worker of its own
        until = time.monotonic() + 120
        while not (outcomes := executor.wait(0.5)) and time.monotonic() < until:
            pass
        assert outcomes[0].error.startswith("embed fan both seed 0 of")
    finally:
        executor.close()
    assert executor._workers == []


@pytest.mark.slow
def test_a_stop_is_heeded_at_the_epochs_end_and_goes_on_from_there(spec_of: SpecOf):
    executor, spec = LocalExecutor(1, []), long_training(spec_of)
    spec = replace(spec, stop=spec.run.root / "stop")
    try:
        executor.submit(spec, Resources(1))
        wait_for_progress(spec, executor)
        while not list(spec.output.glob("state.pt")):
            assert executor.wait(0.1) == []
        spec.stop.touch()
        until = time.monotonic() + 120
        while not (outcomes := executor.wait(0.5)) and time.monotonic() < until:
            pass
        assert [(outcome.error, outcome.stopped) for outcome in outcomes] == [(None, True)]
        assert (spec.output / "state.pt").exists()
        assert not spec.run.marker(spec.unit, "DONE").exists()
    finally:
        executor.close()
