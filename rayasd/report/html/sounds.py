"""Clips to see and to hear: a log-mel spectrogram with its axes, and the samples as FLAC, both as data URIs."""

import base64
import io
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from markupsafe import Markup
from numpy.typing import NDArray

from rayasd.config import Config
from rayasd.data.audio import read_samples, uncut
from rayasd.errors import BadClipError
from rayasd.report.html.svg import PlotArea, drawing, tag, ticks

MAX_SECONDS = 10.0  # seconds of a clip that are shown and heard
_WIDTH, _HEIGHT = 240, 64  # pixels, at most
_COLOURS = np.array(
    [[0, 0, 4], [29, 17, 71], [81, 18, 124], [131, 38, 129], [183, 55, 121], [231, 82, 99], [252, 137, 97],
     [254, 196, 136], [252, 253, 191]]
)  # fmt: skip
"""From black over purple and orange to a pale yellow, as matplotlib's magma."""
_DECIBELS = 70.0  # between black and white


Picture = Callable[[str, NDArray[np.int16], tuple[float, float] | None], Markup]


def spectrogram_of(config: Config) -> Picture:
    """Return a function that draws a log-mel spectrogram with the run's front end.

    It takes a title, samples (frames,), and the beginning and end of a window to mark, in seconds.
    """
    import torch  # seconds to import
    from torchaudio.transforms import MelSpectrogram

    front, rate = config.front_end, config.data.sample_rate
    mel = MelSpectrogram(
        rate, n_fft=front.n_fft, hop_length=front.hop_length, f_min=front.f_min, f_max=front.highest(rate),
        n_mels=min(front.n_mels, _HEIGHT), center=True, pad_mode="constant",
    )  # fmt: skip

    low, high = (_mel(frequency) for frequency in (front.f_min, front.highest(rate)))
    kilohertz = [(_mel(1000 * f), f"{f:g}") for f in (0.5, 1, 2, 4, 8, 16) if low <= _mel(1000 * f) <= high + 1]

    def picture(title: str, samples: NDArray[np.int16], window: tuple[float, float] | None) -> Markup:
        power = mel(torch.from_numpy(samples.astype(np.float32) / 32768)).numpy()
        decibels = 10 * np.log10(np.maximum(power, 1e-12))
        grey = np.clip((decibels - float(decibels.max()) + _DECIBELS) / _DECIBELS, 0, 1)
        seconds = len(samples) / rate
        area = PlotArea(26, 14, _WIDTH, 84, (0, seconds), (low, high))
        image = tag("image", href=_png((255 * grey[::-1]).round().astype(np.uint8)), x=area.left, y=area.top,
                    width=area.width, height=area.height, preserveAspectRatio="none")  # fmt: skip
        shapes = [area.axes(ticks(0, seconds), kilohertz, "", "kHz"), image]
        if window is not None and window[0] < seconds:
            shapes.append(area.band((window[0], min(window[1], seconds)), "window", "the most unusual window"))
        return drawing(_WIDTH + 34, 116, title, *shapes)

    return picture


def _mel(hertz: float) -> float:
    return 2595 * math.log10(1 + hertz / 700)  # as torchaudio's "htk"


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
    """Write samples (frames,) as mono 16-bit FLAC."""
    file = io.BytesIO()
    soundfile.write(file, samples, sample_rate, format="FLAC", subtype="PCM_16")
    return _data_uri("audio/flac", file.getvalue())


def read_clip(root: Path, clip: dict[str, Any], config: Config) -> NDArray[np.int16] | str:
    """Read the beginning of a clip (a row of the catalog), or return why it cannot be read."""
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
