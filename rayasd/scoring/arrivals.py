"""Audio files that arrive in folders."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from rayasd.data.folders import audio_files

_POLL_SECONDS, _QUIET_SECONDS = 0.5, 2.0


def arriving(folders: Sequence[Path]) -> Iterator[list[Path]]:
    """Give files as they arrive, once each has not changed for a while, without end; those that are there, too."""
    seen: dict[Path, tuple[int, int]] = {}
    given: dict[Path, tuple[int, int]] = {}
    quiet_since: dict[Path, float] = {}
    while True:
        ready = []
        for path in [path for folder in folders for path in audio_files(folder)]:
            try:
                facts = path.stat()
            except OSError:
                continue
            state = (facts.st_size, facts.st_mtime_ns)
            if seen.get(path) != state:
                seen[path], quiet_since[path] = state, time.monotonic()
            elif given.get(path) != state and time.monotonic() - quiet_since[path] >= _QUIET_SECONDS:
                ready.append(path)
                given[path] = state
        yield ready
        time.sleep(_POLL_SECONDS)
