"""Clips of a machine, changed so that they are its own no longer: what a machine that is alone learns against."""

import numpy as np
from numpy.typing import NDArray

from rayasd.data.waveforms import Waveforms

_MOST_WINDOWS = 8  # longest piece of a clip that is changed
_SEMITONES = (1.0, 5.0)
_FILTER_DB = 9.0  # standard deviation of a filter's gain at each of its knots


def changed(waveforms: Waveforms, clips: NDArray[np.int64], window: int, rng: np.random.Generator) -> Waveforms:
    """Change clips: each has another pitch (and speed), or passes a random filter of its own at the same level.

    The pitch goes up or down by 1 to 5 semitones; half of the clips are played backwards as well.

    ``clips``: which of the machine's, (n,); ``window``: samples of a training window; a long clip gives a piece of
    eight.

    Returns n clips, in memory.
    """
    pieces = [_changed(_piece(waveforms, int(clip), window, rng), rng) for clip in clips]
    frames = np.array([len(piece) for piece in pieces], np.int64)
    return Waveforms(np.concatenate(pieces), np.cumsum(frames) - frames, frames)


def _piece(waveforms: Waveforms, clip: int, window: int, rng: np.random.Generator) -> NDArray[np.float64]:
    length = min(int(waveforms.frames[clip]), _MOST_WINDOWS * window)
    out = np.empty(length, np.int16)
    waveforms.window(clip, int(rng.integers(0, waveforms.frames[clip] - length + 1)), length, out)
    return out.astype(np.float64)


def _changed(samples: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.int16]:
    if rng.random() < 0.5:
        speed = 2.0 ** (rng.choice([-1, 1]) * rng.uniform(*_SEMITONES) / 12)
        samples = np.interp(np.arange(0, len(samples) - 1, speed), np.arange(len(samples)), samples)
    else:
        samples = _filtered(samples, rng)
    if rng.random() < 0.5:
        samples = samples[::-1]
    return np.clip(np.rint(samples), -32768, 32767).astype(np.int16)


def _filtered(samples: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Filter by a gain that is drawn at nine frequencies, an octave apart from half the rate down."""
    spectrum = np.fft.rfft(samples)
    octaves = np.log2(np.linspace(2.0**-9, 1.0, len(spectrum)))
    gain_db = np.interp(octaves, np.arange(-8.0, 1.0), rng.normal(0.0, _FILTER_DB, 9))
    filtered = np.fft.irfft(spectrum * 10 ** (gain_db / 20), len(samples))
    level, before = (np.sqrt(np.mean(np.square(x))) for x in (filtered, samples))
    return filtered * (before / level) if level > 0 else samples
