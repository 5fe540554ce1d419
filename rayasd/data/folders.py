"""Every folder below a root, whatever people keep there: links in circles, pipes, depths and numbers of any size."""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

DirEntries = list[os.DirEntry[str]]


def folders(
    root: Path, on_error: Callable[[str, OSError], None] = lambda folder, error: None, *, follow_links: bool = True
) -> Iterator[tuple[str, DirEntries]]:
    """Give each folder's path and entries (sorted by name), from the root down; hidden folders are left out.

    A folder to which several ways lead is given once. ``on_error`` gets folders that cannot be opened.
    """
    waiting = [(str(root), os.path.realpath(root))]
    seen: set[str] = set()
    while waiting:  # and no recursion: a tree may be deeper than Python's stack
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
            if is_folder(entry) and not entry.name.startswith(".") and (follow_links or not entry.is_symlink()):
                linked = entry.is_symlink()
                waiting.append((entry.path, os.path.realpath(entry.path) if linked else f"{real}/{entry.name}"))


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or leads to one; a link to itself does not."""
    with suppress(OSError):
        return entry.is_dir()
    return False
