"""One audio file to int16 samples, by declared rules or refused with the reason."""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import gcd
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from rayasd.config import DataConfig


class BadClipError(Exception):
    """A clip that cannot be used; the message is the reason, without the clip's name."""


@dataclass(frozen=True)
class AudioFacts:
    """What a file's header says."""

    frames: int
    sample_rate: int
    channels: int
    subtype: str

    @property
    def seconds(self) -> float:
        """Duration."""
        return self.frames / self.sample_rate


def read_facts(path: Path) -> AudioFacts:
    """Read a file's header.

    Raises:
        BadClipError: not audio, empty, or cut off.

    """
    with _opened(path) as (_, facts):
        return facts


@contextmanager
def _opened(path: Path) -> Iterator[tuple[soundfile.SoundFile, AudioFacts]]:
    try:
        with soundfile.SoundFile(path) as file:
            if file.frames <= 0 or file.samplerate <= 0:
                raise BadClipError("holds no samples")
            if missing := _missing_bytes(path):
                raise BadClipError(f"is cut off: its header promises {missing} bytes more")
            yield file, AudioFacts(file.frames, file.samplerate, file.channels, file.subtype)
    except (soundfile.LibsndfileError, OSError) as error:
        raise BadClipError(_reason(error)) from None


def num_frames(facts: AudioFacts, config: DataConfig) -> int:
    """Frames that ``read_samples`` returns for a file with these facts.

    Raises:
        BadClipError: the file's rate or channels do not fit and no rule converts them.

    """
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
    then rounded to 16 bits with full scale at 32768.

    Returns:
        Array of shape (frames,).

    Raises:
        BadClipError: the audio cannot be decoded, does not fit the rules, or holds NaN or infinity.

    """
    with _opened(path) as (file, facts):
        expected = num_frames(facts, config)
        plain = facts.subtype == "PCM_16" and facts.channels == 1 and facts.sample_rate == config.sample_rate
        audio = file.read(dtype="int16" if plain else "float32", always_2d=not plain)
    if len(audio) != facts.frames:
        raise BadClipError(f"holds {len(audio)} frames where its header promises {facts.frames}")
    if plain:
        return audio
    if not np.isfinite(audio).all():
        raise BadClipError("holds NaN or infinite samples")
    mono = audio[:, int(config.channel)] if config.channel.isdecimal() else audio.mean(axis=1)
    if facts.sample_rate != config.sample_rate:
        from scipy.signal import resample_poly  # 0.3 s to import, and rarely needed

        mono = resample_poly(mono, *_ratio(facts.sample_rate, config.sample_rate))[:expected]
    return np.clip(np.rint(mono * 32768.0), -32768, 32767).astype(np.int16)


def _ratio(rate: int, wanted: int) -> tuple[int, int]:
    divisor = gcd(rate, wanted)
    return wanted // divisor, rate // divisor


def _missing_bytes(path: Path) -> int:
    """Bytes that a RIFF header promises beyond the end of the file; libsndfile shortens such a file silently."""
    with path.open("rb") as file:
        header = file.read(8)
    if len(header) < 8 or header[:4] != b"RIFF":
        return 0
    promised = struct.unpack("<I", header[4:])[0]
    if promised in (0, 0xFFFFFFFF):  # written by a streaming recorder that never knew the length
        return 0
    return max(0, int(promised) + 8 - path.stat().st_size)


def _reason(error: Exception) -> str:
    text = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
    return f"cannot be read as audio: {str(text).rstrip('.')}"
