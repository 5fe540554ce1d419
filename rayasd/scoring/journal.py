"""The results file of a watch: JSON lines to which each clip is added in one piece, and what a restart reads in it."""

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from rayasd.errors import UserError
from rayasd.files import write_at

Record = dict[str, Any]
_BEGIN = b'{"machine": '  # of each line


class Journal:
    """Appends clips' records to a file; nobody else may while it is open.

    A record has ``clip``, and ``pieces``: how many records in a row are of the clip.
    """

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        """Open or make the file; ``say`` takes why it cannot be written.

        Raises UserError: another process appends to it, or it cannot be opened.
        """
        self._path, self._say = path, say
        self._end, self._unwritten, self._failing = 0, b"", False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise UserError(f"cannot open {path}: {error.strerror}") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process
        except BlockingIOError:
            raise UserError(f"another rayasd score --watch appends to {path}: name another --out") from None
        except OSError:  # a file system without locks
            pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def recorded(self) -> Iterator[list[Record]]:
        """Give each clip's records, and cut off what a kill left of the last one.

        Raises UserError: the file holds something else.
        """
        self._end = end = 0
        clip: list[Record] = []
        with self._path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                begun = _BEGIN.startswith(line) or line.startswith(_BEGIN) or not line.strip(b"\0")
                if not line.endswith(b"\n") and begun:
                    break
                try:
                    record = json.loads(line)
                    clip.append(record)
                    _ = record["clip"], record["size"], record["mtime_ns"]
                    whole = len(clip) == record["pieces"]
                except (ValueError, KeyError, TypeError):
                    raise UserError(f"line {number} of {self._path} is not of --watch: name another --out") from None
                end += len(line)
                if whole:
                    self._end = end
                    yield clip
                    clip = []
        os.ftruncate(self._file, self._end)

    def append(self, text: str) -> None:
        """Add a clip's lines, and those before that could not be written: a full disk, for example, loses none."""
        self._unwritten += text.encode()
        if not self._unwritten:
            return
        try:
            write_at(self._file, self._unwritten, self._end)
            os.fsync(self._file)
        except OSError as error:
            if not self._failing:
                self._say(f"{self._path}: {error.strerror}: results are kept in memory until they can be written")
            self._failing = True
            with suppress(OSError):
                os.ftruncate(self._file, self._end)
        else:
            self._end += len(self._unwritten)
            self._unwritten, self._failing = b"", False
