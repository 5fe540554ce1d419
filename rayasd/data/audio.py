"""One audio file to int16 samples, by declared rules or refused with the reason."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import gcd
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from rayasd.config import DataConfig
from rayasd.data.headers import contradiction, flac_differs, impossible_length
from rayasd.errors import StorageError

_RATES = range(1000, 1_000_001)
_MOST_OVER_FULL_SCALE = 16.0
"""24 dB: what exceeds it was not overdriven but never scaled to ±1, and clipping it would leave noise."""
_LEVEL = 2.0**-6
"""RMS value with full scale 1, -36 dB: peaks of 64 times as much fit, and rounding to 16 bits adds noise at -101 dB."""
_OWN_FAULTS = (
    errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES, errno.EPERM, errno.ENXIO, errno.ENAMETOOLONG, errno.EISDIR,
)  # fmt: skip
_SYSTEM_ERROR = 2  # libsndfile's word for a read that failed
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class BadClipError(Exception):
    """A clip that cannot be used; the message is the reason, without the clip's name."""


@dataclass(frozen=True)
class AudioFacts:
    """What a file's header says."""

    frames: int
    sample_rate: int
    channels: int
    subtype: str
    container: str
    """WAV, FLAC, MP3 …: what the file is, whatever its name says."""
    size: int
    """Bytes of the file."""

    @property
    def seconds(self) -> float:
        """Duration."""
        return self.frames / self.sample_rate


def read_facts(path: Path) -> AudioFacts:
    """Read a file's header.

    Raises:
        BadClipError: no file, not audio, empty, cut off, or with a header that lies.
        StorageError: its disk or this host fails.

    """
    with _opened(path) as (_, _, facts):
        return facts


def what_it_is(mode: int) -> str | None:
    """Say what a thing is that is no regular file, by its mode; None for a file."""
    return None if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "no file")


@contextmanager
def _opened(path: Path) -> Iterator[tuple[int, soundfile.SoundFile, AudioFacts]]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe that nobody writes to must not keep us
    except OSError as error:
        raise _blame(path, error) from None
    try:
        before = os.fstat(descriptor)
        if kind := what_it_is(before.st_mode):
            raise BadClipError(f"is {kind}, not a file")
        with soundfile.SoundFile(descriptor, closefd=False) as file:
            if file.frames <= 0 or file.samplerate <= 0:
                raise BadClipError("holds no samples")
            size = before.st_size
            if lie := contradiction(descriptor, size) or impossible_length(descriptor, file.frames, size):
                raise BadClipError(lie)
            yield (
                descriptor,
                file,
                AudioFacts(file.frames, file.samplerate, file.channels, file.subtype, file.format, before.st_size),
            )
        after = os.fstat(descriptor)
        if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            raise BadClipError("changed while it was read: is it still being written?")
    except (soundfile.LibsndfileError, OSError) as error:
        raise _blame(path, error) from None
    finally:
        os.close(descriptor)


def num_frames(facts: AudioFacts, config: DataConfig) -> int:
    """Frames that ``read_samples`` returns for a file with these facts.

    Raises:
        BadClipError: the file's rate or channels do not fit and no rule converts them.

    """
    if facts.sample_rate not in _RATES:
        raise BadClipError(f"has {facts.sample_rate} Hz by its header, beyond {_RATES[0]} to {_RATES[-1]}")
    if facts.sample_rate != config.sample_rate and not config.resample:
        raise BadClipError(
            f"has {facts.sample_rate} Hz among {config.sample_rate} Hz: --set data.resample=true converts it"
        )
    if config.channel == "only" and facts.channels != 1:
        raise BadClipError(f"has {facts.channels} channels: --set data.channel=0 takes the first, =mean averages them")
    if config.channel.isdecimal() and int(config.channel) >= facts.channels:
        raise BadClipError(f"has no channel {config.channel}: it has {facts.channels}, counted from 0")
    up, down = _ratio(facts.sample_rate, config.sample_rate)
    return -(-facts.frames * up // down)


def read_samples(path: Path, config: DataConfig) -> NDArray[np.int16]:
    """Decode a clip to mono int16 at ``config.sample_rate``.

    16-bit mono files of that rate come out bit for bit. Everything else is converted in float: channels, then rate,
    then rounded to 16 bits with full scale at 32768. With ``data.level = "clip"``, all are scaled to one RMS value.

    Returns:
        Array of shape (frames,).

    Raises:
        BadClipError: the audio cannot be decoded, does not fit the rules, holds NaN or infinity or floats far beyond
            full scale, is not what a FLAC encoder was given, or changed while it was read.

    """
    with _opened(path) as (descriptor, file, facts):
        expected = num_frames(facts, config)
        plain = facts.subtype == "PCM_16" and facts.channels == 1 and facts.sample_rate == config.sample_rate
        audio = file.read(dtype="int16" if plain else "float32", always_2d=not plain)
        if len(audio) != facts.frames:
            raise BadClipError(f"holds {len(audio)} frames where its header promises {facts.frames}")
        if facts.container == "FLAC" and flac_differs(descriptor, audio):
            raise BadClipError("is damaged: its samples are not those that were encoded")
    if plain:
        return at_level(audio, config)
    if not np.isfinite(audio).all():
        raise BadClipError("holds NaN or infinite samples")
    if (peak := max(audio.max(), -audio.min())) > _MOST_OVER_FULL_SCALE:
        raise BadClipError(f"holds samples up to {peak:g}: floats go from -1 to 1")
    mono = audio[:, int(config.channel)] if config.channel.isdecimal() else audio.mean(axis=1)
    if facts.sample_rate != config.sample_rate:
        from scipy.signal import resample_poly  # 0.3 s to import, and rarely needed

        mono = resample_poly(mono, *_ratio(facts.sample_rate, config.sample_rate))[:expected]
    return _rounded(mono if config.level == "keep" else _levelled(mono))


def at_level(samples: NDArray[np.int16], config: DataConfig) -> NDArray[np.int16]:
    """Scale samples (n,) as ``data.level`` asks for."""
    return samples if config.level == "keep" else _rounded(_levelled(samples / 32768.0))


def _levelled(samples: NDArray[np.floating]) -> NDArray[np.floating]:
    """Scale to an RMS value of ``_LEVEL``; silence stays silence."""
    rms = np.sqrt(np.square(samples, dtype=np.float64).mean())
    return samples * (_LEVEL / rms) if rms > 0 else samples


def _rounded(samples: NDArray[np.floating]) -> NDArray[np.int16]:
    return np.clip(np.rint(samples * 32768.0), -32768, 32767).astype(np.int16)


def _ratio(rate: int, wanted: int) -> tuple[int, int]:
    divisor = gcd(rate, wanted)
    return wanted // divisor, rate // divisor


def _blame(path: Path, error: Exception) -> BadClipError | StorageError:
    """Tell a clip that is at fault itself from a disk or a host that is: of these, no clip is left out."""
    of_host = isinstance(error, OSError) and error.errno not in _OWN_FAULTS
    if of_host or getattr(error, "code", None) == _SYSTEM_ERROR:
        return StorageError(f"{path} {_reason(error)}: look at its disk, then the same command goes on")
    return BadClipError(_reason(error))


def _reason(error: Exception) -> str:
    text = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
    return f"cannot be read as audio: {str(text).rstrip('.')}"
