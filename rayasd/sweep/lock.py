"""Who drives a run: a lock file that its holder renews, so that a holder that is gone is recognised from any host."""

import json
import os
import signal
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any

from rayasd.errors import UserError
from rayasd.files import now, read_record

RENEW_SECONDS = 5.0
GONE_SECONDS = 30.0
"""A lock that is not renewed for so long has no holder any more (its host lost power, or the network)."""


@contextmanager
def locked(lock: Path, **details: str) -> Iterator[None]:
    """Hold a lock while the block lasts; it tells who we are. A holder that is found to be gone is put aside.

    Raises:
        UserError: somebody holds it: says who and since when.

    """
    mine = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
        "since": now(),
        "job": os.environ.get("SLURM_JOB_ID"),
        "restart": int(os.environ.get("SLURM_RESTART_COUNT", "0")),
        **details,
    }
    while True:
        try:
            with lock.open("x", encoding="utf-8") as file:
                try:
                    json.dump(mine, file)
                    file.flush()
                except OSError:  # a full disk: nobody holds an empty lock
                    lock.unlink()
                    raise
            break
        except FileExistsError:
            refuse_if_held(lock, mine)
    released = Event()
    Thread(target=_renew, args=(lock, mine, released), daemon=True).start()
    try:
        yield
    finally:
        released.set()
        with suppress(OSError):  # its file system is gone or read-only by now
            if read_record(lock) == mine:
                lock.unlink()


def refuse_if_held(lock: Path, mine: Mapping[str, Any] | None = None) -> None:
    """Remove a lock whose holder is gone. Takes some seconds where the holder is on another host.

    Raises:
        UserError: somebody holds it.

    """
    holder = see_if_held(lock, mine)
    aside = lock.with_name(f".{lock.name}.{socket.gethostname()}.{os.getpid()}.part")
    with suppress(FileNotFoundError):
        lock.rename(aside)  # of several who find it left behind, one gets it
        if read_record(aside) == holder:
            aside.unlink()
        else:
            aside.rename(lock)  # somebody was quicker, and this is theirs


def see_if_held(lock: Path, mine: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Read a lock whose holder is gone, and leave it. Takes some seconds where the holder is on another host.

    Raises:
        UserError: somebody holds it.

    """
    holder = read_record(lock)
    if not _is_gone(lock, holder, mine or {}):
        who = {"pid": "?", "host": "?", "since": "?"} | holder
        holder_is = f"process {who['pid']} on {who['host']} since {who['since']}"
        raise UserError(f"{lock.parent} is held by {holder_is}: wait for it, or end it there")
    return holder


def holder_of(lock: Path) -> dict[str, Any]:
    """Read who holds a lock, with seconds since it was renewed; empty where nobody does, as can be told at once."""
    holder = read_record(lock)
    if not holder or _ended_here(lock, holder):
        return {}
    return {**holder, "silent": max(0.0, time.time() - _written(lock) / 1e9)}


def _is_gone(lock: Path, holder: Mapping[str, Any], mine: Mapping[str, Any]) -> bool:
    if _is_here(lock, holder):
        return _ended_here(lock, holder)
    if mine.get("job") and holder.get("job") == mine["job"] and holder.get("restart", 0) < mine["restart"]:
        return True  # our own batch job, before it was put back in the queue
    seen, since = _written(lock), time.monotonic()
    while time.monotonic() - since < GONE_SECONDS:
        time.sleep(min(0.5, GONE_SECONDS / 10))
        if _written(lock) != seen:
            return not lock.exists()
    return True


def _ended_here(lock: Path, holder: Mapping[str, Any]) -> bool:
    """Whether the holder was a process of this host, and of this user, that has ended without a word."""
    return _is_here(lock, holder) and _started(holder["pid"]) != holder["started"]


def _is_here(lock: Path, holder: Mapping[str, Any]) -> bool:
    """Whether the holder is a process of this host that we could see: those of other users may be hidden."""
    try:
        ours = lock.stat().st_uid == os.getuid()
    except OSError:
        ours = True
    return ours and holder.get("host") == socket.gethostname()


def _renew(lock: Path, mine: Mapping[str, Any], released: Event) -> None:
    absent = 0
    while not released.wait(RENEW_SECONDS):
        with suppress(OSError):  # a shared file system may fail for a moment
            absent = 0 if lock.exists() else absent + 1
            lost = absent > 1 or (not absent and read_record(lock) != mine)
            if lost and not released.is_set():
                os.kill(os.getpid(), signal.SIGTERM)  # we were taken for gone: leave the run to others
                return
            os.utime(lock)


def _written(lock: Path) -> int:
    """When the lock was written or renewed. Opened, since a network file system then asks its server."""
    try:
        with lock.open() as file:
            return os.fstat(file.fileno()).st_mtime_ns
    except OSError:
        return 0


def _started(pid: int) -> str | None:
    """Moment in which a process of this host began (clock ticks since boot); None when there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None
