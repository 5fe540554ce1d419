"""Features of encoders that are not trained are computed once; from a full cache they are the same bits."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from rayasd.config import Config
from rayasd.data.catalog import Catalog, scan, write_catalog
from rayasd.data.waveforms import decode
from rayasd.exposure import embedding
from rayasd.exposure.clips import load_machine
from rayasd.exposure.device import choose_compute
from rayasd.exposure.embedding import embed
from rayasd.exposure.pseudo_attributes import with_pseudo_attributes
from rayasd.exposure.training import train
from tests.conftest import SpecOf, write_clip
from tests.exposure.test_training import with_exposure


class Plain(torch.nn.Module):
    """Somebody's encoder."""

    scaling, dim = "none", 4

    def __init__(self, config: Config) -> None:
        super().__init__()

    def forward(self, waveforms: torch.Tensor) -> torch.Tensor:
        return waveforms[:, :4]


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the windows of each forward pass."""
    passes: list[int] = []
    plain = embedding.embed_windows

    def counted(extractor: Any, compute: Any, samples: Any, *rest: Any) -> pa.Table:
        passes.append(len(samples))
        return plain(extractor, compute, samples, *rest)

    monkeypatch.setattr(embedding, "embed_windows", counted)
    return passes


@pytest.fixture
def embedded(spec_of: SpecOf, tmp_path: Path) -> Callable[..., pa.Table]:
    """Embed with a feature cache of the test's own; returns the columns that frozen features decide."""

    def run(config: Config, cache: str = "own", **fields: Any) -> pa.Table:
        spec = spec_of("embed", config=config, cache=tmp_path / cache, **fields)
        embed(spec)
        return pq.read_table(spec.run.table(spec.unit), partitioning=None)

    return run


def frozen(config: Config, **network: Any) -> Config:
    return replace(config, network=replace(config.network, **{"train": "frozen", "encoder": "statistics", **network}))


