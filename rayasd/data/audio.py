"""One audio file to int16 samples, by declared rules or refused with the reason."""

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from rayasd.config import DataConfig
from rayasd.data.folders import is_other_audio, is_signal
from rayasd.data.headers import contradiction, flac_differs, impossible_length
from rayasd.data.signals import as_wave
from rayasd.errors import StorageError

NEAR_FAR = "near-far"
_PLAIN = DataConfig()
NO_MEMORY = "needs more memory than there is"
_FLOATS = ("FLOAT", "DOUBLE")
_QUIETEST_FLOATS = 2.0**-8
"""Peaks below it would leave less than 8 of 16 bits."""
_RATES = range(1000, 1_000_001)
_MOST_OVER_FULL_SCALE = 16.0
"""24 dB: what exceeds it was not overdriven but never scaled to ±1, and clipping it would leave noise."""
_LEVEL = 2.0**-6
"""RMS value with full scale 1, -36 dB: peaks of 64 times as much fit, and rounding to 16 bits adds noise at -101 dB."""
_OWN_FAULTS = (
    errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES, errno.EPERM, errno.ENXIO, errno.ENAMETOOLONG, errno.EISDIR,
)  # fmt: skip
_SYSTEM_ERROR = 2  # libsndfile's word for a read that failed
_ERRORS = (OSError, ValueError, TypeError, RuntimeError, MemoryError, OverflowError)
"""What soundfile raises besides its own, for codecs that cannot seek, say."""
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


CUT = "#t="
"""In a clip's path, before the seconds at which it begins and ends in its file: ``a.wav#t=10,20``."""


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


def read_facts(path: Path, config: DataConfig = _PLAIN) -> AudioFacts:
    """Read a file's header; of numbers (.npy, .mat, .csv), ``config`` tells the rate and the column.

    Raises:
        BadClipError: no file, not audio, empty, cut off, or with a header that lies.
        StorageError: its disk or this host fails.

    """
    with _opened(path, config) as (_, _, facts, _):
        return facts


def uncut(path: Path) -> tuple[Path, tuple[float, float] | None]:
    """Return the file of a clip, and the seconds that it begins and ends at if it is a piece of it."""
    file, found, seconds = str(path).rpartition(CUT)
    begin, comma, end = seconds.partition(",")
    with suppress(ValueError, OSError):  # no numbers, or a name that is too long
        if found and comma and not path.exists():
            return Path(file), (float(begin), float(end))
    return path, None


def what_it_is(mode: int) -> str | None:
    """Say what a thing is that is no regular file, by its mode; None for a file."""
    return None if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "no file")


@contextmanager
def _opened(clip: Path, config: DataConfig) -> Iterator[tuple[int, soundfile.SoundFile, AudioFacts, int]]:
    """Open a clip: descriptor, file, what its header says of the clip, and the clip's first frame in its file."""
    path, piece = uncut(clip)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe that nobody writes to must not keep us
    except OSError as error:
        raise _blame(path, error) from None
    try:
        before = os.fstat(descriptor)
        if kind := what_it_is(before.st_mode):
            raise BadClipError(f"is {kind}, not a file")
        numbers = is_signal(path.name)
        if numbers and not config.signal_rate:
            raise BadClipError("has no sample rate of its own: data.signal_rate (data index --rate) tells it")
        source = as_wave(path, config.signal_rate, config.signal_column) if numbers else descriptor
        with soundfile.SoundFile(source, closefd=False) as file:
            if file.frames <= 0 or file.samplerate <= 0:
                raise BadClipError("holds no samples")
            size = before.st_size
            if lie := contradiction(descriptor, size) or impossible_length(descriptor, file.frames, size):
                raise BadClipError(lie)
            first, frames = _span(piece, file)
            facts = AudioFacts(frames, file.samplerate, file.channels, file.subtype, file.format, size)
            yield descriptor, file, facts, first
        after = os.fstat(descriptor)
        if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            raise BadClipError("changed while it was read: is it still being written?")
    except (soundfile.SoundFileError, *_ERRORS) as error:
        raise _blame(path, error) from None
    finally:
        os.close(descriptor)


def _span(piece: tuple[float, float] | None, file: soundfile.SoundFile) -> tuple[int, int]:
    """First frame and number of frames of a clip in its file."""
    if piece is None:
        return 0, file.frames
    begin, end = (round(seconds * file.samplerate) for seconds in piece)
    if not 0 <= begin < end <= file.frames:
        raise BadClipError(f"is no piece of its file, which has {file.frames / file.samplerate:g} s")
    return begin, end - begin


