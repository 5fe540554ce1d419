"""One audio file to int16 samples, by declared rules or refused with the reason."""

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from rayasd.config import DataConfig
from rayasd.data.damage import Reads, as_encoded, check_header
from rayasd.data.folders import BY_FFMPEG, blame_disk, is_signal
from rayasd.data.samples import LEVEL, at_level, ratio, resampled, rounded, unit, without_far
from rayasd.data.signals import as_wave, by_ffmpeg
from rayasd.errors import BadClipError

NEAR_FAR = "near-far"
_PLAIN = DataConfig()
NO_MEMORY = "needs more memory than there is"
FLOATS = ("FLOAT", "DOUBLE")
_RATES = range(1000, 1_000_001)
_MOST_OVER_FULL_SCALE = 16.0
"""24 dB: what exceeds it was not overdriven but never scaled to ±1, and clipping it would leave noise."""
_BLOCK = 1 << 22  # samples of all channels that are read at once; shorter clips are read as a whole
_MOST_NEAR_FAR = 1 << 26
_SYSTEM_ERROR = 2  # libsndfile's word for a read that failed
_ERRORS = (OSError, ValueError, TypeError, RuntimeError, MemoryError, OverflowError)
"""Errors that soundfile raises besides its own, for instance for codecs that cannot seek."""
_KINDS = {"-": None, "d": "a folder", "p": "a pipe", "s": "a socket", "c": "a device", "b": "a device"}
"""By the first letter of ``stat.filemode``."""
CUT = "#t="
"""In a clip's path, before the seconds at which it begins and ends in its file: ``a.wav#t=10,20``."""


class TooLongError(Exception):
    """A clip has more samples than its reader takes at once."""


@dataclass(frozen=True)
class AudioFacts:
    """A file's header."""

    frames: int
    sample_rate: int
    channels: int
    subtype: str
    container: str  # WAV, FLAC, MP3 …: what the file is, whatever its name says
    size: int  # bytes of the file

    @property
    def seconds(self) -> float:
        """Duration."""
        return self.frames / self.sample_rate


