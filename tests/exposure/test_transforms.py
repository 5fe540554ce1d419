from pathlib import Path

import numpy as np
import pytest

from rayasd.data.waveforms import Waveforms
from rayasd.exposure.transforms import changed
from rayasd.study.study import Study
from tests.command import Rayasd
from tests.conftest import small_sweep, write_tree


def test_changed_clips_have_another_pitch_or_colour_and_their_level():
    time = np.arange(16000) / 16000
    tones = 8000 * (np.sin(2 * np.pi * 500 * time) + np.sin(2 * np.pi * 3000 * time))
    found = changed(
        Waveforms(tones.astype(np.int16), np.array([0]), np.array([16000])),
        np.zeros(40, int),
        1000,
        np.random.default_rng(0),
    )
    assert found.offsets.tolist() == [0, *np.cumsum(found.frames)[:-1]]
    pitched = coloured = 0
    for offset, frames in zip(found.offsets, found.frames, strict=True):
        piece = found.samples[offset : offset + frames].astype(float)
        assert np.sqrt(np.mean(piece**2)) == pytest.approx(8000, rel=0.1)
        power = np.abs(np.fft.rfft(piece * np.hanning(frames))) ** 2
        hz = np.fft.rfftfreq(frames, 1 / 16000)
        low, high = (int(np.argmax(np.where((hz > a) & (hz < b), power, 0))) for a, b in ((300, 1000), (2000, 5000)))
        if frames == 8000:  # eight windows of 1000, filtered
            coloured += abs(10 * np.log10(power[high] / power[low])) > 2
            assert hz[low] == pytest.approx(500, abs=5)
        else:
            pitched += 1
            semitones = 12 * np.log2(hz[low] / 500)
            assert 0.8 < abs(semitones) < 5.3
            assert hz[high] / hz[low] == pytest.approx(6, rel=0.02)
    assert 10 < pitched < 30
    assert coloured > 0.6 * (40 - pitched)


def one_section(root: Path) -> Path:
    write_tree(root, ("fan",))
    for path in root.rglob("section_03_*"):
        path.unlink()
    return root


def test_one_section_of_one_machine_learns_against_itself_transformed(rayasd: Rayasd, tmp_path: Path):
    """Machine logits alone, which know nothing but what training told them, tell a shifted tone."""
    tree, run = one_section(tmp_path / "data"), tmp_path / "run"
    more = (
        "--set",
        "exposure.min_steps=60",
        "--set",
        'inlier.detectors=["machine-logit"]',
        "--set",
        "inlier.poolings=mean",
    )
    done = rayasd(*small_sweep(tree, run, *more))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "one machine type: variants that train against others' clips take its own, transformed" in done.stdout
    best = Study.open(run).report().results.leaderboard.ranked[0]
    assert best.auc is not None
    assert best.auc > 0.85
