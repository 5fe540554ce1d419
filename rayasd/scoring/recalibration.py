"""Fit a machine's detectors and thresholds to new normal clips; networks stay as they are."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayasd.arrays import Scores
from rayasd.data.groups import moments
from rayasd.data.naming import parse_clip_name
from rayasd.errors import UserError
from rayasd.evaluation.scores import Calibration, Leaf
from rayasd.inlier.detectors import single_detector
from rayasd.inlier.features import samples
from rayasd.inlier.scores_file import LEAVE_ONE_OUT, TRAINED_ON
from rayasd.scoring.model import MachineModel, Piece, Tables
from rayasd.scoring.parts import Embedder, Origin, Parts, training_table
from rayasd.scoring.sections import normal_scores
from rayasd.wording import counted

_ROUNDING = 1e-3  # share of an embedding's length, between batches and devices
_FOLDS = 5  # where the model's own setting makes no training scores


def recalibrated(
    model: MachineModel, section: str, folder: Path, clips: Sequence[Path], say: Callable[[str], None]
) -> Parts:
    """Replace a section's normal clips by new ones, for the detectors and for the threshold.

    No network has been trained on the new clips, and detectors score each without having seen it: calibration is
    leave-one-out. Other sections keep their clips and scores; with ``inlier.per = "machine"``, where detectors see the
    new clips too, their scores are computed anew.

    ``clips`` are normal recordings in ``folder``; pieces of a long one are held out together. ``say`` takes why a clip
    is left out.

    Raises UserError: clips are too few for a detector, or there are none.
    """
    parts = model.parts
    banks = _embedded(model, section, folder, clips, say)
    rows = next(iter(banks.values()))
    if (recordings := len(pc.unique(pc.coalesce(rows["group"], rows["clip"])))) < 2:
        raise UserError(f"{folder} has {counted(recordings, 'recording')}: detectors need two, and thresholds more")
    embedders = {origin: _with_bank(each, section, banks[origin]) for origin, each in parts.embedders.items()}
    changed = {section}
    if any(each.config.inlier.per == "machine" for each in embedders.values()):
        changed |= parts.trees.keys()
    tables, trained = [parts.training.filter(~pc.field("section").isin(sorted(changed)))], set[str]()
    for name in sorted(changed):
        for number, leaf in enumerate(parts.leaves[name]):
            clips_of, *facts = _scored(leaf, name, embedders[leaf[:2]])
            known = parts.training.filter((pc.field("section") == name) & (pc.field("leaf") == number))
            words = dict(zip(known["clip"].to_pylist(), known["calibration"].to_pylist(), strict=True))
            how = [words.get(clip) for clip in clips_of]
            if name == section:
                old = parts.embedders[leaf[:2]].bank.filter(pc.field("section") == section)
                twins = _twins(banks[leaf[:2]], old, leaf.checkpoint)
                known_too = {clip for clip, twin in twins.items() if words.get(twin) == TRAINED_ON}
                trained |= known_too
                how = [TRAINED_ON if clip in known_too else LEAVE_ONE_OUT for clip in clips_of]
            table = training_table(name, number, clips_of, *facts, how)
            tables.append(table.filter(pc.is_valid(pc.field("calibration"))))
    count = len(pc.unique(rows["clip"]))
    provenance = {**parts.provenance, "recalibrated": {**parts.provenance.get("recalibrated", {}), section: count}}
    others = {**parts.others, **dict.fromkeys(changed & parts.others.keys(), Calibration.pooled([]))}
    new = replace(parts, embedders=embedders, training=pa.concat_tables(tables), others=others, provenance=provenance)
    if trained and new.normal[section].calibrating.kind == TRAINED_ON:
        say(f"the network was trained on {counted(len(trained), 'clip')} of {folder}: a threshold from these keeps no "
            "false-alarm rate")  # fmt: skip
    return new


def _scored(leaf: Leaf, section: str, embedder: Embedder) -> tuple[list[str], Scores, list[str]]:
    """Score a section's normal clips: clips, scores and groups."""
    try:
        spec = single_detector(leaf.detector, embedder.config.inlier)
        scores = normal_scores([spec], leaf, section, embedder)[spec.name]
    except UserError as error:
        raise UserError(f"section {section}: {error}: are these enough normal clips?") from None
    of_section = (pc.field("section") == section) & (pc.field("checkpoint") == leaf.checkpoint)
    clips = embedder.bank.filter(of_section & (pc.field("window") == 0))
    return clips["clip"].to_pylist(), scores, pc.fill_null(clips["group"], clips["clip"]).to_pylist()


