"""How many windows a clip has, and how high they reach."""

import pyarrow as pa
import pytest

from rayasd import presets
from rayasd.config import Config
from rayasd.windows import usual_frames, windows_of


def clips(train: float, test: float | None = None) -> pa.Table:
    """Three clips a split of so many seconds at 16 kHz."""
    rows = [("train", int(16000 * train))] * 3 + ([("test", int(16000 * test))] * 3 if test else [])
    return pa.Table.from_pylist([dict(zip(("split", "frames"), row, strict=True)) for row in rows])


@pytest.mark.parametrize(
    ("seconds", "windows"), [((10.0,), 4), ((16.0,), 4), ((40.0,), 40), ((2.0, 40.0), 40), ((40.5, 2.0), 41)]
)
def test_long_clips_get_windows_end_to_end(seconds: tuple[float, ...], windows: int):
    config = presets.load("demo", ["front_end.window_seconds=1.0", "embedding.num_windows=4"])
    assert windows_of(config, usual_frames(clips(*seconds))) == windows


def test_windows_per_second_go_before():
    config = presets.load("demo", ["embedding.windows_per_second=0.5"])
    assert [windows_of(config, usual_frames(clips(seconds))) for seconds in (0.5, 9.0, 60.0)] == [1, 5, 30]


def test_the_highest_frequency_follows_the_rate():
    assert Config().front_end.highest(16000) == 7800
    assert Config().front_end.highest(96000) == 46800
    fixed = presets.load("demo", ["front_end.f_max=5000"]).front_end
    assert fixed.highest(96000) == 5000
    assert presets.load("demo", ["data.sample_rate=8000"]).front_end.highest(8000) == 3900
