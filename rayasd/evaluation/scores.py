"""Scores files as arrays: one system's scores of a section's test clips and of its normal training clips."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rayasd.arrays import Scores
from rayasd.errors import UserError, one_line
from rayasd.files import digest
from rayasd.inlier.fusion import FUSIONS
from rayasd.inlier.scores_file import CROSS_FIT, HELD_OUT, LEAVE_ONE_OUT, TRAINED_ON
from rayasd.parquet import read_parquet

TREES, TREES_DIGEST = b"trees", b"trees_digest"
"""Keys of an ensemble's scores file's metadata: what was fused, system by system in the file's order (JSON), and its
``digest``: Parquet has no checksum of metadata."""

Words = NDArray[np.object_]


class System(NamedTuple):
    """A system: the unit of selection and ranking."""

    variant: str
    checkpoint: int  # epochs that the extractor was trained for
    detector: str
    pooling: str


class Key(NamedTuple):
    """One system's part of a scores file."""

    section: str
    checkpoint: int
    detector: str
    pooling: str


FIXED = "knn-1", "mean"
"""Detector and pooling where nothing can be evaluated; the run's first ones where it has no such."""


def unchosen(systems: Iterable[Key], detector: str, pooling: str) -> list[Key]:
    """Take one system per section without regard to results: this detector and pooling where they exist."""
    best: dict[str, Key] = {}
    for key in sorted(systems, key=lambda k: (k.detector != detector, k.pooling != pooling, -k.checkpoint)):
        best.setdefault(key.section, key)
    return list(best.values())


class Leaf(NamedTuple):
    """One system of one seed: what all scores come from in the end."""

    variant: str
    seed: int
    checkpoint: int
    detector: str
    pooling: str


class Fusion(NamedTuple):
    """Scores that are fused from others', each scaled by its own training scores."""

    method: str  # one of ``rayasd.inlier.fusion.FUSIONS``
    members: "tuple[Tree, ...]"


Tree = Leaf | Fusion  # origin of scores


def tree_of(value: Any) -> Tree:
    """Read a tree out of JSON. Raises ValueError, TypeError: it is none."""
    if len(value) == 2:
        method, members = value
        if method not in FUSIONS or not members:
            raise ValueError(f"{method} of {len(members)} members is no fusion")
        return Fusion(method, tuple(map(tree_of, members)))
    variant, seed, checkpoint, detector, pooling = value
    return Leaf(str(variant), int(seed), int(checkpoint), str(detector), str(pooling))


@dataclass(frozen=True)
class Calibration:
    """Scores of normal clips by which decisions are made."""

    scores: Scores  # (n,); NaN where the detector failed
    groups: Words  # group of each clip; a clip without a group is its own, (n,)
    kind: str | None  # held-out, cross-fit, leave-one-out, trained-on; None where there are no scores

    @classmethod
    def pooled(cls, parts: Iterable["Calibration"]) -> "Calibration":
        """Put scores together; those of clips that were trained on are left out where there are others."""
        parts = [part for part in parts if len(part.scores)]
        parts = [part for part in parts if part.kind != TRAINED_ON] or parts
        if not parts:
            return cls(np.empty(0), np.empty(0, object), None)
        kinds = {part.kind for part in parts}
        scores, groups = (np.concatenate([getattr(part, name) for part in parts]) for name in ("scores", "groups"))
        return cls(scores, groups, next(kind for kind in HONEST_FIRST if kind in kinds))


HONEST_FIRST = (CROSS_FIT, HELD_OUT, LEAVE_ONE_OUT, TRAINED_ON)
"""The first of these words that applies describes a mixture."""


@dataclass(frozen=True)
class SectionScores:
    """One system's scores in one section; higher is more anomalous."""

    clips: Words  # test clips, (clips,)
    domains: Words  # (clips,)
    scores: Scores  # (clips,); NaN where the detector failed
    reason: str | None  # why it failed
    groups: Words  # group of each test clip; a clip without a group is its own, (clips,)
    training_clips: Words  # normal clips, (n,); none where there are no training scores
    training: Scores  # (n,); NaN where the detector failed
    training_groups: Words  # (n,)
    calibration: Words  # how each of these scores came about, see ``Calibration.kind``, (n,)
    tree: Tree | None = None  # their origin; None if unknown

    @property
    def calibrating(self) -> Calibration:
        """Scores of clips that neither extractor nor detector has seen; of all, marked so, where there are none."""
        honest = self.calibration != TRAINED_ON
        rows = honest if honest.any() else ~honest
        kinds = set(self.calibration[rows])
        kind = next((kind for kind in HONEST_FIRST if kind in kinds), None)
        return Calibration(self.training[rows], self.training_groups[rows], kind)

    @property
    def failed(self) -> bool:
        """Whether a test clip has no score."""
        return not np.isfinite(self.scores).all()


