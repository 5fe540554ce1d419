"""Clips to see and to hear: a log-mel spectrogram as a small PNG and the samples as WAV, both as data URIs."""

import base64
import io
import wave
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayasd.config import Config
from rayasd.data.audio import BadClipError, read_samples, uncut

MAX_SECONDS = 10.0
"""Seconds of a clip that are shown and heard."""
_WIDTH, _HEIGHT = 192, 64  # pixels, at most
_COLOURS = np.array(
    [[0, 0, 4], [29, 17, 71], [81, 18, 124], [131, 38, 129], [183, 55, 121], [231, 82, 99], [252, 137, 97],
     [254, 196, 136], [252, 253, 191]]
)  # fmt: skip
"""From black over purple and orange to a pale yellow, as matplotlib's magma."""
_DECIBELS = 70.0  # between black and white


def spectrogram_of(config: Config) -> Callable[[NDArray[np.int16]], str]:
    """Return a function from samples (frames,) to the PNG of their log-mel spectrogram with the run's front end."""
    import torch  # seconds to import
    from torchaudio.transforms import MelSpectrogram

    front, rate = config.front_end, config.data.sample_rate
    mel = MelSpectrogram(
        rate, n_fft=front.n_fft, hop_length=front.hop_length, f_min=front.f_min, f_max=front.highest(rate),
        n_mels=min(front.n_mels, _HEIGHT), center=True, pad_mode="constant",
    )  # fmt: skip

    def picture(samples: NDArray[np.int16]) -> str:
        power = mel(torch.from_numpy(samples.astype(np.float32) / 32768)).numpy()
        decibels = 10 * np.log10(np.maximum(power, 1e-12))
        high = float(decibels.max())
        grey = np.clip((decibels - high + _DECIBELS) / _DECIBELS, 0, 1)
        return _png((255 * grey[::-1]).round().astype(np.uint8))

    return picture


def _png(values: NDArray[np.uint8]) -> str:
    """Write values (rows, columns) as a PNG with a palette, no wider than it is shown."""
    from PIL import Image

    image = Image.fromarray(values).resize((min(values.shape[1], _WIDTH), values.shape[0]), Image.Resampling.BOX)
    levels = Image.fromarray(np.asarray(image) // 8)  # 32 levels are told apart by few, and are half the bytes
    palette = [np.interp(np.arange(32) / 31, np.linspace(0, 1, len(_COLOURS)), channel) for channel in _COLOURS.T]
    levels.putpalette(np.column_stack(palette).round().astype(np.uint8).tobytes())
    file = io.BytesIO()
    levels.save(file, "PNG", optimize=True)
    return _data_uri("image/png", file.getvalue())


def sound(samples: NDArray[np.int16], sample_rate: int) -> str:
    """Write samples (frames,) as mono 16-bit WAV."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((1, 2, sample_rate, 0, "NONE", ""))
        writer.writeframes(samples.astype("<i2").tobytes())
    return _data_uri("audio/wav", file.getvalue())


def read_clip(root: Path, clip: dict[str, Any], config: Config) -> NDArray[np.int16] | str:
    """Read the beginning of a clip (a row of the catalog), or say why it cannot be had."""
    path, file = root / clip["clip"], uncut(root / clip["clip"])[0]
    if not file.is_file():
        return "its file is gone"
    if file.stat().st_size != clip["size"]:
        return "its file has changed since the sweep"
    try:
        return read_samples(path, replace(config.data, scale=clip.get("scale", 1.0)))[
            : round(MAX_SECONDS * config.data.sample_rate)
        ]
    except BadClipError as error:
        return str(error)


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
