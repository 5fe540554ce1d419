"""A plant in which something goes wrong every second, with a watch that waits for less: an hour's faults in short."""

import shutil
from pathlib import Path

import pytest

from tests.faults.incoming import recalibrated
from tests.faults.plant import FAULTS, Plant


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc to compile the library that fails calls")
@pytest.mark.usefixtures("mounted")
def test_a_watch_scores_each_clip_once_whatever_happens(tree: Path, cache: Path, tmp_path: Path):
    plant = Plant(tmp_path / "plant", recalibrated(tree, cache, tmp_path), cache, seed=3, quick=True)
    plant.run(2 * len(FAULTS))
    assert plant.problems == []
    assert all(plant.counts[kind] for kind in FAULTS), plant.counts
