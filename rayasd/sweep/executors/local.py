"""Units in worker processes on this host: no cluster, no Ray."""

import os
import signal
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from rayasd.host import end_with_parent, how_it_ended, spawning, usable_cpus, visible_gpus
from rayasd.sweep.executors import Resources
from rayasd.sweep.worker import Outcome, do_unit
from rayasd.unit import Unit, UnitSpec


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    gpus: tuple[int, ...]  # GPUs that the worker sees; fixed for its life, as CUDA reads them once
    unit: Unit | None = None
    share: float = 0.0  # amount of each that the running unit holds


class LocalExecutor:
    """A pool of worker processes, each doing one unit at a time; a worker that dies takes only its unit with it."""

    def __init__(self, num_cpus: int | None = None, gpus: list[str] | None = None) -> None:
        self.gpus = visible_gpus() if gpus is None else gpus
        self.nodes = [Resources(num_cpus or usable_cpus(), len(self.gpus))]
        self._workers: list[_Worker] = []

    def describe(self) -> list[str]:
        """Return where units run."""
        return [f"this host, {self.nodes[0]}"]

    def submit(self, spec: UnitSpec, resources: Resources) -> None:
        """Give the unit to an idle worker, or to a new one."""
        gpus = self._free_gpus(resources.gpus)
        for worker in [w for w in self._workers if w.unit is None and not w.process.is_alive()]:
            self._workers.remove(worker)
        idle = [w for w in self._workers if w.unit is None and w.gpus == gpus]
        worker = idle[0] if idle else self._start(gpus)
        try:
            worker.pipe.send(spec)
        except OSError:  # it has died since it was looked at; a new one keeps its end open while it is sent to
            self._workers.remove(worker)
            worker = self._start(gpus)
            worker.pipe.send(spec)
        worker.unit, worker.share = spec.unit, min(resources.gpus, 1.0)

    def wait(self, timeout: float) -> list[Outcome]:
        """Collect what finished; a closed pipe is a worker that died."""
        busy = {w.pipe: w for w in self._workers if w.unit is not None}
        if not busy:
            time.sleep(timeout)
            return []
        outcomes = []
        for pipe in wait(list(busy), timeout):
            worker = busy[pipe]  # type: ignore[index]
            assert worker.unit is not None
            try:
                outcomes.append(worker.pipe.recv())
            except (EOFError, OSError):
                worker.process.join()
                cause = how_it_ended(worker.process.exitcode)
                outcomes.append(Outcome(worker.unit, f"its worker process died ({cause})"))
                self._workers.remove(worker)
            worker.unit, worker.share = None, 0.0
        return outcomes

    def cancel(self, unit: Unit) -> None:
        """Kill the unit's worker: one that hangs may not listen to anything less."""
        for worker in [w for w in self._workers if w.unit == unit]:
            worker.process.kill()
            worker.process.join()
            self._workers.remove(worker)

    def close(self) -> None:
        """End the workers."""
        for worker in self._workers:
            worker.process.terminate()
        for worker in self._workers:
            worker.process.join(5)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
        self._workers.clear()

    def _free_gpus(self, wanted: float) -> tuple[int, ...]:
        """Choose the GPUs of a unit: a part of the one that is used least, or several that nobody uses."""
        used = [sum(w.share for w in self._workers if w.unit and g in w.gpus) for g in range(len(self.gpus))]
        if wanted <= 1:
            return (min(range(len(used)), key=lambda g: used[g]),) if wanted else ()
        return tuple(g for g in range(len(used)) if used[g] == 0)[: round(wanted)]

    def _start(self, gpus: tuple[int, ...]) -> _Worker:
        ours, theirs = spawning.Pipe()
        visible = ",".join(self.gpus[gpu] for gpu in gpus)
        process = spawning.Process(target=_serve, args=(theirs, visible), daemon=True)
        process.start()
        theirs.close()
        worker = _Worker(process, ours, gpus)
        self._workers.append(worker)
        return worker


def _serve(pipe: Connection, visible_gpus: str) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = visible_gpus
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's to handle
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with_parent(signal.SIGKILL)
    while True:
        try:
            spec = pipe.recv()
        except EOFError:
            return
        pipe.send(do_unit(spec))
