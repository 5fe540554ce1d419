"""Files that are deleted, cut or flipped in a bit: noticed by who reads them, named, made again."""

import errno
import fcntl
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rayasd.config import Config
from rayasd.data.catalog import Catalog, read_catalog, scan
from rayasd.data.waveforms import decode, open_waveforms
from rayasd.errors import StorageError, UserError
from rayasd.exposure.training import train
from rayasd.files import storage_error
from rayasd.sweep.markers import is_done, why_unusable
from rayasd.sweep.store import RunStore
from rayasd.sweep.worker import do_unit
from rayasd.unit import Stopped, Unit
from tests.conftest import SpecOf
from tests.faults.bench import Bench, says
from tests.faults.places import flip

pytestmark = pytest.mark.slow

FAN, PUMP = "variant=both/machine=fan/seed=0", "variant=both/machine=pump/seed=0"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES = {"flipped": flip, "cut": cut, "deleted": Path.unlink}


@pytest.mark.slow
def test_what_a_unit_builds_on_is_done_again_where_it_is_damaged(bench: Bench, tmp_path: Path):
    run = bench.copy(tmp_path / "run", f"embeddings/{FAN}", f"scores/{FAN}", f"scores/{PUMP}")
    flip(run / "models/both/fan/seed=0/model.safetensors")
    flip(run / f"embeddings/{PUMP}/part-0.parquet")
    done = bench.sweep(run)
    says(done, 0, "damaged: train fan both seed 0; done again", "damaged: embed pump both seed 0; done again")
    bench.same(run)


@pytest.mark.slow
def test_damaged_scores_are_not_reported_and_done_again(bench: Bench, tmp_path: Path):
    run = bench.copy(tmp_path / "run", "leaderboard.md")
    flip(run / f"scores/{FAN}/part-0.parquet")
    says(bench.call("report", run), 0, "1 unit not done or damaged: rayasd sweep continues")
    says(bench.sweep(run), 0, "damaged: detect fan both seed 0; done again")
    bench.same(run)
    flip(run / f"scores/{FAN}/part-0.parquet")
    (run / "leaderboard.md").unlink()
    says(bench.sweep(run), 0, "damaged: detect fan both seed 0; done again")
    bench.same(run)