def kept(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.features"))


def test_seeds_variants_and_runs_share_one_forward_pass(
    small_config: Config, tmp_path: Path, embedded: Callable[..., pa.Table], computed: list[int]
):
    config = frozen(small_config)
    first = embedded(config)
    assert sum(computed) == 42 * 3
    later = replace(config, inlier=replace(config.inlier, detectors=("knn-4",)))
    others = [embedded(config, seed=1), embedded(later), embedded(config)]
    assert sum(computed) == 42 * 3
    fresh = embedded(config, cache="another", seed=1)
    assert sum(computed) == 2 * 42 * 3
    assert others[0].equals(fresh)  # its own split, the same bits
    assert others[0]["split"] != first["split"]
    assert others[1].equals(first)
    assert others[2].equals(first)
    assert len(kept(tmp_path / "own")) == 1


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "foreign"])
def test_a_damaged_file_is_made_anew(
    small_config: Config, tmp_path: Path, embedded: Callable[..., pa.Table], computed: list[int], damage: str
):
    first = embedded(frozen(small_config))
    [path] = kept(tmp_path / "own")
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
    path.write_bytes({"cut": content[: len(content) // 2], "empty": b""}.get(damage, content))
    if damage == "foreign":
        pq.write_table(pa.table({"digest": [1, 2]}), path)
    computed.clear()
    assert embedded(frozen(small_config)).equals(first)
    assert sum(computed) == 42 * 3
    assert embedded(frozen(small_config)).equals(first)
    assert sum(computed) == 42 * 3


def test_what_decides_the_features_makes_another_file(
    small_config: Config, tmp_path: Path, embedded: Callable[..., pa.Table], computed: list[int], tree: Path,
    spec_of: SpecOf,
):  # fmt: skip
    weights = tmp_path / "weights.safetensors"
    save_file(timm.create_model("test_efficientnet").state_dict(), weights)
    config = frozen(small_config, encoder="mel-timm", pretrained=str(weights))
    first = embedded(config)
    elsewhere = weights.rename(tmp_path / "moved.safetensors")
    assert embedded(frozen(config, encoder="mel-timm", pretrained=str(elsewhere))).equals(first)  # the same content
    assert len(kept(tmp_path / "own")) == 1
    save_file({name: value + (value.dim() == 4) * 0.01 for name, value in load_file(elsewhere).items()}, weights)
    assert not embedded(config)["embedding"].equals(first["embedding"])
    windows = replace(config, embedding=replace(config.embedding, num_windows=2))
    front_end = replace(config, front_end=replace(config.front_end, log=not config.front_end.log))
    for other in (windows, front_end, frozen(config, encoder="statistics")):
        embedded(other)
    leveled = replace(config, data=replace(config.data, level="clip"))
    spec_of("embed", config=leveled)
    catalog = decode(scan(tree), leveled.data, tmp_path / "own")
    write_catalog(tmp_path / "run/catalog.parquet", catalog)
    assert not embedded(leveled)["embedding"].equals(first["embedding"])
    assert len(kept(tmp_path / "own")) == 6


def test_a_new_clip_adds_its_own_batch_alone(
    small_config: Config, tmp_path: Path, spec_of: SpecOf, computed: list[int]
):
    config = frozen(small_config, encoder="max-statistics")
    config = replace(config, embedding=replace(config.embedding, batch_size=6))  # two clips
    tables = []
    for count in (6, 7):
        for n in range(count):
            write_clip(tmp_path / "data/fan/train" / f"section_00_source_train_normal_{n:04}.wav", 300.0 + n, seed=n)
        spec = spec_of("embed", config=config, cache=tmp_path / "own", data_root=tmp_path / "data")
        write_catalog(spec.run.catalog, decode(scan(tmp_path / "data"), config.data, spec.cache))
        embed(spec)
        tables.append(pq.read_table(spec.run.table(spec.unit), partitioning=None))
    assert computed == [6, 6, 6, 3]
    assert tables[1][: 6 * 3]["embedding"].equals(tables[0]["embedding"])


def test_what_is_trained_or_somebody_elses_is_not_kept(
    small_config: Config, tmp_path: Path, spec_of: SpecOf, embedded: Callable[..., pa.Table], computed: list[int]
):
    config = frozen(small_config, encoder=f"{__name__}.Plain")
    assert embedded(config).equals(embedded(config))
    train(spec_of(config=small_config))
    embedded(small_config)
    assert sum(computed) == 3 * 42 * 3
    assert not kept(tmp_path / "own")


def test_a_cache_that_cannot_be_written_is_gone_without(
    small_config: Config, tmp_path: Path, embedded: Callable[..., pa.Table], monkeypatch: pytest.MonkeyPatch
):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rayasd.exposure.feature_cache.write_parquet", full)
    embedded(frozen(small_config))
    assert not kept(tmp_path / "own")


def test_clustering_uses_it_too(
    small_config: Config, tmp_path: Path, spec_of: SpecOf, catalog: Catalog, computed: list[int]
):
    config, compute = with_exposure(small_config, clusters=2), choose_compute("cpu", "float32")
    found = [
        with_pseudo_attributes(load_machine(catalog, "fan", spec_of(config=config, seed=n)), config, compute, tmp_path)
        for n in (0, 1)
    ]
    assert computed == [10] * 16  # two of the 18 clips have another one's samples
    assert found[0].table.equals(found[1].table)


def test_a_clip_with_more_windows_than_a_batch_is_embedded_in_several(
    small_config: Config, embedded: Callable[..., pa.Table], computed: list[int]
):
    config = frozen(small_config)
    whole = embedded(config)
    assert computed == [42 * 3]
    computed.clear()
    parts = embedded(replace(config, embedding=replace(config.embedding, batch_size=2)), cache="another")
    assert set(computed) == {2, 1}
    assert parts.equals(whole)
