"""Files of this user that killed processes left; locks, sockets, processes and age tell them from files in use."""

import fcntl
import os
import re
import shutil
import stat
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rayasd.errors import UserError
from rayasd.files import CACHE_TAG, is_marked_as_cache, no_links
from rayasd.sweep.lock import locked, refuse_if_held, see_if_held
from rayasd.sweep.store import RunStore

_REPORT_SECONDS = 60.0  # a report writes into a run without a lock, for some seconds
_CACHE_FILE = re.compile(
    r"(?P<hidden>\.?)(?P<stem>.+-[0-9a-f]{24})\.(?P<kind>i16|parquet|features|lock|[\w.-]+\.checked)(?P<part>\.\w+\.part)?"
)


@dataclass(frozen=True)
class Leftover:
    """A file or folder that nobody needs any more."""

    path: Path
    size: int  # bytes
    what: str

    def remove(self) -> None:
        """Remove it. Raises OSError: it cannot be removed, or is a lock that somebody has taken since."""
        if self.path.is_dir() and not self.path.is_symlink():
            shutil.rmtree(self.path)
        elif self.path.suffix == ".lock":
            with open(self.path, "r+", opener=no_links) as file:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self.path.unlink()
        else:
            self.path.unlink()


def remove(leftovers: Iterable[Leftover]) -> tuple[list[Leftover], list[str]]:
    """Remove leftovers; returns those that are gone, and why others are not."""
    removed, errors = [], []
    for leftover in leftovers:
        try:
            leftover.remove()
        except FileNotFoundError:
            continue  # somebody else has
        except OSError as error:
            errors.append(f"{leftover.path}: {error.strerror}")
        else:
            removed.append(leftover)
    return removed, errors


def of_run(store: RunStore, hours: float) -> list[Leftover]:
    """List unfinished files, locks and tokens of a run that nobody drives; takes 30 s where another host did.

    Raises UserError: this is no run, or somebody drives it or a part of it.
    """
    store.manifest()
    found = []
    for lock in store.paths.locks:
        if lock.exists():
            see_if_held(lock)
        found += _leftover(lock, "lock whose holder is gone")
    for token in (store.paths.root / "ray-token", *store.paths.root.glob("ray-token-*")):
        found += _leftover(token, "token of a Ray that is gone")
    youngest = time.time() - min(3600 * hours, _REPORT_SECONDS)
    for folder, _, names in os.walk(store.paths.root):
        for name in sorted(names):
            if name.startswith(".") and name.endswith(".part"):
                found += _leftover(Path(folder, name), "unfinished file", youngest)
    return found


def clear_run(store: RunStore, hours: float) -> tuple[list[Leftover], list[str]]:
    """Remove what ``of_run`` lists, with every driver kept out meanwhile; returns as ``remove`` does.

    Raises UserError: this is no run, or somebody drives it or a part of it.
    """
    found, locks = of_run(store, hours), set(store.paths.locks)
    if not found:
        return [], []
    mine = {leftover.path for leftover in found}
    with locked(store.paths.lock):  # replaces a lock that was left behind, whoever's it is
        for lock in store.paths.part_locks():
            (refuse_if_held if lock in mine else see_if_held)(lock)
        removed, errors = remove(leftover for leftover in found if leftover.path not in locks)
    return [*(leftover for leftover in found if leftover.path in locks), *removed], errors


def of_cache(cache: Path, hours: float, unused_days: float | None = None) -> list[Leftover]:
    """List unfinished files, locks and halves without the other half in a cache, all older than ``hours``.

    With ``unused_days``, also what no unit has opened for so long: an index, and a file of features, is dated by its
    last use.

    Raises UserError: the folder is no cache of rayasd's.
    """
    if not is_marked_as_cache(cache):
        raise UserError(f"{cache} is no cache of rayasd's: it has no {CACHE_TAG}, which decoding writes")
    youngest, found = time.time() - 3600 * hours, []
    names = sorted(os.listdir(cache))  # noqa: PTH208 - names are all that is needed
    for name in names:
        match = _CACHE_FILE.fullmatch(name)
        if match is None or bool(match["hidden"]) != bool(match["part"]):
            continue
        other = {"i16": "parquet", "parquet": "i16"}.get(match["kind"])
        if match["part"]:
            found += _leftover(cache / name, "unfinished file", youngest)
        elif match["kind"] == "lock":
            found += _leftover(cache / name, "lock of a decoding that has ended", youngest)
        elif match["kind"].endswith(".checked"):
            found += _leftover(cache / name, "note that a host has checked the samples", youngest)
        elif other and f"{match['stem']}.{other}" not in names:
            found += _leftover(cache / name, f"half without its .{other}", youngest)
        elif unused_days is not None and match["kind"] != "i16":
            unused = _leftover(cache / name, f"not used for {unused_days:g} days", time.time() - 86400 * unused_days)
            found += unused and [*unused, *_leftover((cache / name).with_suffix(".i16"), "its samples")]
    return found


def _leftover(path: Path, what: str, youngest: float = float("inf")) -> list[Leftover]:
    """List a plain file of this user's, not a link, that was not written since ``youngest`` (seconds since 1970)."""
    with suppress(FileNotFoundError):
        status = path.lstat()
        if stat.S_ISREG(status.st_mode) and status.st_uid == os.getuid() and status.st_mtime <= youngest:
            return [Leftover(path, status.st_size, what)]
    return []
