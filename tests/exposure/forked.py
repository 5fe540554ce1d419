"""Ranks forked from a process that has imported torch: each starts in no time, where it would take seconds of work.

They die with that process, not with their supervisor: tests of this need the real start.
"""

import multiprocessing
import os
import subprocess
import sys
from multiprocessing import Pipe, forkserver
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from rayasd.exposure import ranks


class _Process:
    """A forked process as its supervisor sees it: the few methods of ``subprocess.Popen`` that this one calls."""

    def __init__(self, process: BaseProcess) -> None:
        self.kill, self._process = process.kill, process

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self) -> int | None:
        self._process.join()
        return self._process.exitcode


def start() -> tuple[Connection, "subprocess.Popen[bytes]"]:
    """Start a rank, in place of what the module of ranks does."""
    ours, theirs = Pipe()
    process = multiprocessing.get_context("forkserver").Process(target=_serve, args=(theirs,))
    process.start()
    theirs.close()
    return ours, _Process(process)  # type: ignore[return-value]


def _serve(pipe: Connection) -> None:
    sys.argv[1:] = [str(os.dup(pipe.fileno()))]
    pipe.close()
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    ranks._serve()


def preload(*modules: str) -> None:
    """Have the process that forks import these modules; before the first rank is started."""
    forkserver.set_forkserver_preload([*modules, __name__])


def stop() -> None:
    """End the process that forks."""
    forkserver._forkserver._stop()  # type: ignore[attr-defined]