@dataclass(frozen=True, eq=False)
class Scored:
    """The scores of a finished detect unit, or of an ensemble; a file is read once, when its scores are first used."""

    variant: str
    machine: str
    seed: int | None  # None: an ensemble over seeds
    path: Path | None = field(default=None, repr=False)  # file of the scores; None: an ensemble that is not written
    sha256: str | None = field(default=None, repr=False)  # checksum of the file, where it is known
    computed: Mapping[Key, SectionScores] | None = field(default=None, repr=False)
    """Scores of an ensemble that was fused for this report."""
    domains: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Domains of test clips that are known now and may not have been when the scores were written."""

    @cached_property
    def systems(self) -> Mapping[Key, SectionScores]:
        """Scores of each section and system, in the file's order. Raises UserError: the file is damaged."""
        if self.computed is not None:
            return self.computed
        assert self.path is not None
        origin = None if self.seed is None else (self.variant, self.seed)
        found = read_scores(self.path, sha256=self.sha256, origin=origin)
        return {key: replace(each, domains=self._known(each)) for key, each in found.items()} if self.domains else found

    def _known(self, scores: SectionScores) -> Words:
        both = zip(scores.clips, scores.domains, strict=True)
        return np.array([self.domains.get(clip, domain) for clip, domain in both], dtype=object)


def by_name(scored: Iterable[Scored]) -> dict[tuple[str, str, int | None], Scored]:
    """Sort scores files by variant (or ensemble), machine and seed."""
    return {(file.variant, file.machine, file.seed): file for file in scored}


def read_scores(
    path: Path, *, sha256: str | None = None, origin: tuple[str, int] | None = None
) -> dict[Key, SectionScores]:
    """Read a scores file, system by system in the file's order.

    ``sha256``: checksum of the file, where it is known; ``origin``: variant and seed, of a unit's file.

    Raises UserError: the file is damaged, or has another checksum than ``sha256``.
    """
    table = read_parquet(path, "rayasd sweep --verify does it again", sha256=sha256)
    table = table.unify_dictionaries().combine_chunks()
    columns = {name: _values(table[name]) for name in table.column_names}
    in_test = columns["split"] == "test"
    alone = np.array([group is None for group in columns["group"]], dtype=bool)
    groups = np.where(alone, columns["clip"], columns["group"])
    parts = (
        table.select(Key._fields)
        .append_column("row", pa.array(np.arange(table.num_rows)))
        .group_by(Key._fields, use_threads=False)  # in the file's order
        .aggregate([("row", "list")])
    )
    keys = [Key(*values) for values in zip(*(parts[name].to_pylist() for name in Key._fields), strict=True)]
    trees = iter(_trees(path, table.schema.metadata or {}))
    found: dict[Key, SectionScores] = {}
    words_of: dict[str, list[Words]] = {}  # the same clips for all systems of a section: kept once
    for key, own_rows in zip(keys, parts["row_list"], strict=True):
        rows = own_rows.values.to_numpy()
        test, training = rows[in_test[rows]], rows[~in_test[rows]]
        own = [
            columns["clip"][test], columns["domain"][test], groups[test],
            columns["clip"][training], groups[training], columns["calibration"][training],
        ]  # fmt: skip
        before = words_of.setdefault(key.section, own)
        words = [b if np.array_equal(b, w) else w for b, w in zip(before, own, strict=True)]
        found[key] = SectionScores(
            clips=words[0],
            domains=words[1],
            scores=columns["score"][test],
            reason=columns["reason"][test[0]] if len(test) else None,
            groups=words[2],
            training_clips=words[3],
            training=columns["score"][training],
            training_groups=words[4],
            calibration=words[5],
            tree=next(trees, None if origin is None else Leaf(*origin, key.checkpoint, key.detector, key.pooling)),
        )
    return found


def _trees(path: Path, facts: Mapping[bytes, bytes]) -> list[Tree]:
    """Read from an ensemble's file what was fused; a unit's file has none."""
    if TREES not in facts:
        return []
    try:
        trees = json.loads(facts[TREES])
        if digest(trees) != facts.get(TREES_DIGEST, b"").decode():
            raise ValueError("it is not what was written")
        return [tree_of(tree) for tree in trees]
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged ({one_line(error, 100)}): rayasd report makes it again") from None


def _values(column: pa.ChunkedArray) -> NDArray[np.generic]:
    array = column.combine_chunks()
    if pa.types.is_dictionary(array.type):
        words = np.array([*array.dictionary.to_pylist(), None], dtype=object)
        return words[array.indices.fill_null(len(words) - 1).to_numpy()]
    if pa.types.is_string(array.type):
        return np.array(array.to_pylist(), dtype=object)
    return array.to_numpy(zero_copy_only=False)  # a null score is NaN
