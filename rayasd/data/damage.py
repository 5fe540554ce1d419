"""Damage that libsndfile does not tell: failed reads, headers that contradict themselves or the file, altered FLAC."""

import hashlib
import os
import struct
from collections.abc import Iterable, Iterator
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from rayasd.errors import BadClipError

_LONGEST = 0x7FFFE000
"""Streaming writers leave 0 or lengths from here on: sox 0x7FFFF000, arecord 0x80000000, ffmpeg 0xFFFFFFFF."""
_PLAIN_FORMATS = (1, 3, 0xFFFE)  # integers, floats, extensible
_HEAD = 1024  # bytes
_MIN_BYTES_PER_BLOCK = 11  # FLAC: header, one constant, checksums


class Reads:
    """A file for libsndfile, which takes a read that fails for the file's end and does not tell.

    This remembers it, and raises its error at the end of a ``with`` block, whatever was made of it.
    """

    def __init__(self, descriptor: int, size: int) -> None:
        self._descriptor, self._size, self._place = descriptor, size, 0
        self._head = b""  # libsndfile reads a header in a dozen small pieces
        self.error: OSError | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.error is not None:
            raise self.error

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer; fewer bytes at the end of the file, or where a read fails."""
        view, done = memoryview(buffer), 0
        try:
            if not self._head:
                self._head = os.pread(self._descriptor, _HEAD, 0)
            if self._place + len(view) <= len(self._head):
                view[:] = self._head[self._place : self._place + len(view)]
                done = len(view)
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


def check_header(descriptor: int, frames: int, size: int) -> None:
    """Look at an open file of ``size`` bytes and, by its header, so many frames.

    Raises BadClipError: it contradicts itself.
    """
    head = os.pread(descriptor, 12, 0)
    if len(head) == 12 and head[:4] == b"RIFF":
        promised = struct.unpack("<I", head[4:8])[0]
        if 0 < promised < _LONGEST and promised > size:  # some writers count the eight bytes of this chunk's head too
            raise _cut_off(promised + 8 - size)
        if head[8:] == b"WAVE":
            _check_wave(descriptor, size)
    longest_block = int.from_bytes(head[10:12], "big") if head[:4] == b"fLaC" else 65535
    if frames > size // _MIN_BYTES_PER_BLOCK * longest_block:
        raise BadClipError(f"does not say how long it is, or lies: {frames} frames in {size} bytes")


def as_encoded(descriptor: int, audio: Iterable[NDArray[Any]]) -> Iterator[NDArray[Any]]:
    """Give blocks of decoded FLAC (frames, channels) as they come: int16 of a 16-bit file, or float32 of any other.

    Raises BadClipError: at their end, by the MD5 in the file's header (if there is one), they are not what was encoded.
    """
    head = os.pread(descriptor, 42, 0)
    known = head[:4] == b"fLaC" and not head[4] & 0x7F and any(head[26:42])
    bits = ((head[20] & 1) << 4 | head[21] >> 4) + 1 if known else 0
    found = hashlib.md5(usedforsecurity=False)
    for samples in audio:
        if samples.dtype == np.int16:
            found.update(samples.astype("<i2", copy=False).tobytes())
        elif bits in (8, 16, 24):  # float32 holds 24 bits exactly
            wide = (samples * np.float32(2 ** (bits - 1))).astype("<i4")
            found.update(wide.reshape(-1, 1).view(np.uint8)[:, : bits // 8].tobytes())
        yield samples
    if bits in (8, 16, 24) and found.digest() != head[26:42]:
        raise BadClipError("is damaged: its samples are not those that were encoded")


def _check_wave(descriptor: int, size: int) -> None:
    place = 12
    while len(head := os.pread(descriptor, 8, place)) == 8:
        name, length = struct.unpack("<4sI", head)
        place += 8
        if name == b"fmt ":
            _check_format(os.pread(descriptor, 16, place))
        if name == b"data":
            end = place + length
            if length == 0 or (length >= _LONGEST and end > size):
                return
            if end > size:
                raise _cut_off(end - size)
            _check_rest(descriptor, end, size)
            return
        place += length + length % 2


def _check_format(fields: bytes) -> None:
    if len(fields) < 16:
        return
    form, channels, _, _, frame, bits = struct.unpack("<HHIIHH", fields)
    fitting = {channels * -(-bits // 8)} | ({4 * channels} if bits == 24 else set())  # 24 bits may lie in 32
    if form in _PLAIN_FORMATS and frame not in fitting:
        raise BadClipError(f"has a header that contradicts itself: {frame} bytes a frame of {channels} x {bits} bits")


def _check_rest(descriptor: int, end: int, size: int) -> None:
    """Refuse samples that the header does not count; chunks, tags and padding may follow the samples."""
    rest = os.pread(descriptor, 4096, end)
    if len(rest) <= 8 or not any(rest) or rest.startswith((b"TAG", b"ID3")):
        return
    for begin in (0, 1):  # chunks begin at even places, but some writers forget that
        name, length = struct.unpack_from("<4sI", rest, begin)
        if name.isascii() and name.decode("ascii").isprintable() and end + begin + 8 + length <= size + 1:
            return
    raise BadClipError(f"holds {size - end} bytes more than its header counts")


def _cut_off(missing: int) -> BadClipError:
    return BadClipError(f"is cut off: its header promises {missing} bytes more")
