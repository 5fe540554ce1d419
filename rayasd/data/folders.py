"""Every folder below a root, whatever people keep there, and which of the files in it are audio."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from rayasd.errors import StorageError
from rayasd.printing import tell

DirEntries = list[os.DirEntry[str]]

AUDIO_SUFFIXES = (
    ".wav", ".wave", ".bwf", ".rf64", ".w64", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au",
    ".snd", ".caf", ".nist", ".sph", ".voc",
)  # fmt: skip
"""Suffixes that libsndfile reads, in any case."""
SIGNALS = (".npy", ".mat", ".csv")  # numbers, which are recordings where a rate is given (``data.signal_rate``)
BY_FFMPEG = (".m4a", ".aac", ".mp4", ".wma", ".amr", ".3gp", ".webm", ".mka", ".ac3", ".ape", ".wv")
"""Suffixes that ffmpeg reads, where it is installed."""
_OWN_FAULTS = (
    errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES, errno.EPERM, errno.ENXIO, errno.ENAMETOOLONG, errno.EISDIR,
)  # fmt: skip


def blame_disk(path: str | Path, error: Exception, reason: str = "") -> None:
    """Raise StorageError where a disk or a host failed and not the file itself: no clip is left out for that."""
    if isinstance(error, OSError) and error.errno not in _OWN_FAULTS:
        reason = reason or f"cannot be read: {error.strerror}"
        raise StorageError(f"{path} {reason}: look at its disk, then the same command continues") from None


def pass_over(folder: str, error: OSError) -> None:
    """Name a folder that cannot be opened on standard error. Raises StorageError: its disk fails."""
    blame_disk(folder, error)
    tell(f"{folder} cannot be opened and is left out: {error.strerror}", err=True)


def is_audio(name: str) -> bool:
    """Whether a file's name is that of audio; hidden files, as macOS leaves them, are not."""
    return name.lower().endswith((*AUDIO_SUFFIXES, *BY_FFMPEG)) and not name.startswith(".")


def is_signal(name: str) -> bool:
    """Whether a file's name is that of numbers."""
    return name.lower().endswith(SIGNALS) and not name.startswith(".")


def audio_files(root: Path, *, signals: bool = False) -> list[Path]:
    """List the audio files below a folder, sorted; those, too, that cannot be read, and with ``signals`` numbers."""
    return sorted(Path(entry.path) for entry in audio_entries(root, signals=signals))


def audio_entries(
    root: Path, on_error: Callable[[str, OSError], None] = pass_over, *, signals: bool = False
) -> Iterator[os.DirEntry[str]]:
    """Give what ``audio_files`` lists, as it is found; ``on_error`` as of ``folders``."""
    for _, entries in folders(root, on_error):
        for entry in entries:
            if (is_audio(entry.name) or (signals and is_signal(entry.name))) and not is_folder(entry):
                yield entry


def folders(root: Path, on_error: Callable[[str, OSError], None] = pass_over) -> Iterator[tuple[str, DirEntries]]:
    """Give each folder's path and entries (sorted by name), from the root down; hidden folders are left out.

    Links to folders are followed; a folder to which several ways lead is given once. ``on_error`` gets folders that
    cannot be opened. Raises StorageError: the disk fails.
    """
    waiting = [(str(root), os.path.realpath(root))]
    seen: set[str] = set()
    while waiting:  # no recursion: a tree may be deeper than Python's stack
        folder, real = waiting.pop()
        if real in seen:  # a link back up, or a second way to the same place
            continue
        seen.add(real)
        try:
            with os.scandir(folder) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            on_error(folder, error)
            continue
        yield folder, entries
        for entry in reversed(entries):
            if is_folder(entry) and not entry.name.startswith("."):
                linked = entry.is_symlink()
                waiting.append((entry.path, os.path.realpath(entry.path) if linked else f"{real}/{entry.name}"))


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or leads to one; a link to itself does not."""
    with suppress(OSError):
        return entry.is_dir()
    return False
