"""Zip archives of strangers: checked before a byte is written, unpacked beside, then moved into place."""

import ctypes
import os
import shutil
import stat
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from threading import Event

from rayasd.data.downloading import OnProgress, StoppedError
from rayasd.errors import UserError, one_line
from rayasd.wording import size

FREE_SPACE_MARGIN = 256 << 20
"""Bytes that stay free."""

_CHUNK = 1 << 20
_BLOCK = 4096  # bytes that a file takes at least
_LONGEST_NAME = 255
_PACKED_BY = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)

PlaceOf = Callable[[PurePosixPath], PurePosixPath | None]
"""Where a member belongs below the root, by its path in the archive; None: it is not wanted."""


class BadArchiveError(Exception):
    """An archive that is damaged, or that would write where it must not."""


def unpack(archive: Path, into: Path, place_of: PlaceOf, *, stopped: Event, on_progress: OnProgress) -> dict[str, int]:
    """Unpack the wanted members into a new folder.

    Returns:
        Number of files in each folder, named by its path below ``into``.

    Raises:
        BadArchiveError: some member is not a plain file inside the folder, or nothing is wanted; or while unpacking,
            the archive proves to be damaged.
        UserError: too little space for what it declares.
        StoppedError: ``stopped`` was set.

    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = _wanted(opened, place_of)
            total = sum(info.file_size for info in members.values())
            _need_space(archive.name, total + _BLOCK * len(members), into.parent)
            done = 0
            for place, info in members.items():
                target = into / place
                target.parent.mkdir(parents=True, exist_ok=True)
                with opened.open(info) as packed, target.open("xb") as out:
                    for chunk in _bytes_of(packed.read, info):
                        out.write(chunk)
                        done += len(chunk)
                        if stopped.is_set():
                            raise StoppedError
                on_progress(archive.name, "unpacking", done, total)
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, NotImplementedError) as error:
        raise BadArchiveError(f"it is damaged ({one_line(error)})") from error
    return dict(Counter(place.parent.as_posix() for place in members))


def move_into_place(source: Path, target: Path) -> None:
    """Move a folder's content below ``target``: a new folder in one step, one that is there already file by file."""
    flush_file_system(source)
    _merge(source, target)
    flush_file_system(target)


def flush_file_system(folder: Path) -> None:
    """Flush to disk all that was written where a folder is: thousands of files at once (Linux; elsewhere nothing)."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "syncfs"):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            libc.syncfs(descriptor)
        finally:
            os.close(descriptor)


def _merge(source: Path, target: Path) -> None:
    if source.is_dir() and target.is_dir():
        for child in sorted(source.iterdir()):
            _merge(child, target / child.name)
        source.rmdir()
    else:
        os.replace(source, target)


def _wanted(archive: zipfile.ZipFile, place_of: PlaceOf) -> dict[PurePosixPath, zipfile.ZipInfo]:
    members: dict[PurePosixPath, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        if danger := _danger(info):
            raise BadArchiveError(f"its member {info.filename!r} {danger}")
        place = None if info.is_dir() else place_of(PurePosixPath(info.filename))
        if place in members:
            raise BadArchiveError(f"it holds {place} twice")
        if place is not None:
            members[place] = info
    if not members:
        raise BadArchiveError("it holds nothing that belongs here")
    for place in members:
        if any(parent in members for parent in place.parents):
            raise BadArchiveError(f"it holds {place} below a file")
    return members


def _danger(info: zipfile.ZipInfo) -> str | None:
    """Say why a member must not be unpacked; None if it may."""
    name = info.filename
    parts = PurePosixPath(name).parts
    kind = stat.S_IFMT(info.external_attr >> 16)
    if name.startswith("/"):
        return "is an absolute path"
    if not parts or ".." in parts or "\\" in name:
        return "leads out of the folder"
    if not name.isprintable() or any(len(os.fsencode(part)) > _LONGEST_NAME for part in parts):
        return "has a name that no clip has"
    if stat.S_ISLNK(kind):
        return "is a symbolic link"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a device, a pipe or a socket"
    if info.flag_bits & 1:
        return "is encrypted"
    if info.compress_type not in _PACKED_BY:
        return f"is packed by method {info.compress_type}, which is not supported"
    return None


def _bytes_of(read: Callable[[int], bytes], info: zipfile.ZipInfo) -> Iterator[bytes]:
    """Content of a member, no more and no less than it declares."""
    left = info.file_size
    while chunk := read(min(_CHUNK, left + 1)):
        left -= len(chunk)
        if left < 0:
            break
        yield chunk
    if left:
        raise BadArchiveError(f"its member {info.filename!r} is not as long as declared")


def _need_space(name: str, num_bytes: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if num_bytes + FREE_SPACE_MARGIN > free:
        raise UserError(
            f"{name} unpacks to {size(num_bytes)}, {size(free)} are free in {folder.parent}: make room "
            "and run the same command again, it goes on from here"
        )
