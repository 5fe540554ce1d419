"""The lock of a run: a file that its holder renews, so that a lost holder is recognised from any host.

``filelock`` has such leases, but it replaces one that was left behind by an exchange of two names (``renameat2``), and
file systems such as NFS have none. Tried with filelock 4.3.1 on bindfs (FUSE): the lock of a killed process stays.
"""

import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any

from rayasd.errors import Interrupted, UserError
from rayasd.files import now, read_record

RENEW_SECONDS = 5.0
GONE_SECONDS = 30.0
"""A lock that is not renewed for so long has no holder any more (its host lost power, or the network)."""
_TURNS = 100


@contextmanager
def locked(lock: Path) -> Iterator[Callable[[], None]]:
    """Hold a lock while the block lasts; it tells who we are. A lock whose holder is gone is replaced.

    The block gets a function to call now and then: it raises ``Interrupted`` where this process was suspended or cut
    off for so long that another one has the lock.

    Raises UserError: another process holds it; names the process, its host and since when.
    """
    place, pid = _place(), os.getpid()
    mine = {
        "host": socket.gethostname(),
        "pid": pid,
        "started": _started(pid) if place else None,
        "place": place,
        "since": now(),
    }
    while not _created(lock, json.dumps(mine)):
        refuse_if_held(lock)
    released, lost = Event(), Event()
    Thread(target=_renew, args=(lock, mine, released, lost), daemon=True).start()

    def check() -> None:
        if lost.is_set():
            raise Interrupted(f"{lock} is another process's now, which took this one for gone")

    try:
        yield check
    finally:
        released.set()
        with suppress(OSError):  # its file system is gone or read-only by now
            if read_record(lock) == mine:
                lock.unlink()


def refuse_if_held(lock: Path) -> None:
    """Remove a lock whose holder is gone. Takes ``GONE_SECONDS`` where the holder's process cannot be seen from here.

    Several processes may find the same lock left behind. They remove it in turn, each only if the lock is still what
    it found, so that none removes the lock that a quicker one has taken since.

    Raises UserError: another process holds it.
    """
    turns = 0
    while lock.exists():
        left = see_if_held(lock)
        try:
            with locked(lock.with_name(f".{lock.name}.turn.part")):  # one that is left goes as an unfinished file
                if (read_record(lock), _written(lock)) == left:
                    lock.unlink(missing_ok=True)
        except UserError:
            turns += 1
            if turns == _TURNS:
                raise
            time.sleep(0.1)  # another process has its turn


def see_if_held(lock: Path) -> tuple[dict[str, Any], int]:
    """Read a lock whose holder is gone, and when it was written; leave it. Takes as long as ``refuse_if_held``.

    Raises UserError: another process holds it.
    """
    holder, written, since = read_record(lock), _written(lock), time.monotonic()
    lives = _lives(holder)
    while lives is None:
        if not written or _written(lock) != written:
            lives = lock.exists()
        elif time.monotonic() - since > GONE_SECONDS:
            lives = False
        else:
            time.sleep(min(0.5, GONE_SECONDS / 10))
    if lives:
        who = {"pid": "?", "host": "?", "since": "?"} | holder | read_record(lock)
        holder_is = f"process {who['pid']} on {who['host']} since {who['since']}"
        raise UserError(f"{lock.parent} is held by {holder_is}: wait for it, or end it there")
    return holder, written


def holder_of(lock: Path) -> dict[str, Any]:
    """Read who holds a lock, with seconds since it was renewed; empty where nobody does, as can be told at once."""
    holder = read_record(lock)
    if not holder or _lives(holder) is False:
        return {}
    return {**holder, "silent": max(0.0, time.time() - _written(lock) / 1e9)}


def _created(lock: Path, record: str) -> bool:
    """Create a lock, whole or not at all; False when there is one."""
    try:
        file = lock.open("x", encoding="utf-8")
    except FileExistsError:
        return False
    try:
        with file:
            file.write(record)
            file.flush()
            os.fsync(file.fileno())  # a network file system may find only now that it is full
    except BaseException:
        lock.unlink()
        raise
    return True


def _renew(lock: Path, mine: Mapping[str, Any], released: Event, lost: Event) -> None:
    absent = 0
    while not released.wait(RENEW_SECONDS):
        with suppress(OSError):  # a shared file system may fail for a moment
            absent = 0 if lock.exists() else absent + 1
            if absent > 1 or (not absent and read_record(lock) != mine):
                lost.set()  # we were taken for gone: leave the run to others
                return
            os.utime(lock, follow_symlinks=False)


def _lives(holder: Mapping[str, Any]) -> bool | None:
    """Whether the holder's process lives; None where it cannot be seen: on another host, or in another container."""
    place = _place()
    if place is None or holder.get("place") != place:
        return None
    try:
        os.kill(holder["pid"], 0)  # finds processes of other users, which /proc may hide
        return _started(holder["pid"]) == holder["started"]
    except ProcessLookupError:
        return False
    except OSError:
        return None


def _place() -> str | None:
    """Name where the numbers and starts of processes mean what they mean here; None where /proc does not tell.

    Two containers may share a host name, so it is a kernel since its boot, and a PID and time namespace of it.
    """
    try:
        if f"\nNSpid:\t{os.getpid()}\n".encode() not in Path("/proc/self/status").read_bytes():
            return None  # /proc shows another namespace's processes
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        spaces = (Path("/proc/self/ns", name) for name in ("pid", "time"))
        return " ".join([boot, *(str(space.readlink()) for space in spaces if space.exists())])
    except OSError:
        return None


def _started(pid: int) -> str:
    """Return when a process of this host began, in clock ticks since boot; empty where it has ended but has a name.

    Raises OSError: there is no such process, or it is hidden.
    """
    state, *fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    return "" if state in "ZX" else fields[18]


def _written(lock: Path) -> int:
    """When the lock was written or renewed. Opened, since a network file system then asks its server."""
    try:
        with lock.open() as file:
            return os.fstat(file.fileno()).st_mtime_ns
    except OSError:
        return 0