def _embedded(
    model: MachineModel, section: str, folder: Path, clips: Sequence[Path], say: Callable[[str], None]
) -> dict[Origin, pa.Table]:
    """Embed clips by every network that the machine has: rows of the networks' banks."""
    used = {(leaf[:2], leaf.checkpoint) for of in model.parts.leaves.values() for leaf in of}
    found: dict[Origin, list[pa.Table]] = {origin: [] for origin in model.parts.embedders}
    damaged: list[str] = []
    for batch in model.batches(clips):
        pieces = list[Piece]()
        for each in batch:
            if not isinstance(each, Piece):
                say(f"{each.clip} is left out: {each.reason}")
                damaged.append(_name(each.clip, section, folder))
            elif each.samples.min() < each.samples.max():
                pieces.append(each)
            elif not each.is_part:
                say(f"{each.clip} is left out: all its samples are the same")
        if pieces:
            tables: Tables = {}
            for origin, checkpoint in sorted(used):
                windows = model.embedded(pieces, origin, checkpoint, tables)
                rows = _rows(pieces, windows, model.parts.embedders[origin], section, folder, checkpoint)
                found[origin].append(rows)
    whole = ~pc.is_in(pc.coalesce(pc.field("group"), pc.field("clip")), pa.array(damaged, pa.string()))
    found = {origin: [kept for rows in of if len(kept := rows.filter(whole))] for origin, of in found.items()}
    if not all(found.values()):
        raise UserError(f"{folder} has no clip that can be read")
    return {origin: _grouped(pa.concat_tables(of)) for origin, of in found.items()}


def _grouped(rows: pa.Table) -> pa.Table:
    """Group the channels and segments of a recording by their names, as manifests do; pieces of a file are grouped."""
    files = pc.coalesce(rows["group"], rows["clip"]).to_pylist()
    group_of = {
        file: rest for rest, alike in moments(dict.fromkeys(files)).items()
        for file in alike if not rest.rpartition("/")[2].startswith(".")  # a bare number names no recording
    }  # fmt: skip
    groups = [group_of.get(file, own) for file, own in zip(files, rows["group"].to_pylist(), strict=True)]
    field = rows.schema.field("group")
    return rows.set_column(rows.schema.get_field_index("group"), field, pa.array(groups, pa.string()).cast(field.type))


def _twins(new: pa.Table, old: pa.Table, checkpoint: int) -> dict[str, str]:
    """Find new clips whose first window has the embedding of an old clip's, up to rounding: the same recording."""
    from scipy.spatial.distance import cdist

    firsts = (pc.field("checkpoint") == checkpoint) & (pc.field("window") == 0)
    clips, X = zip(*((rows["clip"].to_pylist(), samples(rows, "embedding").X) for rows in
                     (new.filter(firsts), old.filter(firsts))), strict=True)  # fmt: skip
    if not clips[1]:
        return {}
    distances = cdist(*X)
    same = distances.min(axis=1) <= _ROUNDING * np.linalg.norm(X[0], axis=1)
    return {clips[0][i]: clips[1][distances[i].argmin()] for i in np.flatnonzero(same)}


def _name(clip: str, section: str, folder: Path) -> str:
    return f"recalibrated/{section}/{Path(clip).relative_to(folder).as_posix()}"


def _rows(
    pieces: Sequence[Piece], windows: pa.Table, embedder: Embedder, section: str, folder: Path, checkpoint: int
) -> pa.Table:
    num_windows, rate = len(windows) // len(pieces), embedder.config.data.sample_rate
    files = [_name(piece.clip, section, folder) for piece in pieces]
    spans = [f"#t={piece.start / rate:g},{piece.end / rate:g}" if piece.is_part else "" for piece in pieces]
    values = {
        "clip": [file + span for file, span in zip(files, spans, strict=True)],
        "group": [file if piece.is_part else None for file, piece in zip(files, pieces, strict=True)],
        "section": [section] * len(pieces), "domain": [_domain(piece) for piece in pieces],
        "split": ["validation"] * len(pieces), "label": [0] * len(pieces), "checkpoint": [checkpoint] * len(pieces),
    }  # fmt: skip
    clip = np.repeat(np.arange(len(pieces)), num_windows)
    columns = {name: pa.array(of).take(pa.array(clip)) for name, of in values.items()}
    columns |= {name: windows[name].combine_chunks() for name in windows.column_names}
    columns["window"] = pa.array(np.tile(np.arange(num_windows), len(pieces)))
    columns["start"] = pa.array(np.concatenate([embedder.starts(len(p.samples)) for p in pieces]) / rate)
    schema = embedder.bank.schema
    return pa.table([columns[field.name].cast(field.type) for field in schema], schema=schema)


def _domain(piece: Piece) -> str:
    """Read the domain in a clip's name, if it is named so."""
    try:
        domain = parse_clip_name(Path(piece.clip).stem, "train").domain
    except ValueError:
        return "source"
    return "target" if domain == "target" else "source"


def _with_bank(embedder: Embedder, section: str, rows: pa.Table) -> Embedder:
    config = embedder.config
    if config.inlier.calibration_folds < 2:
        config = replace(config, inlier=replace(config.inlier, calibration_folds=_FOLDS))
    order = [("checkpoint", "ascending"), ("domain", "ascending")]  # a domain's clips lie together
    others = embedder.bank.filter(pc.field("section") != section)
    return replace(embedder, config=config, bank=pa.concat_tables([others, rows.sort_by(order)]))
