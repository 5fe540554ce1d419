"""Damage that libsndfile does not tell: failed reads, headers that contradict themselves or the file, altered FLAC."""

import hashlib
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

_LONGEST = 0x7FFFE000
"""Streaming writers leave 0 or lengths from here on: sox 0x7FFFF000, arecord 0x80000000, ffmpeg 0xFFFFFFFF."""
_PLAIN_FORMATS = (1, 3, 0xFFFE)  # integers, floats, extensible
_MIN_BYTES_PER_BLOCK = 11  # FLAC: header, one constant, checksums


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


def contradiction(descriptor: int, frames: int, size: int) -> str | None:
    """Return how an open file of ``size`` bytes and, by its header, so many frames contradicts itself; None if not."""
    head = os.pread(descriptor, 12, 0)
    if len(head) == 12 and head[:4] == b"RIFF":
        promised = struct.unpack("<I", head[4:8])[0]
        if 0 < promised < _LONGEST and promised > size:  # some writers count the eight bytes of this chunk's head too
            return _cut_off(promised + 8 - size)
        if head[8:] == b"WAVE" and (wrong := _of_wave(descriptor, size)):
            return wrong
    longest_block = int.from_bytes(head[10:12], "big") if head[:4] == b"fLaC" else 65535
    if frames > size // _MIN_BYTES_PER_BLOCK * longest_block:
        return f"does not say how long it is, or lies: {frames} frames in {size} bytes"
    return None


class FlacCheck:
    """Compares decoded FLAC with the audio that was encoded, by the MD5 in its header (if there is one)."""

    def __init__(self, descriptor: int) -> None:
        head = os.pread(descriptor, 42, 0)
        known = head[:4] == b"fLaC" and not head[4] & 0x7F and any(head[26:42])
        self._bits = ((head[20] & 1) << 4 | head[21] >> 4) + 1 if known else 0
        self._expected, self._found = head[26:42], hashlib.md5(usedforsecurity=False)

    def update(self, samples: NDArray[np.int16] | NDArray[np.float32]) -> None:
        """Take the next samples (frames, channels): int16 of a 16-bit file, or float32 of any other."""
        if samples.dtype == np.int16:
            self._found.update(samples.astype("<i2", copy=False).tobytes())
        elif self._bits in (8, 16, 24):  # float32 holds 24 bits exactly
            wide = (samples * np.float32(2 ** (self._bits - 1))).astype("<i4")
            self._found.update(wide.reshape(-1, 1).view(np.uint8)[:, : self._bits // 8].tobytes())

    @property
    def differs(self) -> bool:
        """Whether all samples taken are others than those that were encoded."""
        return self._bits in (8, 16, 24) and self._found.digest() != self._expected


def _of_wave(descriptor: int, size: int) -> str | None:
    place = 12
    while len(head := os.pread(descriptor, 8, place)) == 8:
        name, length = struct.unpack("<4sI", head)
        place += 8
        if name == b"fmt " and (wrong := _of_format(os.pread(descriptor, 16, place))):
            return wrong
        if name == b"data":
            if length == 0 or (length >= _LONGEST and place + length > size):
                return None
            end = place + length
            return _cut_off(end - size) if end > size else _of_rest(descriptor, end, size)
        place += length + length % 2
    return None


def _of_format(fields: bytes) -> str | None:
    if len(fields) < 16:
        return None
    form, channels, _, _, frame, bits = struct.unpack("<HHIIHH", fields)
    fitting = {channels * -(-bits // 8)} | ({4 * channels} if bits == 24 else set())  # 24 bits may lie in 32
    if form in _PLAIN_FORMATS and frame not in fitting:
        return f"has a header that contradicts itself: {frame} bytes a frame of {channels} x {bits} bits"
    return None


def _of_rest(descriptor: int, end: int, size: int) -> str | None:
    """Return an error for samples that the header does not count; chunks, tags and padding may follow the samples."""
    rest = os.pread(descriptor, 4096, end)
    if len(rest) <= 8 or not any(rest) or rest.startswith((b"TAG", b"ID3")):
        return None
    for begin in (0, 1):  # chunks begin at even places, but some writers forget that
        name, length = struct.unpack_from("<4sI", rest, begin)
        if name.isascii() and name.decode("ascii").isprintable() and end + begin + 8 + length <= size + 1:
            return None
    return f"holds {size - end} bytes more than its header counts"


def _cut_off(missing: int) -> str:
    return f"is cut off: its header promises {missing} bytes more"
