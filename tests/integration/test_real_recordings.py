"""The chain on real machine recordings, when they lie beside the project."""

from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from rayasd.config import DataConfig
from rayasd.data.catalog import scan
from rayasd.data.waveforms import decode
from rayasd.unit import RunDirectory
from tests.command import Rayasd

pytestmark = pytest.mark.realdata


def test_real_recordings_decode_whole(shared: Path, cache: Path):
    catalog = decode(scan(shared / "data/mimii-mini"), DataConfig(), cache)
    assert catalog.machines == ["fan", "pump", "slider", "valve"]
    assert catalog.table.num_rows == 195 + 164
    assert set(catalog.table["frames"].to_pylist()) == {160000}
    assert not [odd for odd in catalog.oddities if odd.unusable]


@pytest.mark.slow
def test_real_recordings_are_ranked_above_chance(shared: Path, tmp_path: Path, rayasd: Rayasd):
    run = tmp_path / "run"
    done = rayasd("sweep", "--data", shared / "data/mimii-mini", "--preset", "demo", "--variants", "statistics",
                  "--detectors", "knn-1", "--run-dir", run, "--executor", "local")  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    cells = pq.read_table(RunDirectory(run).cells)
    source = cells.filter((pc.field("domain") == "source") & (pc.field("pooling") == "mean"))
    assert source.num_rows == 16
    assert pc.mean(source["auc"]).as_py() > 0.6  # log-mel statistics with 1-NN reach about 0.66
