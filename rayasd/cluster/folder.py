"""Temporary folder of a Ray of ours on a host, which only its user can enter.

Ray gives everybody the right to write into the folders that it makes (logs, sockets, sessions); whoever can do that can
put links in place of logs and jobs in place of ours.
"""

import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path

from rayasd.errors import UserError
from rayasd.printing import tell

RAYS = "ray"  # name of Ray's part of the folder; what is beside it is ours
LOGS = f"{RAYS}/session_latest/logs/*.*"
MARK = "rayasd.lock"  # file in the folder, locked by the processes that use it, with their job's name: marks it as ours

_NAME = re.compile(r"ra[0-9a-f]{8}")
_LOGS = re.compile(rf"start-\d+\.log|waiting\.log|driver\.log|mark-.+|{re.escape(MARK)}")  # written by rayasd launch
_HELD: list[int] = []
_LENGTH = len("/ra01234567")
_LONGEST = 107 - len(f"/{RAYS}/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store.0")


def private_folder(root: Path, job: str | None = None) -> Path:
    """Make a folder below ``root`` that nobody else can enter. Its name is short: sockets' paths end at 107 bytes.

    Launchers of one ``job`` on a host share it; without a job, it is new.

    Raises UserError: it belongs to somebody else, cannot be made, or its path is too long.
    """
    if not _is_short(root):
        most = _LONGEST - _LENGTH
        raise UserError(f"--temp-dir (RAYASD_TMP) {root}: too long for Ray's sockets, {most} characters at most")
    folder = _folder_of(root, job) if job is not None else root / f"ra{secrets.token_hex(4)}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=job is not None)
        if is_ours(folder):
            folder.chmod(0o700)
            _hold(folder, job)
            return folder
    except OSError as error:
        raise UserError(f"cannot make {folder}: {error.strerror}; choose another --temp-dir (RAYASD_TMP)") from None
    raise UserError(f"{folder} belongs to another user: choose another --temp-dir (RAYASD_TMP)")


def remove_abandoned(root: Path, jobs: str) -> None:
    """Remove the folders on this host that killed launchers of jobs have left; ``jobs``: a pattern of their names."""
    for folder in root.glob("ra*"):
        with suppress(OSError):  # another user's, or none of ours
            if is_ours(folder) and fnmatchcase((folder / MARK).read_text(), jobs) and not _is_held(folder):
                shutil.rmtree(folder, ignore_errors=True)


def copy_logs(logs: Iterable[Path], folder: Path) -> None:
    """Copy Ray's logs into a folder that only its user can enter; where it cannot be had, say so.

    What stands there under a log's name is replaced: it may be a link, from when others could write there.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not is_ours(folder):
            raise PermissionError(errno.EPERM, "it is a link, or another user's")
        folder.chmod(0o700)
        for log in logs:
            with suppress(FileNotFoundError):  # Ray rotates logs
                if log.is_file() and not log.is_symlink():
                    with log.open("rb") as source:
                        (folder / log.name).unlink(missing_ok=True)
                        with (folder / log.name).open("xb") as target:
                            shutil.copyfileobj(source, target)
    except OSError as error:
        tell(f"Ray's logs are not kept in {folder}: {error.strerror}", err=True)


def _folder_of(root: Path, job: str) -> Path:
    return root / f"ra{zlib.crc32(job.encode()):08x}"


def abandoned(root: Path, hours: float) -> Iterator[tuple[Path, int]]:
    """Yield this user's private folders that no process holds and nobody wrote for ``hours``, and their bytes."""
    for folder in sorted(root.glob("ra*")):
        with suppress(FileNotFoundError):  # its sweep ends while we look, or it is not ours
            if _NAME.fullmatch(folder.name) and is_ours(folder) and not _is_held(folder):
                size, written = _size_and_time(folder)
                foreign = [path for path in folder.iterdir() if path.name != RAYS and not _LOGS.fullmatch(path.name)]
                if written <= time.time() - 3600 * hours and not foreign:
                    yield folder, size


def _is_held(folder: Path) -> bool:
    """Whether a process that made a private folder, or shares it, still runs."""
    descriptor = os.open(folder / MARK, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _hold(folder: Path, job: str | None) -> None:
    """Hold a folder until this process ends; the kernel lets go of it however that happens."""
    descriptor = os.open(folder / MARK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)  # not inherited
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    os.pwrite(descriptor, (job or "").encode(), 0)
    _HELD.append(descriptor)


def root_of_own(environment: Mapping[str, str] = os.environ) -> Path:
    """Choose where the private folder of a sweep's own Ray is made."""
    if chosen := environment.get("RAYASD_TMP"):
        return Path(chosen).absolute()
    usual = [Path(environment[name]) for name in ("RAY_TMPDIR", "TMPDIR") if environment.get(name)]
    return next((root.absolute() for root in usual if _is_short(root.absolute())), Path("/tmp"))


def is_ours(path: Path) -> bool:
    """Whether a path is a folder of this user's own, not a link to one."""
    status = path.lstat()
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()


def _size_and_time(folder: Path) -> tuple[int, float]:
    """Bytes of all files in a folder, and when the last one was written."""
    size, written = 0, folder.lstat().st_mtime
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                status = Path(parent, name).lstat()
                size, written = size + status.st_size, max(written, status.st_mtime)
    return size, written


def _is_short(root: Path) -> bool:
    return len(os.fsencode(root)) + _LENGTH <= _LONGEST
