"""How many windows a clip has, and where they begin."""

import math

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rayasd.config import Config

_LEAST_SEEN = 0.25


def window_starts(frames: int, length: int, num_windows: int) -> NDArray[np.int64]:
    """First samples of evenly spaced windows, the last flush with the clip's end; a single window is in the middle."""
    if num_windows == 1:
        return np.array([max(frames - length, 0) // 2], np.int64)
    return np.linspace(0, max(frames - length, 0), num_windows).round().astype(np.int64)


def windows_of(config: Config, frames: float) -> int:
    """Return the windows per clip of a machine whose usual clip has ``frames`` samples."""
    num_windows = config.embedding.num_windows
    if config.embedding.windows_per_second:
        return max(1, math.ceil(config.embedding.windows_per_second * frames / config.data.sample_rate))
    seen = num_windows * config.window_length
    return num_windows if seen >= _LEAST_SEEN * frames else math.ceil(frames / config.window_length)


def usual_frames(table: pa.Table) -> float:
    """Return the samples of a machine's usual clip (``table``: its decoded clips), the longer of training and test."""
    lengths = (table.filter(pc.field("split") == split)["frames"].to_numpy() for split in ("train", "test"))
    return max(float(np.median(of_split)) for of_split in lengths if len(of_split))
