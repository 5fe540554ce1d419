"""Run a command on a Ray cluster of its own, made of one launcher a node, and end exactly what was started.

The launchers meet in a folder that all nodes see. The head (rank 0) puts its address and the job's secret there, starts
Ray, waits for the others, runs the command and puts its exit code there; the others start Ray, and end it once the exit
code is there. Whatever goes wrong on a node is written there too, so that all end with its reason.
"""

import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from rayasd.cluster.daemon import SETTINGS, RayNode, free_ports
from rayasd.cluster.folder import private_folder, remove_abandoned
from rayasd.cluster.job import Command
from rayasd.cluster.meeting import Meeting, leave_mark, read
from rayasd.cluster.placement import Placement
from rayasd.cluster.settings import write_token
from rayasd.errors import EXIT_INTERRUPTED, EXIT_STOPPED, UserError
from rayasd.files import write_json
from rayasd.host import end_with_parent, how_it_ended, why_silent
from rayasd.printing import tell

EXIT_HEAD_LOST = 76
"""A worker's exit code when the head's host went without a word, and perhaps a batch script with it."""

_POLL_SECONDS = 0.5
_SELDOM_SECONDS = 5.0  # between looks for trouble once all are together: each is a question to the file system
_LAST_WORD_SECONDS = 20.0  # for the head to say why it ends: a lost one says nothing


class Interruption(Exception):  # noqa: N818 - no error
    """A signal asked the job to end."""


def launch(
    placement: Placement, command: Sequence[str], environment: Mapping[str, str], *, folder: Path, temp_root: Path,
    wait_seconds: float, min_nodes: int = 1, dashboard_host: str = "127.0.0.1",
) -> int:  # fmt: skip
    """Do this node's part; returns the exit code of the command, 75 when a signal ended it, 76 for a lost head, or 1.

    ``command``: words of a rayasd command line, run on the head with ``RAY_ADDRESS`` set. ``folder`` is seen by all
    nodes; ``temp_root`` is each node's own. It goes on with ``min_nodes`` where others' Rays do not start, or do not
    come in time.

    Raises UserError: the head's Ray does not start, or too few nodes come together.
    """
    meeting = Meeting(folder / f"launch-{placement.job}")
    settings = {**environment, **SETTINGS, "RAY_AUTH_TOKEN_PATH": str(meeting.token)}
    settings.pop("RAY_AUTH_TOKEN", None)
    signals = _catch_signals(placement)
    if placement.by_mpi:
        end_with_parent()  # mpirun, if killed, leaves its ranks
    for earlier in placement.earlier:  # what an attempt left that was killed
        remove_abandoned(temp_root, earlier)
        for meeting_of_it in folder.glob(f"launch-{earlier}") if placement.is_head else ():
            shutil.rmtree(meeting_of_it, ignore_errors=True)
    if placement.is_head:
        _convene(meeting)
    node, failed = None, True
    try:
        # A worker waits first: before the head has convened the meeting, nobody can be told of trouble.
        head = None if placement.is_head else _wait_for_head(meeting, wait_seconds, signals)
        if head is not None and not head:  # lost with its host while the launchers were started
            tell(f"rank 0 did not come within {wait_seconds:g} s: nothing in {meeting.root}", err=True)
            return EXIT_HEAD_LOST
        ports, holds = free_ports(placement)
        folder_of_rays = private_folder(temp_root, placement.job)
        node = RayNode(placement, settings, ports, folder_of_rays, dashboard_host, holds=holds)
        mark = secrets.token_hex(8) if head is None else str(head["mark"])
        leave_mark(node.folder, mark, os.uname().nodename)
        if head is None:
            code = _head(node, meeting, mark, command, wait_seconds, min_nodes, signals)
        else:
            code = _worker(node, meeting, str(head["address"]), signals)
        failed = code not in (0, EXIT_INTERRUPTED, EXIT_STOPPED)
        return code
    except Interruption:
        failed = False
        return EXIT_INTERRUPTED
    except UserError as error:
        meeting.report(str(error))
        raise
    finally:
        if placement.is_head:
            meeting.token.unlink(missing_ok=True)  # first, since a batch system may kill us before the rest is done
            _wait_for_others(meeting, placement)
        if node is not None:
            node.stop(folder / f"ray-logs-{placement.job}-{placement.rank}" if failed else None)
        if placement.is_head:
            shutil.rmtree(meeting.root, ignore_errors=True)


def _convene(meeting: Meeting) -> None:
    """Make the meeting's folder and the job's secret in it. Raises UserError: there is one of this name."""
    try:
        meeting.root.mkdir(parents=True, mode=0o700)
    except FileExistsError:
        raise UserError(
            f"{meeting.root} is there: a job of this name runs, or was killed; choose another --job, or delete it"
        ) from None
    write_token(meeting.token, secrets.token_hex(32))


def _head(
    node: RayNode, meeting: Meeting, mark: str, command: Sequence[str], wait_seconds: float, min_nodes: int,
    signals: list[int],
) -> int:  # fmt: skip
    node.start(None)
    address = f"{node.placement.address}:{node.ports}"
    write_json(meeting.head, {"address": address, "mark": mark})
    run = Command(command, node, address, meeting.complete)
    driver = run.process
    try:
        _wait_for_nodes(node, meeting, driver, wait_seconds, min_nodes, signals)
        write_json(meeting.complete, {})
        run.show()
        looked = 0.0
        while driver.poll() is None:
            if time.monotonic() - looked > _SELDOM_SECONDS:
                looked = time.monotonic()
                with suppress(OSError):
                    os.utime(meeting.head)  # for rayasd gc
            while signals:  # on SIGUSR1, units save at their epoch's end; on the others, they end at once
                driver.send_signal(signal.SIGUSR1 if signals.pop(0) == signal.SIGUSR1 else signal.SIGTERM)
            time.sleep(_POLL_SECONDS)
    finally:
        run.end()
    code: int = driver.returncode
    if code < 0:  # killed, for memory or by somebody: all that was finished is kept
        tell(f"the driver was ended by {how_it_ended(code)}", err=True)
        code = EXIT_INTERRUPTED
    write_json(meeting.end, {"code": code})
    return code


