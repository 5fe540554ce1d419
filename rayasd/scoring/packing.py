"""Machines' models as one portable file: a zip of safetensors, Parquet and JSON, and nothing that runs on reading."""

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from safetensors import SafetensorError
from safetensors.torch import load, save

from rayasd.config import Config, from_dict
from rayasd.data.naming import matching
from rayasd.errors import UserError, one_line
from rayasd.evaluation.fused import leaves
from rayasd.evaluation.scores import HONEST_FIRST, Calibration, tree_of
from rayasd.files import replacing
from rayasd.nested import merge
from rayasd.pretrained import base_paths, files_of, relocated, without_replaced
from rayasd.registry import refuse_code
from rayasd.scoring.parts import TRAINING, Embedder, Parts

VERSION = 4
_BASE = re.compile(r"base-\d+/[^/\\.][^/\\]*")
_FACTS = "model.json"
_ROOM, _MOST_TIMES = 64 << 20, 20
"""Most bytes of a packed model's table: the first number, and the second times those of its file."""
_READ = ["clip", "group", "section", "domain", "window", "checkpoint", "embedding"]  # columns that every bank has


def write_pack(path: Path, models: Iterable[Parts], licence: str = "") -> list[str]:
    """Write machines' models to one file, whole or not at all: pretrained weights that they build on go with them.

    Members are named by their sha256: what several networks, detectors or machines share is written once. Models are
    asked for one after the other, and none is kept. Returns a line for each.
    """
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:

        def add(content: bytes) -> str:
            name = hashlib.sha256(content).hexdigest()
            if name not in archive.namelist():
                archive.writestr(name, content)
            return name

        machines, said = {}, []
        for parts in models:
            machines[parts.machine] = {
                "entry": parts.entry,
                "clip_seconds": parts.clip_seconds,
                "sections": parts.trees,
                "training": add(_parquet(parts.training)),
                "others": {
                    name: [[s if np.isfinite(s) else None for s in c.scores.tolist()], list(c.groups), c.kind]
                    for name, c in parts.others.items()
                },
                "embedders": [{"variant": v, "seed": s, **_facts(e, add)} for (v, s), e in parts.embedders.items()],
                "provenance": dict(parts.provenance),
            }
            sections = sorted(parts.trees)
            said.append(f"{parts.machine}, sections {', '.join(sections)}: {parts.systems_of(sections)}")
        archive.writestr(_FACTS, json.dumps({"format": VERSION, "licence": licence, "machines": machines}, indent=2))
    return said


def _facts(embedder: Embedder, add: Callable[[bytes], str]) -> dict[str, Any]:
    files, config = _with_files(embedder)
    return {
        "classes": embedder.classes,
        "scale": embedder.scale,
        "weights": {epochs: add(save(dict(tensors))) for epochs, tensors in embedder.weights.items()},
        "bank": add(_parquet(embedder.bank)),
        "files": {name: add(content) for name, content in files.items()},
        "config": merge(config.as_dict(), {"evaluation": {"ensembles": []}}) | {"variants": {}},
    }


def _with_files(embedder: Embedder) -> tuple[dict[str, bytes], Config]:
    """Read the pretrained weights that an embedder builds on, and give them places of their own."""
    if embedder.files:
        return dict(embedder.files), embedder.config
    files: dict[str, bytes] = {}
    places: dict[str, str] = {}
    for number, path in enumerate(base_paths(embedder.config)):
        found = files_of(path)
        places[path] = f"base-{number}/{Path(path).name}" if Path(path).is_file() else f"base-{number}"
        files |= {f"base-{number}/{name}": each.read_bytes() for name, each in found.items()}
    return files, relocated(without_replaced(embedder.config), places)


def chosen_machine(source: Path, machine: str | None, machines: Iterable[str]) -> str:
    """Return the machine that is asked for, or the only one.

    Raises UserError: it is not there, or there are several and none is named.
    """
    there = sorted(machines)
    if machine is None and len(there) != 1:
        raise UserError(f"{source} has several machines: name one of {', '.join(there)}")
    return matching("machine", machine or there[0], there)


def machines_of(path: Path) -> list[str]:
    """List the machines of a packed model that has been read."""
    with zipfile.ZipFile(path) as archive:
        return sorted(json.loads(archive.read(_FACTS))["machines"])


