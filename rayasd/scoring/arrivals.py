"""Audio files that arrive in folders, found by listing them.

Not by the system's events: on a network file system, what other hosts write raises none. A listing is needed anyway to
find what came while nobody watched, and no event shows that a file is complete.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path

from rayasd.data.folders import audio_entries

Stamp = tuple[int, int]
"""Size in bytes and time of the last change in nanoseconds: other ones mean that a file has other content."""

_PAUSE_SECONDS, _QUIET_SECONDS, _AGAIN_SECONDS = 1.0, 2.0, 60.0
_PAUSES_PER_LISTING = 4.0  # what lists a large or slow tree takes a fifth of the time at most


def stamp_of(path: Path) -> Stamp | None:
    """Return a file's size and time of change; None where it cannot be looked at."""
    with suppress(OSError):
        facts = path.stat()
        return facts.st_size, facts.st_mtime_ns
    return None


class Arrivals:
    """Gives files once each has not changed for a while, without end; those that are there, too.

    A file is given again and again until it is ``done`` or put off by ``later``.
    """

    def __init__(
        self, folders: Sequence[Path], done: Mapping[str, Stamp], say: Callable[[str], None], *, signals: bool = False
    ) -> None:
        """Prepare.

        ``done``: files that need not be given, unless they have changed; ``say`` takes what cannot be listed, once
        until it can; ``signals``: whether numbers (.npy, .mat, .csv) are clips, too.
        """
        self._folders, self._done, self._say, self._signals = folders, dict(done), say, signals
        self._due: dict[Path, tuple[Stamp, float]] = {}
        self._troubles: set[str] = set()

    def __iter__(self) -> Iterator[list[tuple[Path, Stamp]]]:
        while True:
            began = time.monotonic()
            ready = self._ready()
            pause = max(_PAUSE_SECONDS, _PAUSES_PER_LISTING * (time.monotonic() - began))
            yield ready
            time.sleep(pause)

    def done(self, path: Path, stamp: Stamp) -> None:
        """Give a file no more, unless it changes."""
        self._done[str(path)] = stamp

    def later(self, path: Path) -> None:
        """Give a file again after a minute."""
        self._due[path] = self._due[path][0], time.monotonic() + _AGAIN_SECONDS

    def _ready(self) -> list[tuple[Path, Stamp]]:
        """List the files that are due, in the order of their times."""
        troubles: set[str] = set()

        def trouble(path: object, error: OSError) -> None:
            troubles.add(f"{path}: {error.strerror or error}")

        due, ready = {}, []
        listed = (audio_entries(folder, trouble, signals=self._signals) for folder in self._folders)
        for entry in chain.from_iterable(listed):
            try:
                facts = entry.stat()
            except OSError as error:
                trouble(entry.path, error)
                continue
            stamp = facts.st_size, facts.st_mtime_ns
            if self._done.get(entry.path) == stamp or (path := Path(entry.path)) in due:
                continue
            before, when = self._due.get(path, (None, 0.0))
            due[path] = stamp, when if before == stamp else time.monotonic() + _QUIET_SECONDS
            if due[path][1] <= time.monotonic():
                ready.append((path, stamp))
        for each in sorted(troubles - self._troubles):
            self._say(each)
        self._due, self._troubles = due, troubles
        return sorted(ready, key=lambda each: (each[1][1], each[0]))
