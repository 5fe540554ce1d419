"""Bytes that nobody meant to write: every reader answers with a value or with its own kind of error."""

import hashlib
import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import tomli_w

from rayasd import presets
from rayasd.config import DataConfig
from rayasd.data.audio import read_facts, read_samples
from rayasd.data.catalog import scan
from rayasd.data.ground_truth import with_ground_truth
from rayasd.data.naming import SPLIT_FOLDERS, parse_clip_name
from rayasd.errors import BadClipError, UserError
from rayasd.scoring.packing import read_pack, write_pack
from tests.faults.packs import small_pack

Target = Callable[[bytes, Path], None]


def name(data: bytes, folder: Path) -> None:
    """A clip's name: what it says is within what names can say."""
    text = os.fsdecode(data)
    split = list(SPLIT_FOLDERS)[len(data) % len(SPLIT_FOLDERS)]
    try:
        said = parse_clip_name(text, split)
    except ValueError:
        return
    else:
        assert said.section.isdecimal()
        assert (said.domain in ("source", "target", "unknown"), said.label in (0, 1, None)) == (True, True)
        assert said.split == SPLIT_FOLDERS[split]


def manifest(data: bytes, folder: Path) -> None:
    """A manifest, and the same bytes as ground truth of what it lists."""
    (folder / "a.wav").touch()
    path = folder / "clips.csv"
    path.write_bytes(data)
    try:
        catalog = scan(path)
    except UserError:
        return
    truth = folder / "truth"
    truth.mkdir(exist_ok=True)
    (truth / f"ground_truth_{catalog.machines[0].replace('/', '_')}_section_00_test.csv"[:200]).write_bytes(data)
    try:
        with_ground_truth(catalog, truth)
    except UserError:
        return


def config(data: bytes, folder: Path) -> None:
    """A preset file, and an override."""
    path = folder / "mine.toml"
    path.write_bytes(data)
    text = data.decode(errors="replace")
    for preset, overrides in ((str(path), ()), ("demo", (text,)), ("demo", (f"variants.x.{text}",))):
        try:
            settled = presets.load(preset, overrides)
            settled.variant("both")
        except UserError:
            continue
        assert tomli_w.dumps(settled.as_dict())


def pack(data: bytes, folder: Path) -> None:
    """A packed model: the bytes themselves, and a valid one that they edit, with names (checksums) that fit."""
    path = folder / "x.rayasd"
    for content in (data, _edited_pack(data, folder)):
        path.write_bytes(content)
        try:
            read_pack(path)
        except UserError:
            continue


def audio(data: bytes, folder: Path) -> None:
    """An audio file: refused, or as many finite samples as its header was said to hold."""
    path = folder / "x.wav"
    path.write_bytes(data)
    rules = DataConfig(resample=True, channel="mean")
    try:
        facts = read_facts(path)
        if facts.frames > 10_000_000:
            return
        samples = read_samples(path, rules)
    except BadClipError:
        return
    else:
        assert samples.dtype == np.int16
        assert samples.ndim == 1
        assert len(samples) > 0


TARGETS: dict[str, Target] = {each.__name__: each for each in (name, manifest, config, pack, audio)}


def seeds(target: str, folder: Path) -> list[bytes]:
    """Valid inputs to begin with."""
    if target == "name":
        names = ("section_00_source_train_normal_0000_x", "section_04_0007", "anomaly_id_06_00000123")
        return [each.encode() for each in names]
    if target == "manifest":
        return [b"path,machine,section,domain,split,label\na.wav,fan,00,source,test,1\n", b"a.wav,1\n"]
    if target == "config":
        return [(presets.FOLDER / "demo.toml").read_bytes(), b"exposure.epochs=5", b'inlier.detectors=["knn-1"]']
    if target == "pack":
        return [bytes([member, 0, place, 1]) + b"x" for member in range(4) for place in (4, 40)]
    tone = (np.sin(np.arange(800) / 5) * 8000).astype(np.int16)
    found = []
    for form, subtype in (("WAV", "PCM_16"), ("WAV", "FLOAT"), ("WAVEX", "PCM_24"), ("FLAC", "PCM_16")):
        file = io.BytesIO()
        soundfile.write(file, np.stack([tone, tone], axis=1) if form == "WAVEX" else tone, 16000, subtype, format=form)
        found.append(file.getvalue())
    return found


def _edited_pack(edit: bytes, folder: Path) -> bytes:
    """Take some bytes out of a member and put others in: edit says which member, where, how many, and what."""
    valid = folder / "valid.rayasd"
    if not valid.exists():
        write_pack(valid, [small_pack()], "none")
    with zipfile.ZipFile(valid) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    if len(edit) > 4:
        chosen = ["model.json", *sorted(members.keys() - {"model.json"})][edit[0] % len(members)]
        place = int.from_bytes(edit[1:3], "big") % len(members[chosen])
        members[chosen] = members[chosen][:place] + edit[4:] + members[chosen][place + edit[3] :]
    facts = members.pop("model.json")
    for name, content in members.items():
        facts = facts.replace(name.encode(), hashlib.sha256(content).hexdigest().encode())
    members = {hashlib.sha256(content).hexdigest(): content for content in members.values()}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in {"model.json": facts, **members}.items():
            archive.writestr(name, content)
    return out.getvalue()