def read_pack(path: Path, machine: str | None = None, *, trust: bool = False) -> Parts:
    """Read a packed model.

    ``trust``: accept detectors, poolings, encoders and objectives that it names by import path, whose code then runs.

    Raises UserError: it is absent, damaged, of another version, or would run code of its maker's choice.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
                raise ValueError("its members are compressed, which those of a packed model are not")  # a zip bomb is
            facts = json.loads(archive.read(_FACTS), parse_constant=_no_number)
            if (form := facts["format"]) != VERSION:
                raise UserError(f"{path} has format {form}; this rayasd reads format {VERSION}: pack it again")

            @cache
            def member(name: str) -> bytes:
                content = archive.read(name)
                if hashlib.sha256(content).hexdigest() != name:
                    raise UserError(f"{path} is damaged: {name} is not what was packed")
                return content

            name = chosen_machine(path, machine, facts["machines"].keys())
            parts = _parts(name, facts["machines"][name], member, str(facts["licence"]))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except (zipfile.BadZipFile, RuntimeError, EOFError, KeyError, ValueError, TypeError, IndexError, AttributeError,
            OverflowError, SafetensorError, pa.ArrowException) as error:  # fmt: skip
        raise UserError(f"{path} is no packed model, or damaged: {one_line(error)}") from None
    for embedder in parts.embedders.values():
        inside = {place for name in embedder.files for place in (name, name.partition("/")[0])}
        if strange := [place for place in base_paths(embedder.config) if place not in inside]:
            raise UserError(f"{path} builds on weights that it does not hold: {strange[0]}")
    if not trust:
        refuse_code(path, parts.named)
    return parts


def _parts(machine: str, facts: dict[str, Any], member: Callable[[str], bytes], licence: str) -> Parts:
    embedders = {
        (str(each["variant"]), int(each["seed"])): Embedder(
            config=from_dict(each["config"]),
            classes=tuple(map(str, each["classes"])),
            weights={int(epochs): load(member(name)) for epochs, name in each["weights"].items()},
            scale=(_within("scale", each["scale"][0], -1, 1), _within("scale", each["scale"][1], 1e-12, 1)),
            bank=_table(member(each["bank"])),
            files={name: member(of) for name, of in each["files"].items() if _BASE.fullmatch(name)},
        )
        for each in facts["embedders"]
    }
    trees = {section: tree_of(tree) for section, tree in facts["sections"].items()}
    for columns in (embedder.bank.select(_READ) for embedder in embedders.values()):
        if columns.num_rows == 0 or any(columns[name].null_count for name in _READ if name != "group"):
            raise ValueError("a bank is empty, or lacks values")
    others = {
        section: Calibration(np.array(scores, np.float64), np.array(groups, object), kind)
        for section, (scores, groups, kind) in facts["others"].items()
    }
    if strange := {of.kind for of in others.values()} - {None, *HONEST_FIRST}:
        raise ValueError(f"no such calibration: {strange}")
    for leaf in (leaf for tree in trees.values() for leaf in leaves(tree)):
        if embedders[leaf[:2]].config.network.is_trained and leaf.checkpoint not in embedders[leaf[:2]].weights:
            raise ValueError(f"no weights of {leaf.variant}, seed {leaf.seed} after {leaf.checkpoint} epochs")
    return Parts(
        machine=machine, entry=str(facts["entry"]), embedders=embedders,
        clip_seconds=_within("clip_seconds", facts["clip_seconds"], 0.01, 1e6),
        trees=trees, training=_table(member(facts["training"]), finite=False).select(TRAINING.names).cast(TRAINING),
        others=others, provenance={**facts["provenance"], "licence": licence},
    )  # fmt: skip


def _table(content: bytes, *, finite: bool = True) -> pa.Table:
    """Read a table of numbers, text and lists of numbers, after a look at how large it would be.

    Raises ValueError: it is compressed or much larger than its file, as no table of a packed model is; or not
    ``finite``.
    """
    file, room = pq.ParquetFile(pa.BufferReader(content)), _ROOM + _MOST_TIMES * len(content)
    schema, facts = file.schema_arrow, file.metadata
    groups = [facts.row_group(number) for number in range(facts.num_row_groups)]
    chunks = [group.column(number) for group in groups for number in range(group.num_columns)]
    if any(chunk.compression != "UNCOMPRESSED" for chunk in chunks):
        raise ValueError("a table is compressed, which those of a packed model are not")
    words = [field.name for field in schema if pa.types.is_string(field.type)]
    widths = [_width(field) for field in schema]
    if 8 * max(facts.num_rows * sum(widths), sum(chunk.num_values for chunk in chunks)) > room:
        raise ValueError("a table is larger than its file can hold")
    found = pq.ParquetFile(pa.BufferReader(content), read_dictionary=words).read(use_threads=False)
    lengths = [pc.sum(pc.binary_length(chunk.dictionary).take(chunk.indices)).as_py() or 0
               for name in words for chunk in found[name].chunks]  # fmt: skip
    if sum(lengths) > room:
        raise ValueError("a table's text is larger than its file can hold")
    for column in found.columns:
        values = column.combine_chunks()
        values = values.flatten() if pa.types.is_nested(values.type) else values
        if finite and pa.types.is_floating(values.type) and not pc.all(pc.is_finite(values)).as_py():
            raise ValueError("a table holds numbers that are not finite")
    return found.cast(schema)


def _width(field: pa.Field) -> int:
    """Least number of values in a row of a column: of a list of varying length, the footer has the sum."""
    is_fixed = pa.types.is_fixed_size_list(field.type)
    is_list = is_fixed or pa.types.is_list(field.type)
    each = field.type.value_type if is_list else field.type
    if not (pa.types.is_integer(each) or pa.types.is_floating(each) or (each == pa.string() and not is_list)):
        raise ValueError(f"a table has a column of type {field.type}")
    return int(field.type.list_size) if is_fixed else 1


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number")


def _within(name: str, value: Any, low: float, high: float) -> float:
    if not low <= (number := float(value)) <= high:
        raise ValueError(f"{name} = {number:g}: must be between {low:g} and {high:g}")
    return number


def _parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="none")
    return buffer.getvalue()
