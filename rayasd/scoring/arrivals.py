"""Audio files of folders: those that are there, and those that arrive."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import soundfile

_SUFFIXES = {f".{name.lower()}" for name in soundfile.available_formats()}
_POLL_SECONDS, _QUIET_SECONDS = 0.5, 2.0


def audio_files(folder: Path) -> list[Path]:
    """List the audio files below a folder, sorted."""
    return sorted(
        path for path in folder.rglob("*")
        if path.suffix.lower() in _SUFFIXES and not path.name.startswith(".") and path.is_file()
    )  # fmt: skip


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
            except FileNotFoundError:
                continue
            state = (facts.st_size, facts.st_mtime_ns)
            if seen.get(path) != state:
                seen[path], quiet_since[path] = state, time.monotonic()
            elif given.get(path) != state and time.monotonic() - quiet_since[path] >= _QUIET_SECONDS:
                ready.append(path)
                given[path] = state
        yield ready
        time.sleep(_POLL_SECONDS)
