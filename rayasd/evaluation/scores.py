"""Scores files as arrays: one system's scores of a section's test clips and of its normal training clips."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rayasd.arrays import Scores
from rayasd.parquet import read_parquet

FEWEST_HELD_OUT = 10
"""Clips from which a threshold can be set."""

Words = NDArray[np.object_]


class System(NamedTuple):
    """What is chosen and ranked."""

    variant: str
    checkpoint: int
    """Epochs that the extractor was trained for."""
    detector: str
    pooling: str


class Key(NamedTuple):
    """One system's part of a scores file."""

    section: str
    checkpoint: int
    detector: str
    pooling: str


@dataclass(frozen=True)
class SectionScores:
    """One system's scores in one section; higher is more anomalous."""

    clips: Words
    """Test clips, (clips,)."""
    domains: Words
    """(clips,)"""
    scores: Scores
    """(clips,); NaN where the detector failed."""
    reason: str | None
    """Why it failed."""
    training_clips: Words
    """Normal clips, (n,); none where there are no training scores."""
    training: Scores
    """(n,); NaN where the detector failed."""
    held_out: NDArray[np.bool_]
    """Whether each of them was held out of the extractor's training, (n,)."""

    @property
    def calibrating(self) -> Scores:
        """Training scores to set thresholds by: of clips that the extractor does not know, unless they are too few."""
        return self.training[self.held_out] if self.held_out.sum() >= FEWEST_HELD_OUT else self.training

    @property
    def failed(self) -> bool:
        """Whether a test clip has no score."""
        return not np.isfinite(self.scores).all()


@dataclass(frozen=True, eq=False)
class Scored:
    """The scores of a finished detect unit, or of an ensemble; a file is read once, when its scores are first used."""

    variant: str
    machine: str
    seed: int | None
    """None: an ensemble over seeds."""
    path: Path
    """Where they are, or go."""
    sha256: str | None = field(default=None, repr=False)
    """What the file must have, where that is known."""
    computed: "Mapping[Key, SectionScores] | None" = field(default=None, repr=False)
    """Scores of an ensemble, which may have no file."""
    members: "Mapping[str, Sequence[System]] | None" = field(default=None, repr=False)
    """For a greedy ensemble: by section, the systems whose scores are fused."""
    domains: "Mapping[str, str]" = field(default_factory=dict, repr=False)
    """Domains of test clips that are known now and may not have been when the scores were written."""

    @cached_property
    def systems(self) -> Mapping[Key, SectionScores]:
        """Scores of each section and system, in the file's order.

        Raises:
            UserError: the file is damaged.

        """
        if self.computed is not None:
            return self.computed
        found = read_scores(self.path, sha256=self.sha256)
        return {key: replace(each, domains=self._known(each)) for key, each in found.items()} if self.domains else found

    def _known(self, scores: "SectionScores") -> Words:
        both = zip(scores.clips, scores.domains, strict=True)
        return np.array([self.domains.get(clip, domain) for clip, domain in both], dtype=object)


def by_name(scored: Iterable[Scored]) -> dict[tuple[str, str, int | None], Scored]:
    """Sort scores files by variant (or ensemble), machine and seed."""
    return {(file.variant, file.machine, file.seed): file for file in scored}


def read_scores(path: Path, *, sha256: str | None = None) -> dict[Key, SectionScores]:
    """Read a scores file, system by system in the file's order.

    Raises:
        UserError: the file is damaged, or has another checksum than ``sha256``.

    """
    table = (
        read_parquet(path, "rayasd sweep --verify does it again", sha256=sha256).unify_dictionaries().combine_chunks()
    )
    columns = {name: _values(table[name]) for name in table.column_names}
    in_test = columns["split"] == "test"
    places: dict[Key, list[NDArray[np.int64]]] = {}
    for block in _blocks(table):
        at = block[0]
        key = Key(*(columns[name][at] for name in Key._fields))
        places.setdefault(key, []).append(block)
    found: dict[Key, SectionScores] = {}
    clips_of: dict[str, list[Words]] = {}  # the same clips for all systems of a section: kept once
    for key, blocks in places.items():
        rows = np.concatenate(blocks)
        test, training = rows[in_test[rows]], rows[~in_test[rows]]
        own = [columns["clip"][test], columns["domain"][test], columns["clip"][training], columns["split"][training]]
        before = clips_of.setdefault(key.section, own)
        words = [b if np.array_equal(b, w) else w for b, w in zip(before, own, strict=True)]
        found[Key(key.section, int(key.checkpoint), key.detector, key.pooling)] = SectionScores(
            clips=words[0],
            domains=words[1],
            scores=columns["score"][test],
            reason=columns["reason"][test[0]] if len(test) else None,
            training_clips=words[2],
            training=columns["score"][training],
            held_out=words[3] == "validation",
        )
    return found


def _blocks(table: pa.Table) -> list[NDArray[np.int64]]:
    """Rows of each run of equal keys."""
    if table.num_rows == 0:
        return []
    codes = np.stack([_codes(table[name]) for name in Key._fields])
    starts = np.flatnonzero((codes[:, 1:] != codes[:, :-1]).any(axis=0)) + 1
    return np.split(np.arange(table.num_rows), starts)


def _codes(column: pa.ChunkedArray) -> NDArray[np.int64]:
    array = column.combine_chunks()
    return (array.indices if pa.types.is_dictionary(array.type) else array).to_numpy(zero_copy_only=False)


def _values(column: pa.ChunkedArray) -> NDArray[np.generic]:
    array = column.combine_chunks()
    if pa.types.is_dictionary(array.type):
        words = np.array([*array.dictionary.to_pylist(), None], dtype=object)
        return words[array.indices.fill_null(len(words) - 1).to_numpy()]
    if pa.types.is_string(array.type):
        return np.array(array.to_pylist(), dtype=object)
    return array.to_numpy(zero_copy_only=False)  # a null score is NaN