def num_frames(facts: AudioFacts, config: DataConfig) -> int:
    """Frames that ``read_samples`` returns for a file with these facts.

    Raises:
        BadClipError: the file's rate or channels do not fit and no rule converts them.

    """
    if facts.sample_rate not in _RATES:
        raise BadClipError(f"has {facts.sample_rate} Hz by its header, beyond {_RATES[0]} to {_RATES[-1]}")
    if facts.sample_rate != config.sample_rate and not config.resample:
        raise BadClipError(
            f"has {facts.sample_rate} Hz among {config.sample_rate} Hz: --set data.resample=true (score: --resample) "
            "converts it"
        )
    if config.channel == "only" and facts.channels != 1:
        raise BadClipError(
            f"has {facts.channels} channels: --set data.channel=0 (score: --channel 0) takes the first, mean averages "
            "them"
        )
    if config.channel == NEAR_FAR and facts.channels < 2:
        raise BadClipError("has one channel: data.channel near-far needs a near and a far one")
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
    with _opened(path, config) as (descriptor, file, facts, first):
        expected = num_frames(facts, config)
        plain = facts.subtype == "PCM_16" and facts.channels == 1 and facts.sample_rate == config.sample_rate
        audio = _read(file, first, facts.frames, "int16" if plain else "float32")
        if len(audio) != facts.frames:
            raise BadClipError(f"holds {len(audio)} frames where its header promises {facts.frames}")
        whole = facts.frames == file.frames
        if whole and facts.container == "FLAC" and flac_differs(descriptor, audio[:, 0] if plain else audio):
            raise BadClipError("is damaged: its samples are not those that were encoded")
    if plain:
        return at_level(audio[:, 0], config)
    if not np.isfinite(audio).all():
        raise BadClipError("holds NaN or infinite samples")
    if facts.subtype in _FLOATS and config.scale not in (0.0, 1.0):
        audio = audio / np.float32(config.scale)
    if max(audio.max(), -audio.min()) > _MOST_OVER_FULL_SCALE:
        raise BadClipError("holds samples far beyond full scale: floats go from -1 to 1, or to data.scale")
    mono = _mono(audio, config.channel)
    if facts.sample_rate != config.sample_rate:
        from scipy.signal import resample_poly  # 0.3 s to import, and rarely needed

        mono = resample_poly(mono, *_ratio(facts.sample_rate, config.sample_rate))[:expected]
    return _rounded(mono if config.level == "keep" else _levelled(mono))


def float_peak(path: Path, config: DataConfig) -> float | None:
    """Largest absolute value of a clip of floats; None of integers, and of a clip that cannot be read."""
    with suppress(BadClipError), _opened(path, config) as (_, file, facts, first):
        if facts.subtype in _FLOATS:
            peak = float(np.abs(_read(file, first, facts.frames, "float32")).max(initial=0.0))
            return peak if np.isfinite(peak) else None
    return None


def scale_of(peaks: Sequence[float]) -> float:
    """Return what a machine's floats are divided by, given the peaks of its training clips.

    It is 1 where they go from -1 to 1 as floats do. Of other units (Pa, g), it is a power of 2 of four to eight times
    their median, so that a louder clip has room.
    """
    typical = float(np.median(peaks)) if len(peaks) else 1.0
    if typical == 0.0 or _QUIETEST_FLOATS <= typical <= 1.0:
        return 1.0
    return float(2.0 ** (np.ceil(np.log2(typical)) + 2))


def _read(file: soundfile.SoundFile, first: int, frames: int, dtype: str) -> NDArray[Any]:
    """Read frames of all channels, also of a codec that cannot seek."""
    if first and file.seekable():
        file.seek(first)
        first = 0
    return np.asarray(file.read(first + frames, dtype=dtype, always_2d=True)[first:])


def _mono(audio: NDArray[np.float32], channel: str) -> NDArray[np.floating]:
    if channel == NEAR_FAR:
        return without_far(audio[:, 0], audio[:, 1])
    return audio[:, int(channel)] if channel.isdecimal() else audio.mean(axis=1)


def without_far(near: NDArray[np.floating], far: NDArray[np.floating]) -> NDArray[np.floating]:
    """Subtract from a microphone near a machine, (n,), what one far from it, (n,), hears too: y = C - H F.

    H is the least-squares filter of each frequency over the clip, sum C conj(F) / (sum |F|^2 + 1e-12), of transforms of
    1024 samples every 512. What only the near microphone hears stays.
    """
    from scipy.signal import istft, stft

    size = min(1024, len(near))
    C, F = (stft(x, nperseg=size, noverlap=size // 2)[2] for x in (near, far))
    H = (C * F.conj()).sum(axis=-1, keepdims=True) / (np.square(np.abs(F)).sum(axis=-1, keepdims=True) + 1e-12)
    cleaned = istft(C - H * F, nperseg=size, noverlap=size // 2)[1]
    return np.asarray(np.resize(cleaned, len(near)) if len(cleaned) < len(near) else cleaned[: len(near)])


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
    remedy = ": ffmpeg -i FILE FILE.wav converts it" if is_other_audio(path.name) else ""
    return BadClipError(_reason(error) + remedy)


def _reason(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return NO_MEMORY
    text = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
    return f"cannot be read as audio: {str(text).rstrip('.')}"
