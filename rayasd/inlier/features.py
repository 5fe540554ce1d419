"""Features for detectors, per window or per clip, from an embeddings table."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rayasd.arrays import Features, Indices
from rayasd.inlier.detectors import DetectorSpec
from rayasd.inlier.pooling import WINDOWS, find_clip_pooling

COLUMNS = {"logits": ["product_logits"], "both": ["embedding", "product_logits"]}
"""Names of ``inlier.features`` and the columns that each concatenates."""


@dataclass(frozen=True)
class Samples:
    """Windows or clips, n of them, and where they are from."""

    X: Features  # (n, D)
    domains: NDArray[np.object_]  # source, target or unknown, (n,)
    groups: Indices
    """Which clip, or group of clips, each is of, (n,), from 0: samples of one group are never neighbours."""

    def part(self, rows: NDArray[np.bool_]) -> "Samples":
        """Take these rows alone."""
        return Samples(self.X[rows], self.domains[rows], self.groups[rows])


def samples(table: pa.Table, which: str, metric: str = "euclidean", level: str = WINDOWS) -> Samples:
    """Take what detectors see from an embeddings table, window by window or clip by clip.

    Raises ValueError: as ``features``.
    """
    num_windows = windows_per_clip(table)
    X = features(table, which, metric, level, num_windows)
    domains = np.array(table["domain"].to_pylist(), dtype=object)
    each = slice(None) if level == WINDOWS else slice(None, None, num_windows)
    return Samples(X, domains[each], group_numbers(table)[each])


def windows_per_clip(table: pa.Table) -> int:
    """Count the windows of each clip, of which every clip has equally many, one after the other; at least 1."""
    return int(pc.max(table["window"]).as_py() or 0) + 1


def features(
    table: pa.Table, which: str, metric: str = "euclidean", level: str = WINDOWS, num_windows: int = 1
) -> Features:
    """Take the numbers that detectors see from an embeddings table.

    Args:
        table: n windows.
        which: embedding (n, D), logits (n, K), both (n, D + K), or an output of the objective, (n, 1) or (n, k).
        metric: with ``cosine``, embeddings are scaled to unit length, those of clips after they were pooled.
        level: ``WINDOWS``, or the clip pooling that makes one row of each clip's windows.
        num_windows: windows of each clip; only clip poolings need it.

    Raises ValueError: there are none of these features, or they are not finite.
    """
    parts = []
    for name in columns_of(which):
        if name not in table.column_names:
            raise ValueError(f"these embeddings have no {name}")
        column = table[name].combine_chunks()
        flat = (column if pa.types.is_floating(column.type) else column.flatten()).to_numpy(zero_copy_only=False)
        rows = flat.reshape(len(column), -1) if len(column) else flat.reshape(0, 0)
        if level != WINDOWS and len(rows):
            of_clips = rows.reshape(-1, num_windows, rows.shape[1])
            rows = find_clip_pooling(level)(of_clips.astype(np.float64))
        if metric == "cosine" and name == "embedding":
            rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        parts.append(rows)
    stacked = np.hstack(parts).astype(np.float32, copy=False)
    if not np.isfinite(stacked).all():
        raise ValueError("the embeddings hold NaN or infinity")
    return stacked


def features_of(detector: DetectorSpec, default: str) -> str:
    """Return what a detector reads, a column or one of ``COLUMNS``: what its class declares, else the default."""
    declared = getattr(type(detector.build()), "features", None)
    return declared if isinstance(declared, str) else default


def columns_of(which: str) -> list[str]:
    """Return the columns of an embeddings file that make up what a detector reads."""
    return COLUMNS.get(which, [which])


def own_products(classes: Sequence[str], section: str) -> Indices:
    """Return the positions of a section's product logits: one, or several where clusters divide it."""
    return np.array([k for k, name in enumerate(classes) if name.partition("/")[0] == section], np.int64)


def normal_rows(fit_on: str) -> pc.Expression:
    """Select the windows of normal clips: those that detectors are fitted to, and those held out of all training."""
    if fit_on == "source":
        return (pc.field("split") == "validation") | ((pc.field("split") == "train") & (pc.field("domain") == "source"))
    return pc.field("split").isin(["validation"] if fit_on == "validation" else ["train", "validation"])


def group_numbers(table: pa.Table) -> Indices:
    """Give each window (n,) the number of its group of clips, or of its clip; from 0, in order of appearance."""
    names = pc.fill_null(table["group"], table["clip"]).combine_chunks().dictionary_encode()
    return names.indices.to_numpy().astype(np.int64)
