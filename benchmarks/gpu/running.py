"""Run each part in a process of its own, for a limited time, and take its rows as they come."""

import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.gpu.results import Outcome, Row, number
from rayasd.errors import one_line
from rayasd.host import end_with_parent, how_it_ended

PartFunction = Callable[["Work"], Iterator[Row]]


@dataclass(frozen=True)
class Work:
    """What every part works on."""

    folder: Path
    """Temporary: recordings, cache and run."""
    tiny: bool
    """Sizes for a CPU and for tests."""


def run_part(name: str, function: PartFunction, work: Work, seconds: float) -> Outcome:
    """Run one part in a fork of this process, and kill it after so many seconds; its rows until then are kept.

    A fork spares each part the imports. It is safe because this process has only imported modules. A part cannot harm
    another one: a CUDA error and the peak of the memory end with the process.
    """
    outcome, began, context = Outcome(name), time.monotonic(), get_context("fork")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(function, work, sending))
    process.start()
    sending.close()
    ended = False
    try:
        while receiving.poll(max(0.0, began + seconds - time.monotonic())):
            message = receiving.recv()
            if isinstance(message, Row):
                outcome.rows.append(message)
                if message.passed is False:
                    outcome.fail(f"{message.what}: {number(message.value)} is not {message.bound}")
                continue
            ended = True
            status, reason = message
            if status == "failed":
                outcome.fail(reason)
            break
        else:
            outcome.fail(f"it took longer than its {seconds:.0f} s")
    except EOFError:
        process.join()
    process.join(10 if ended else 0)
    if process.is_alive():
        process.kill()
        process.join()
    if not ended:
        outcome.fail(f"its process ended by {how_it_ended(process.exitcode or 0)}")
    outcome.seconds = time.monotonic() - began
    return outcome


def _send(function: PartFunction, work: Work, sending: Connection) -> None:
    """Send a part's rows and then how it ended."""
    end_with_parent(signal.SIGKILL)
    end = ("ok", "")
    try:
        for row in function(work):
            sending.send(row)
    except Exception as error:  # whatever a library raises: the other parts go on
        end = ("failed", f"{type(error).__name__}: {one_line(error)}")
    sending.send(end)
