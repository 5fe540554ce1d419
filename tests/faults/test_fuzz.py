"""The fuzz targets, briefly, and what longer runs have found."""

import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rayasd.errors import UserError
from rayasd.evaluation.scores import Calibration
from rayasd.scoring.packing import read_pack, write_pack
from tests.faults.packs import small_pack
from tests.faults.targets import TARGETS, seeds


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_readers_answer_whatever_they_are_given(target: str, data: st.DataObject, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    valid = data.draw(st.sampled_from(seeds(target, folder)))
    place = data.draw(st.integers(0, len(valid)))
    size = data.draw(st.integers(0, 40))
    TARGETS[target](valid[:place] + data.draw(st.binary(max_size=40)) + valid[place + size :], folder)


def test_a_packed_model_of_a_later_zip_version_is_refused(tmp_path: Path):
    path = tmp_path / "x.rayasd"
    write_pack(path, [small_pack()])
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\1\2") + 6] = 241  # version needed to extract
    path.write_bytes(content)
    with pytest.raises(UserError, match="is no packed model, or damaged: zip file version"):
        read_pack(path)


def with_changes(path: Path, change: Callable[[dict[str, Any]], Any], bank: bytes | None = None) -> Path:
    """Write the small packed model with other facts, and perhaps another bank."""
    write_pack(path, [small_pack()])
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    facts = json.loads(members.pop("model.json"))
    change(facts["machines"]["fan"])
    if bank is not None:
        name = hashlib.sha256(bank).hexdigest()
        members[name] = bank
        facts["machines"]["fan"]["embedders"][0]["bank"] = name
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {"model.json": json.dumps(facts).encode(), **members}.items():
            archive.writestr(name, content)
    return path


def written(table: pa.Table, compression: str = "none", *, store_schema: bool = True) -> bytes:
    pq.write_table(table, buffer := io.BytesIO(), compression=compression, store_schema=store_schema)
    return buffer.getvalue()


MANY = 30_000_000
BOMBS = {
    "rows": lambda: pa.table({"window": pa.repeat(pa.scalar(0, pa.int16()), MANY)}),
    "text": lambda: pa.table({"clip": pa.DictionaryArray.from_arrays(
        pa.repeat(pa.scalar(0, pa.int32()), 10_000), ["x" * 100_000])}),
    "lists": lambda: pa.table({"embedding": pa.nulls(100, pa.list_(pa.float32(), 300_000))}),
    "compressed": lambda: pa.table({"score": np.zeros(10)}),
    "lists of text": lambda: pa.table({"clip": [["x"]]}),
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_table_that_would_fill_memory_is_refused(bomb: str, tmp_path: Path):
    bank = written(BOMBS[bomb](), "zstd" if bomb == "compressed" else "none", store_schema=bomb != "text")
    assert len(bank) < 3_000_000
    pool = pa.default_memory_pool()
    path, before = with_changes(tmp_path / "x", lambda fan: None, bank), pool.max_memory()
    with pytest.raises(UserError, match="is no packed model, or damaged: a table"):
        read_pack(path)
    assert pool.max_memory() - before < 80_000_000


NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize(("where", "values"), [
    (("clip_seconds",), (0.0, -1.0, 1e9, NAN, INFINITE, "x", None)),
    (("embedders", 0, "scale", 0), (NAN, 2.0, INFINITE)),
    (("embedders", 0, "scale", 1), (0.0, NAN, 5.0)),
    (("embedders", 0, "config", "embedding", "num_windows"), (0, 10**12, NAN, 1.5)),
    (("embedders", 0, "config", "embedding", "batch_size"), (10**9,)),
    (("embedders", 0, "config", "front_end", "window_seconds"), (1e9, NAN)),
    (("embedders", 0, "config", "front_end", "n_mels"), (10**9,)),
    (("embedders", 0, "config", "network", "embedding_dim"), (10**12,)),
    (("embedders", 0, "config", "data", "sample_rate"), (10**12,)),
    (("embedders", 0, "config", "data", "scale"), (1e999,)),
])  # fmt: skip
def test_numbers_of_a_packed_model_are_bounded(where: tuple[Any, ...], values: tuple[Any, ...], tmp_path: Path):
    *path, last = where
    for value in values:

        def change(facts: Any, new: Any = value) -> None:
            for step in path:
                facts = facts[step]
            assert last in facts or isinstance(facts, list)
            facts[last] = new

        with pytest.raises(UserError) as refusal:
            read_pack(with_changes(tmp_path / "x", change))
        assert "\n" not in str(refusal.value)
    with pytest.raises(UserError, match="more than 2"):
        read_pack(with_changes(tmp_path / "x", lambda fan: fan["embedders"][0]["config"].update(
            embedding={"num_windows": 100_000}, front_end={"window_seconds": 600.0})))  # fmt: skip


@pytest.mark.parametrize("value", [NAN, INFINITE, None])
def test_embeddings_of_a_packed_model_are_finite(value: float | None, tmp_path: Path):
    parts = small_pack()
    bank = parts.embedders["both", 0].bank
    rows = bank.to_pylist()
    rows[3]["embedding"] = value if value is None else [0.0, value, 0.0, 0.0]
    path = with_changes(tmp_path / "x", lambda fan: None, written(pa.Table.from_pylist(rows, bank.schema)))
    with pytest.raises(UserError, match="not finite" if value else "lacks values"):
        read_pack(path)


def test_a_packed_model_may_have_normal_clips_without_a_score(tmp_path: Path):
    parts = small_pack()
    others = {"00": Calibration(np.array([NAN, 1.0]), np.array(["a", "b"], object), "held-out")}
    training = parts.training.set_column(3, "score", pa.array([NAN] * 8))
    write_pack(tmp_path / "x", [replace(parts, others=others, training=training)])
    read = read_pack(tmp_path / "x")
    assert np.isnan(read.others["00"].scores).tolist() == [True, False]
    assert np.isnan(read.training["score"].to_numpy()).all()


def test_a_packed_model_that_would_unfold_is_refused(tmp_path: Path):
    path = tmp_path / "x.rayasd"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.json", " " * 10_000_000)
    with pytest.raises(UserError, match="its members are compressed"):
        read_pack(path)