def read_facts(path: Path, config: DataConfig = _PLAIN) -> AudioFacts:
    """Read a file's header; of numbers (.npy, .mat, .csv), ``config`` tells the rate and the column.

    Raises BadClipError: no file, not audio, empty, cut off, or with a header that lies; StorageError: its disk or this
    host fails.
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
    """Name the kind of a path that is no regular file, by its mode; None for a file."""
    return _KINDS.get(stat.filemode(mode)[0], "no file")


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
        wave = by_ffmpeg(path, before.st_size, before.st_mtime_ns) if path.suffix.lower() in BY_FFMPEG else None
        reads = Reads(wave.fileno() if wave else descriptor, wave.seek(0, os.SEEK_END) if wave else before.st_size)
        source = as_wave(path, config.signal_rate, config.signal_column) if numbers else reads
        with reads, soundfile.SoundFile(source) as file:
            if file.frames <= 0 or file.samplerate <= 0:
                raise BadClipError("holds no samples")
            check_header(descriptor, file.frames, before.st_size)
            first, frames = _span(piece, file)
            facts = AudioFacts(frames, file.samplerate, file.channels, file.subtype, file.format, before.st_size)
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
    """Return the frames that ``read_samples`` returns for a file with these facts.

    Raises BadClipError: the file's rate or channels do not fit and no rule converts them.
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
    up, down = ratio(facts.sample_rate, config.sample_rate)
    return -(-facts.frames * up // down)


def read_samples(path: Path, config: DataConfig, most: float = np.inf) -> NDArray[np.int16]:
    """Decode a clip to mono int16 (frames,) at ``config.sample_rate``.

    16-bit mono files of that rate come out bit for bit. Everything else is converted in float: channels, then rate,
    then rounded to 16 bits with full scale at 32768. With ``data.level = "clip"``, all are scaled to one RMS value.

    Raises BadClipError: the audio cannot be decoded, does not fit the rules, holds NaN or infinity or floats far beyond
    full scale, is not what a FLAC encoder was given, or changed while it was read. TooLongError: it has more than
    ``most`` samples.
    """
    return _joined(sample_blocks(path, config, most))


def sample_blocks(path: Path, config: DataConfig, most: float = np.inf) -> Iterator[NDArray[np.int16]]:
    """Give what ``read_samples`` returns in blocks, so that a recording of days takes no more memory than an hour's.

    It raises the same errors, perhaps after the first blocks. A clip of several blocks is read twice where it is scaled
    to one RMS value.
    """
    blocks = _mono_blocks(path, config, most)
    begun = list(islice(blocks, 2))
    if config.level != "keep" and len(begun) == 2:
        count, squares = 0, 0.0
        for block in chain(begun, blocks):
            count, squares = count + len(block), squares + np.square(unit(block), dtype=np.float64).sum()
        gain = LEVEL / (squares / count) ** 0.5 if squares else 1.0
        yield from (rounded(unit(block) * gain) for block in _mono_blocks(path, config))
        return
    yield from (at_level(block, config) for block in chain(begun, blocks))


def _mono_blocks(path: Path, config: DataConfig, most: float = np.inf) -> Iterator[NDArray[Any]]:
    """Give a clip's samples at the wanted rate, not levelled: int16 as in the file, or floats with full scale 1."""
    with _opened(path, config) as (descriptor, file, facts, first):
        expected = num_frames(facts, config)
        if expected > most:
            raise TooLongError
        plain = facts.subtype == "PCM_16" and facts.channels == 1 and facts.sample_rate == config.sample_rate
        audio = _read(file, first, facts.frames, "int16" if plain else "float32")
        if facts.frames == file.frames and facts.container == "FLAC":
            audio = as_encoded(descriptor, audio)
        if plain:
            yield from (block[:, 0] for block in audio)
            return
        mono = _mono((_checked(block, facts, config) for block in audio), facts.frames, config.channel)
        up, down = ratio(facts.sample_rate, config.sample_rate)
        yield from mono if up == down else resampled(mono, up, down, expected)


def _checked(audio: NDArray[np.float32], facts: AudioFacts, config: DataConfig) -> NDArray[np.float32]:
    if not np.isfinite(audio).all():
        raise BadClipError("holds NaN or infinite samples")
    if facts.subtype in FLOATS and config.scale not in (0.0, 1.0):
        audio = audio / np.float32(config.scale)
    if max(audio.max(), -audio.min()) > _MOST_OVER_FULL_SCALE:
        raise BadClipError("holds samples far beyond full scale: floats go from -1 to 1, or to data.scale")
    return audio


def _joined(blocks: Iterable[NDArray[Any]]) -> NDArray[Any]:
    found = list(blocks)
    return found[0] if len(found) == 1 else np.concatenate(found)


def float_peak(path: Path, config: DataConfig) -> float | None:
    """Largest absolute value of a clip of floats; None of integers, and of a clip that cannot be read."""
    with suppress(BadClipError), _opened(path, config) as (_, file, facts, first):
        if facts.subtype in FLOATS:
            peak = float(max(np.abs(block).max() for block in _read(file, first, facts.frames, "float32")))
            return peak if np.isfinite(peak) else None
    return None


def _read(file: soundfile.SoundFile, first: int, frames: int, dtype: str) -> Iterator[NDArray[Any]]:
    """Read frames of all channels (frames, channels) in blocks, also of a codec that cannot seek."""
    size = max(1, _BLOCK // file.channels)
    if first and file.seekable():
        file.seek(first)
    else:
        for begin in range(0, first, size):
            file.read(min(size, first - begin), dtype=dtype)
    for begin in range(0, frames, size):
        audio = np.asarray(file.read(min(size, frames - begin), dtype=dtype, always_2d=True))
        if len(audio) != min(size, frames - begin):
            raise BadClipError(f"holds {begin + len(audio)} frames where its header promises {frames}")
        yield audio


def _mono(audio: Iterable[NDArray[np.float32]], frames: int, channel: str) -> Iterator[NDArray[np.floating]]:
    if channel == NEAR_FAR:  # one filter for the whole clip
        if frames > _MOST_NEAR_FAR:
            raise BadClipError(f"is too long for data.channel near-far: more than {_MOST_NEAR_FAR} frames")
        whole = _joined(audio)
        yield without_far(whole[:, 0], whole[:, 1])
        return
    yield from (block[:, int(channel)] if channel.isdecimal() else block.mean(axis=1) for block in audio)


def _blame(path: Path, error: Exception) -> BadClipError:
    """Return why a clip is at fault itself; raises StorageError where its disk or a host is."""
    text = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
    reason = NO_MEMORY if isinstance(error, MemoryError) else f"cannot be read as audio: {str(text).rstrip('.')}"
    failed = getattr(error, "code", None) == _SYSTEM_ERROR
    blame_disk(path, OSError() if failed else error, reason)
    return BadClipError(reason)