def _wait_for_nodes(
    node: RayNode, meeting: Meeting, driver: "subprocess.Popen[bytes]", wait_seconds: float, min_nodes: int,
    signals: list[int],
) -> None:  # fmt: skip
    """Wait until Ray has as many nodes as there are launchers, or as those whose Ray starts, or the driver fails.

    Raises UserError: the head's Ray has failed or a node has told of trouble, or too few nodes came; says who is
    missing.
    """
    size, until, alive = node.placement.size, time.monotonic() + wait_seconds, list[str]()
    token = meeting.token.read_text()
    while len(alive) < size and not (alive and len(alive) + meeting.failed(size) >= size):
        if node.ended and not node.try_again():
            raise UserError(node.last_words())
        if signals:
            raise Interruption
        if trouble := meeting.trouble():
            raise UserError(trouble)
        if driver.poll():
            return  # wrong options, mostly
        if time.monotonic() > until:
            break
        time.sleep(_POLL_SECONDS)
        alive = node.alive(token)
    if len(alive) == size:
        return
    missing = "; ".join(meeting.missing(size, set(alive)))
    if len(alive) < max(1, min_nodes):
        within = f" within {wait_seconds:g} s" if time.monotonic() > until else ""
        raise UserError(f"{len(alive)} of {size} nodes came together{within}: {missing}")
    tell(f"{len(alive)} of {size} nodes came, and the job continues with these: {missing}", err=True)


def _wait_for_head(meeting: Meeting, wait_seconds: float, signals: list[int]) -> Mapping[str, Any]:
    """Wait until the head says where its Ray listens; empty if it does not. Raises UserError: it tells of trouble."""
    until = time.monotonic() + wait_seconds
    while not (head := read(meeting.head)) and time.monotonic() < until:
        if signals:
            raise Interruption
        if trouble := meeting.trouble():
            raise UserError(trouble)
        time.sleep(_POLL_SECONDS)
    return head


def _worker(node: RayNode, meeting: Meeting, head: str, signals: list[int]) -> int:
    mine, host = meeting.node(node.placement.rank), os.uname().nodename
    write_json(mine, {"host": host, "address": node.placement.address})
    node.start(head)
    ended_at = asked_at = None
    look_at, together, failed = 0.0, False, False
    try:
        while True:
            # a signal goes to all nodes: the head ends the driver first, then us; but somebody may mean us alone
            asked_at = asked_at or (time.monotonic() if signals else None)
            if time.monotonic() >= look_at or node.ended:
                if trouble := meeting.trouble():
                    raise UserError(trouble)
                if not meeting.root.exists():
                    return 0
                together = together or meeting.complete.exists()
                look_at = time.monotonic() + (_SELDOM_SECONDS if together else 0.0)
            if meeting.end.exists():
                return 0  # what became of the command is the head's to say
            if asked_at and time.monotonic() - asked_at > _LAST_WORD_SECONDS:
                raise Interruption
            if node.ended:  # Ray leaves, too, when it has lost the head's
                ended_at = ended_at or time.monotonic()
                heads, _, port = head.rpartition(":")
                if not why_silent(heads, int(port)):
                    if together:
                        tell(f"{node.last_words()}; the others go on", err=True)
                        return 0
                    if node.try_again():
                        ended_at = None
                    elif not failed:  # the head says whether the others are enough
                        failed = True
                        write_json(mine, {"host": host, "failed": node.last_words()})
                elif time.monotonic() - ended_at > _LAST_WORD_SECONDS:
                    tell(f"the head at {head} is lost: {node.last_words()}", err=True)
                    return EXIT_HEAD_LOST
            time.sleep(_POLL_SECONDS)
    finally:
        with suppress(OSError):
            write_json(mine, {"left": True})


def _wait_for_others(meeting: Meeting, placement: Placement) -> None:
    """Give the others time to read how it ended: a network file system may show it late. Lost ones never will."""
    if not meeting.end.exists():  # we were interrupted, or failed, before there was a command
        write_json(meeting.end, {"code": 1})
    until = time.monotonic() + _LAST_WORD_SECONDS
    early = bool(meeting.trouble()) and not meeting.head.exists()  # nobody could say yet that he had come
    came = [rank for rank in range(1, placement.size) if early or meeting.node(rank).exists()]
    while time.monotonic() < until and any("left" not in read(meeting.node(rank)) for rank in came):
        time.sleep(_POLL_SECONDS / 5)


def _catch_signals(placement: Placement) -> list[int]:
    """Note SIGTERM, SIGINT, SIGHUP and SIGUSR1 (a batch system's word of a time limit) instead of dying of them.

    On a worker SIGUSR1 counts for nothing: units save at their epoch's end, and when they have, the head ends us.
    """
    caught: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if number != signal.SIGUSR1 or placement.is_head:
            caught.append(number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, note)
    return caught
