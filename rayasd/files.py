"""Files that are complete or absent: written beside, flushed to disk, then moved into place."""

import csv
import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rayasd.errors import StorageError, UserError
from rayasd.wording import size

_TROUBLES = {
    errno.ENOSPC: "no space is left in {}: make room",
    errno.EDQUOT: "the quota is used up in {}: make room",
    errno.EROFS: "{} is read-only: mount it writable",
    errno.EACCES: "Permission denied: {}: allow it",
    errno.EPERM: "Permission denied: {}: allow it",
    errno.ENOLCK: "{} has no locks left: look at its file system",
    errno.EIO: "{} cannot be read or written: look at its disk",
    errno.ESTALE: "{} cannot be reached: look at its file system",
    errno.ENOTCONN: "{} cannot be reached: look at its file system",
}
CACHE_TAG = "CACHEDIR.TAG"
FREE_SPACE_MARGIN = 64 << 20  # bytes
_CACHE_SIGNATURE = "Signature: 8a477f597d28d172789f06886806bc55"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_PERHAPS_NOT_OURS = (errno.EACCES, errno.EPERM, errno.ENOTCONN)


@contextmanager
def replacing(path: Path, *, parents: bool = True) -> Iterator[Path]:
    """Give a temporary path beside ``path``; when the block ends well, it becomes ``path`` in one step.

    If the block raises, ``path`` stays as it was and the temporary file is removed. ``parents``: make the folder.
    """
    if parents:
        path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        temporary.touch(exist_ok=False)  # gives it the permissions of the user's new files
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # the system does not say where there is no space
        with suppress(OSError):  # the file system may be read-only by now
            temporary.unlink()
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class Below:
    """A path at a fixed place below its owner's ``root``."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, owner: Any, kind: type | None = None) -> Path:
        root: Path = owner.root
        return root / self._name


def no_links(path: str, flags: int) -> int:
    """Open a file of a folder that others may write to, as ``open(..., opener=no_links)``: never through a link.

    Raises UserError: it is a link.
    """
    try:
        return os.open(path, flags | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise UserError(f"{path} is a link, which nothing is written through: remove it") from None


def storage_error(error: BaseException, folder: Path, *others: Path) -> StorageError | None:
    """Return in one line what is wrong with the storage, if that is why ``error`` was raised; else None.

    ``folder``: the place to name where the system names none; ``others``: further places whose permissions matter.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UserError):  # its text already says what is wrong
            return cause if isinstance(cause, StorageError) else None
        if isinstance(cause, OSError) and cause.errno in _TROUBLES:
            named = Path(os.fsdecode(cause.filename)) if isinstance(cause.filename, str | bytes) else folder
            ours = cause.filename is not None and any(map(named.is_relative_to, (folder, *others)))
            if cause.errno in _PERHAPS_NOT_OURS and not ours:
                return None  # it concerns a socket, or code that is plugged in
            if named.is_relative_to(folder):
                named = folder
            elif cause.errno not in (errno.EACCES, errno.EPERM):
                named = named.parent
            return StorageError(f"{_TROUBLES[cause.errno].format(named)}, then the same command continues")
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return None


@contextmanager
def suppress_full() -> Iterator[None]:
    """Do without what the block writes, where there is no room for it."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise


def mark_as_cache(folder: Path) -> None:
    """Write the file by which backup programs, and ``rayasd gc``, tell a cache of ours (bford.info/cachedir)."""
    with suppress(FileExistsError), (folder / CACHE_TAG).open("x", encoding="utf-8") as file:
        file.write(f"{_CACHE_SIGNATURE}\n# of rayasd: decoded clips and features\n")


def is_marked_as_cache(folder: Path) -> bool:
    """Whether a folder has the mark."""
    with suppress(OSError), (folder / CACHE_TAG).open("rb") as file:
        return file.read(len(_CACHE_SIGNATURE)) == _CACHE_SIGNATURE.encode()
    return False


def need_space(folder: Path, num_bytes: int, what: str, remedy: str) -> None:
    """Make sure that ``what`` has room. Raises StorageError: fewer bytes are free than it needs and a margin."""
    if num_bytes + FREE_SPACE_MARGIN > (free := shutil.disk_usage(folder).free):
        raise StorageError(f"{what} needs {size(num_bytes)} in {folder}, {size(free)} are free: {remedy}")


def gone(folder: Path) -> StorageError:
    """Build the error for a folder that was there and is not."""
    return StorageError(f"{folder} is gone: was its file system unmounted? Once it is back, the same command continues")


def remove_unfinished(folder: Path, pattern: str = ".*.part") -> None:
    """Remove what ``replacing`` left in a folder when its process was killed; call it where nobody else writes."""
    for path in folder.glob(pattern):
        path.unlink(missing_ok=True)


def write_at(descriptor: int, content: bytes | memoryview, place: int) -> None:
    """Write all of ``content`` at a place of an open file, though the system may take less at a time."""
    while content:
        written = os.pwrite(descriptor, content, place)
        content, place = content[written:], place + written


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """Write rows as CSV, whole or not at all."""
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; None when it is absent."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def read_record(path: Path) -> dict[str, Any]:
    """Read a JSON object; empty when it is absent, damaged or something else."""
    try:
        record = read_json(path)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def now() -> str:
    """Return this moment in UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def digest(value: Any) -> str:
    """Sha256 (hexadecimal) of a JSON-like value, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Sha256 (hexadecimal) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
