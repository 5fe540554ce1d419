"""Reading for libsndfile, which hides what the system says of a read."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Reads:
    """A file for libsndfile, which takes a read that fails for the file's end and does not tell; this remembers it."""

    def __init__(self, descriptor: int, size: int) -> None:
        self._descriptor, self._size, self._place = descriptor, size, 0
        self.error: OSError | None = None

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer; fewer bytes at the end of the file, or where a read fails."""
        view, done = memoryview(buffer), 0
        try:
            while done < len(view) and (got := os.preadv(self._descriptor, [view[done:]], self._place + done)):
                done += got
        except OSError as error:
            self.error = error
        self._place += done
        return done

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place; a damaged header may ask for one before the file or far beyond."""
        place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        self._place = min(max(0, place), 1 << 62)
        return self._place

    def tell(self) -> int:
        """Return the place."""
        return self._place


@contextmanager
def failing_as_read(reads: Reads) -> Iterator[None]:
    """Raise the error of a read that failed, whatever was made of it."""
    try:
        yield
    finally:
        if reads.error is not None:
            raise reads.error