@pytest.mark.slow
def test_a_damaged_model_does_not_score(bench: Bench, tmp_path: Path):
    run = bench.copy(tmp_path / "run")
    clip = next((bench.tree / "fan/source_test").glob("*.wav"))
    weights = run / "models/both/fan/seed=0/model.safetensors"
    flip(weights)
    done = bench.call("score", run, "--machine", "fan", clip)
    said = f"error: {weights} is damaged: it is not what train fan both seed 0 wrote; rayasd sweep --verify does that"
    says(done, 2, said)
    says(bench.sweep(run), 0, "nothing to do")  # sizes alone are looked at
    says(bench.sweep(run, "--verify"), 0, "again 1 unit done before: a file is damaged")
    bench.same(run)
    says(bench.call("score", run, "--machine", "fan", clip), 0, clip.name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cells.parquet", "leaderboard.parquet"])
def test_a_damaged_report_is_made_again(bench: Bench, tmp_path: Path, name: str):
    run = bench.copy(tmp_path / "run")
    flip(run / name, 0.1)
    clip = next((bench.tree / "fan/source_test").glob("*.wav"))
    says(bench.call("score", run, "--machine", "fan", clip), 2, f"{name} is damaged", "rayasd report", "makes it again")
    bench.goes_on(run)


@pytest.mark.parametrize("damage", [*DAMAGES.values(), lambda path: path.write_bytes(b"\0\xff garbage")])
@pytest.mark.parametrize("name", ["DONE", "config.json", "model.safetensors"])
def test_a_unit_is_done_only_by_a_whole_marker_and_whole_files(
    bench: Bench, tmp_path: Path, name: str, damage: Callable[[Path], None]
):
    run = bench.copy(tmp_path / "run")
    spec = RunStore(run).specs()[Unit("train", "both", "fan", 0)]
    assert is_done(spec)
    assert why_unusable(spec) is None
    damage(run / "models/both/fan/seed=0" / name)
    assert why_unusable(spec) is not None


@pytest.mark.slow
def test_no_flipped_bit_of_a_marker_raises_anything(bench: Bench, tmp_path: Path):
    run = bench.copy(tmp_path / "run")
    marker = run / "models/both/fan/seed=0/DONE"
    spec, whole = RunStore(run).specs()[Unit("train", "both", "fan", 0)], marker.read_bytes()
    files = whole.index(b'"host"')  # what follows is for people
    for place in range(0, files, 3):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 7
        marker.write_bytes(damaged)
        is_done(spec)  # whatever they return, they return
        why_unusable(spec)


def test_a_catalog_that_is_damaged_or_missing_stops_with_the_next_step(bench: Bench, tmp_path: Path):
    path = tmp_path / "catalog.parquet"
    shutil.copy(bench.run / "catalog.parquet", path)
    whole = read_catalog(path, bench.tree).table
    noticed = 0
    for part in range(100):
        shutil.copy(bench.run / "catalog.parquet", path)
        flip(path, part / 100)
        try:
            found = read_catalog(path, bench.tree).table
            # some bits say nothing; names and types of columns have no checksum
            assert found.equals(whole) or found.schema != whole.schema
        except UserError as error:
            assert "catalog.parquet is damaged" in str(error)  # noqa: PT017
            assert str(error).endswith(": restore it or choose another --run-dir")  # noqa: PT017
            noticed += 1
    assert noticed > 50
    path.unlink()
    with pytest.raises(UserError, match=r"catalog.parquet is missing: restore it"):
        read_catalog(path, bench.tree)


@pytest.mark.parametrize("name", ["config", "manifest"])
def test_no_flipped_bit_of_configuration_and_plan_is_followed(bench: Bench, tmp_path: Path, name: str):
    run = bench.copy(tmp_path / "run")
    path, read = getattr(RunStore(run).paths, name), getattr(RunStore(run), name)
    whole, said = path.read_bytes(), read()

    def what(read: object) -> object:
        return [read[key] for key in ("data", "plans", "invocations")] if isinstance(read, dict) else read

    for place in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 7
        path.write_bytes(damaged)
        try:
            assert what(read()) == what(said)
        except UserError as error:
            assert f"{path} is damaged" in str(error)  # noqa: PT017


def test_a_damaged_checkpoint_costs_epochs_and_nothing_else(spec_of: SpecOf, tmp_path: Path):
    spec = spec_of()
    train(spec)
    weights = spec.output / "model.safetensors"
    undisturbed = weights.read_bytes()
    weights.unlink()
    with pytest.raises(Stopped):
        train(spec, lambda progress: progress.done >= 1)
    state = spec.output / "state.pt"
    checkpoint = state.read_bytes()
    for damage in (lambda: flip(state), lambda: flip(state, 0.9), lambda: cut(state), state.unlink):
        state.write_bytes(checkpoint)
        damage()
        first = []
        train(spec, lambda progress: first.append(progress.done))  # noqa: B023
        assert first[-1] == 3
        assert weights.read_bytes() == undisturbed


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("suffix", [".i16", ".parquet"])
def test_damaged_samples_are_decoded_again(
    catalog: Catalog, cache: Path, small_config: Config, tmp_path: Path, suffix: str, damage: Callable[[Path], None]
):
    own = tmp_path / "cache"
    shutil.copytree(cache, own)
    before = np.array(open_waveforms(catalog, "fan", small_config.data, own).samples)
    damage(next(own.glob(f"fan-*{suffix}")))
    after = open_waveforms(catalog, "fan", small_config.data, own).samples
    assert np.array_equal(before, after)


def test_without_locks_on_its_file_system_the_cache_is_made_all_the_same(
    catalog: Catalog, small_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def lockf(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", lockf)
    assert len(open_waveforms(catalog, "fan", small_config.data, tmp_path).frames) > 0


def test_a_unit_whose_run_directory_is_gone_makes_no_new_one(spec_of: SpecOf):
    spec = spec_of()
    shutil.rmtree(spec.run.root)
    outcome = do_unit(spec)
    assert outcome.hits_all
    assert "is gone: was its file system unmounted?" in str(outcome.error)
    assert not spec.run.root.exists()


def test_clips_that_go_away_while_they_are_decoded_are_not_left_out(tree: Path, small_config: Config, tmp_path: Path):
    shutil.copytree(tree, tmp_path / "tree")
    found = scan(tmp_path / "tree")
    (tmp_path / "tree/pump/train").rename(tmp_path / "elsewhere")
    skipping = replace(small_config.data, on_bad_clip="skip")
    with pytest.raises(StorageError, match="tree/pump/train is gone: was its file system unmounted"):
        decode(found, skipping, tmp_path / "cache")
    assert list((tmp_path / "cache").glob("pump-*")) == []
    (tmp_path / "elsewhere").rename(tmp_path / "tree/pump/train")
    assert decode(found, skipping, tmp_path / "cache").table.num_rows == found.table.num_rows


def test_only_storage_is_blamed_on_storage(tmp_path: Path):
    full = OSError(errno.ENOSPC, "No space left on device")
    assert str(storage_error(full, tmp_path)).startswith(f"no space is left in {tmp_path}: make room")
    assert storage_error(OSError(errno.EPIPE, "Broken pipe"), tmp_path) is None
    refused = UserError("data.sample_rate: …")
    refused.__context__ = full
    assert storage_error(refused, tmp_path) is None
    hidden = RuntimeError("the writer failed")
    hidden.__cause__ = full
    assert storage_error(hidden, tmp_path) is not None
