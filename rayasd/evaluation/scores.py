"""Scores files as arrays: one system's scores of a section's test clips and of its normal training clips."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rayasd.parquet import read_parquet

FEWEST_HELD_OUT = 10
"""Clips from which a threshold can be set."""

Words = NDArray[np.object_]
Scores = NDArray[np.float64]


class Scored(NamedTuple):
    """A scores file: of a finished detect unit, or of an ensemble."""

    variant: str
    machine: str
    seed: int | None
    """None: an ensemble over seeds."""
    path: Path


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
    """Which of them the extractor was not trained on, (n,)."""

    @property
    def calibrating(self) -> Scores:
        """Training scores to set thresholds by: of clips that the extractor does not know, unless they are too few."""
        return self.training[self.held_out] if self.held_out.sum() >= FEWEST_HELD_OUT else self.training

    @property
    def failed(self) -> bool:
        """Whether a test clip has no score."""
        return not np.isfinite(self.scores).all()


def by_name(scored: Iterable[Scored]) -> dict[tuple[str, str, int | None], Scored]:
    """Sort scores files by variant (or ensemble), machine and seed."""
    return {(file.variant, file.machine, file.seed): file for file in scored}


def read_scores(path: Path, *, section: str | None = None) -> dict[Key, SectionScores]:
    """Read a scores file, or one section of it, system by system in the file's order."""
    filters = None if section is None else [("section", "=", section)]
    table = read_parquet(path, filters=filters).unify_dictionaries().combine_chunks()
    columns = {name: _values(table[name]) for name in table.column_names}
    in_test = columns["split"] == "test"
    places: dict[Key, list[NDArray[np.int64]]] = {}
    for block in _blocks(table):
        at = block[0]
        key = Key(*(columns[name][at] for name in Key._fields))
        places.setdefault(key, []).append(block)
    found = {}
    for key, blocks in places.items():
        rows = np.concatenate(blocks)
        test, training = rows[in_test[rows]], rows[~in_test[rows]]
        found[Key(key.section, int(key.checkpoint), key.detector, key.pooling)] = SectionScores(
            clips=columns["clip"][test],
            domains=columns["domain"][test],
            scores=columns["score"][test],
            reason=columns["reason"][test[0]] if len(test) else None,
            training_clips=columns["clip"][training],
            training=columns["score"][training],
            held_out=columns["split"][training] == "validation",
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
