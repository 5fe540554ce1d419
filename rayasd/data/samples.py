"""Arithmetic of samples: channels, sample rate, level, rounding to int16."""

from collections.abc import Iterator, Sequence
from math import gcd
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayasd.config import DataConfig

_QUIETEST_FLOATS = 2.0**-8  # peaks below it would leave less than 8 of 16 bits
LEVEL = 2.0**-6
"""RMS value with full scale 1, -36 dB: peaks of 64 times as much fit, and rounding to 16 bits adds noise at -101 dB."""


def scale_of(peaks: Sequence[float]) -> float:
    """Return what a machine's floats are divided by, given the peaks of its training clips.

    It is 1 where they go from -1 to 1 as floats do. Of other units (Pa, g), it is a power of 2 of four to eight times
    their median, so that a louder clip has room.
    """
    typical = float(np.median(peaks)) if len(peaks) else 1.0
    if typical == 0.0 or _QUIETEST_FLOATS <= typical <= 1.0:
        return 1.0
    return float(2.0 ** (np.ceil(np.log2(typical)) + 2))


def resampled(blocks: Iterator[NDArray[np.floating]], up: int, down: int, expected: int) -> Iterator[NDArray[Any]]:
    """Resample by ``scipy.signal.resample_poly``, block by block with what its filter reaches on both sides."""
    from scipy.signal import resample_poly  # 0.3 s to import, and rarely needed

    margin = -(-(10 * max(up, down) // up + 1) // down) * down  # half of its filter, in whole periods
    held, block, done = next(blocks), next(blocks, None), 0
    reach = 0  # samples at the beginning of ``held`` that only the filter needs
    while block is not None:
        end = (len(held) - margin) // down * down
        if end > reach:
            made = resample_poly(held[: end + margin], up, down)[reach * up // down : end * up // down]
            yield made
            done += len(made)
            begin = max(0, end - margin)
            held, reach = held[begin:], end - begin
        held, block = np.concatenate([held, block]), next(blocks, None)
    yield resample_poly(held, up, down)[reach * up // down :][: expected - done]


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


def at_level(samples: NDArray[Any], config: DataConfig) -> NDArray[np.int16]:
    """Scale samples (n,), int16 or of full scale 1, as ``data.level`` asks for; silence stays silence."""
    if config.level == "keep":
        return samples if samples.dtype == np.int16 else rounded(samples)
    samples = unit(samples)
    rms = np.sqrt(np.square(samples, dtype=np.float64).mean())
    return rounded(samples * (LEVEL / rms) if rms > 0 else samples)


def unit(samples: NDArray[Any]) -> NDArray[np.floating]:
    """Return samples with full scale 1."""
    return samples / 32768.0 if samples.dtype == np.int16 else samples


def rounded(samples: NDArray[np.floating]) -> NDArray[np.int16]:
    """Round samples of full scale 1 to int16."""
    return np.clip(np.rint(samples * 32768.0), -32768, 32767).astype(np.int16)


def ratio(rate: int, wanted: int) -> tuple[int, int]:
    """Return up and down, without a common divisor, by which a rate becomes the wanted one."""
    divisor = gcd(rate, wanted)
    return wanted // divisor, rate // divisor
