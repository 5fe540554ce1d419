"""A machine's model as one portable file: a zip of safetensors, Parquet and JSON, and nothing that runs on reading."""

import hashlib
import io
import json
import re
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError
from safetensors.torch import load, save

from rayasd.config import Config, from_dict
from rayasd.errors import UserError, one_line
from rayasd.evaluation.scores import System
from rayasd.exposure.encoders import ENCODERS
from rayasd.exposure.objectives import OBJECTIVES
from rayasd.files import replacing
from rayasd.inlier.clip_pooling import is_clip_level
from rayasd.inlier.detectors import FAMILIES
from rayasd.inlier.pooling import POOLINGS
from rayasd.nested import merge
from rayasd.pretrained import base_paths, files_of, relocated, without_replaced
from rayasd.registry import parse_call
from rayasd.scoring.model import CALIBRATIONS, Parts

VERSION = 2
_BASE = re.compile(r"base-\d+/[^/\\.][^/\\]*")
_FACTS, _BANK, _TRAINING = "model.json", "bank.parquet", "training.parquet"


def write_pack(path: Path, parts: Parts, licence: str = "") -> None:
    """Write a model to one file, whole or not at all: pretrained weights that it builds on go with it."""
    files, config = _with_files(parts)
    members = {
        **files,
        **{f"weights-{epochs}.safetensors": save(dict(tensors)) for epochs, tensors in parts.weights.items()},
        _BANK: _parquet(parts.bank),
        _TRAINING: _parquet(parts.training),
    }
    facts = {
        "format": VERSION,
        "machine": parts.machine,
        "licence": licence,
        "classes": parts.classes,
        "scale": parts.scale,
        "clip_seconds": parts.clip_seconds,
        "systems": {section: system._asdict() for section, system in parts.systems.items()},
        "provenance": dict(parts.provenance),
        "config": merge(config.as_dict(), {"evaluation": {"ensembles": []}}) | {"variants": {}},
        "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in members.items()},
    }
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        archive.writestr(_FACTS, json.dumps(facts, indent=2))
        for name, content in members.items():
            archive.writestr(name, content)


def read_pack(path: Path, *, trust: bool = False) -> Parts:
    """Read a packed model.

    Args:
        path: the file.
        trust: accept detectors, poolings, encoders and objectives that it names by import path, whose code then runs.

    Raises:
        UserError: it is absent, damaged, of another version, or would run code of its maker's choice.

    """
    try:
        with zipfile.ZipFile(path) as archive:
            if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
                raise ValueError(
                    "its members are compressed, which those of a packed model are not"
                )  # a zip bomb may be
            facts = json.loads(archive.read(_FACTS))
            if facts["format"] != VERSION:
                raise UserError(f"{path} has format {facts['format']}; this rayasd reads format {VERSION}")
            members = {name: archive.read(name) for name in facts["sha256"]}
        for name, content in members.items():
            if hashlib.sha256(content).hexdigest() != facts["sha256"][name]:
                raise UserError(f"{path} is damaged: {name} is not what was packed")
        weights = {
            int(name.removeprefix("weights-").removesuffix(".safetensors")): load(content)
            for name, content in members.items()
            if name.startswith("weights-")
        }
        files = {name: content for name, content in members.items() if _BASE.fullmatch(name)}
        parts = Parts(
            machine=str(facts["machine"]),
            config=from_dict(facts["config"]),
            classes=tuple(map(str, facts["classes"])),
            weights=weights,
            scale=(float(facts["scale"][0]), float(facts["scale"][1])),
            clip_seconds=float(facts["clip_seconds"]),
            systems={section: System(**system) for section, system in facts["systems"].items()},
            bank=_table(members[_BANK]),
            training=_table(members[_TRAINING]).select(CALIBRATIONS.names).cast(CALIBRATIONS),
            provenance={**facts["provenance"], "licence": facts["licence"]},
            files=files,
        )
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except (zipfile.BadZipFile, RuntimeError, EOFError, KeyError, ValueError, TypeError, IndexError, AttributeError,
            OverflowError, SafetensorError, pa.ArrowException) as error:  # fmt: skip
        raise UserError(f"{path} is no packed model, or damaged: {one_line(error)}") from None
    inside = {place for name in parts.files for place in (name, name.partition("/")[0])}
    if strange := [place for place in base_paths(parts.config) if place not in inside]:
        raise UserError(f"{path} builds on weights that it does not hold: {strange[0]}")
    if not trust:
        _refuse_code(path, parts)
    return parts


def _with_files(parts: Parts) -> tuple[dict[str, bytes], Config]:
    """Read the pretrained weights that a model builds on, and name them as members of a packed model."""
    if parts.files:
        return dict(parts.files), parts.config
    files: dict[str, bytes] = {}
    places: dict[str, str] = {}
    for number, path in enumerate(base_paths(parts.config)):
        found = files_of(path)
        places[path] = f"base-{number}/{Path(path).name}" if Path(path).is_file() else f"base-{number}"
        files |= {f"base-{number}/{name}": each.read_bytes() for name, each in found.items()}
    return files, relocated(without_replaced(parts.config), places)


def _refuse_code(path: Path, parts: Parts) -> None:
    """Refuse what is named by import path: a packed file comes from somebody else."""
    config = parts.config
    named = _foreign_encoders(config.network.encoder)
    if parse_call("exposure.objective", config.exposure.objective)[0] not in OBJECTIVES:
        named.append(config.exposure.objective)
    for system in parts.systems.values():
        family, _, grid = system.detector.partition("-")
        if not (family in FAMILIES and grid.isdecimal()) and parse_call("detector", system.detector)[0] not in FAMILIES:
            named.append(system.detector)
        own = system.pooling in POOLINGS or is_clip_level(system.pooling)
        if not own and not re.fullmatch(r"gwrp-[\d.]+", system.pooling):
            named.append(system.pooling)
    if named:
        raise UserError(f"{path} names code to run: {named[0]}; --trust accepts it, if you know who made the file")


def _foreign_encoders(text: str) -> list[str]:
    """List the encoders in a setting, those within branches too, that are named by import path."""
    name, parameters = parse_call("network.encoder", text)
    within = parameters.get("encoders", ())
    if not isinstance(within, list | tuple):
        return [text]
    found = [other for each in within for other in _foreign_encoders(str(each))]
    return found if name in ENCODERS else [text, *found]


def _table(content: bytes) -> pa.Table:
    """Read a table. By this thread alone: pyarrow's others, just started, abort a process that ends at once."""
    return pq.ParquetFile(pa.BufferReader(content)).read(use_threads=False)


def _parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()
