"""Fit every detector of one machine's sections to normal embeddings; score its test clips and its normal clips."""

import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from sklearn import mixture, neighbors  # noqa: F401 - loads BLAS and OpenMP, which the thread limit then reaches
from threadpoolctl import threadpool_limits

from rayasd.arrays import Features, Indices, Scores
from rayasd.config import InlierConfig
from rayasd.errors import UserError, one_line
from rayasd.files import replacing
from rayasd.inlier.detectors import (
    DetectorSpec,
    FusionSpec,
    anomaly_scores,
    fit_detector,
    most_neighbours,
    parse_detectors,
)
from rayasd.inlier.fusion import fuse
from rayasd.inlier.neighbours import NeighbourSearch
from rayasd.inlier.pooling import pool
from rayasd.inlier.scores_file import SCHEMA
from rayasd.parquet import CLASSES, read_parquet
from rayasd.unit import Progress, Report, UnitSpec, silent

COLUMNS = {"logits": ["product_logits"], "both": ["embedding", "product_logits"]}
"""What ``inlier.features`` calls by another name, and the columns that it is made of."""


def detect(spec: UnitSpec, report: Report = silent) -> None:
    """Write ``part-0.parquet`` in ``spec.output``: one row a clip, checkpoint, detector and pooling.

    The clips are the test clips and the normal clips that the detectors are fitted to. The latter are scored in
    ``inlier.calibration_folds`` parts, each by models of the other parts: thresholds and fusions need scores of normal
    clips that a model has not seen.
    """
    inlier = spec.config.inlier
    detectors = parse_detectors(inlier.detectors, inlier)
    embeddings = read_parquet(spec.run.table(spec.upstream("embed")))
    detectors = [detector for detector in detectors if _declared(detector) <= set(embeddings.column_names)]
    if not detectors:
        raise UserError(f"{spec.unit}: every detector reads an output that is not trained here: add knn, say")
    classes = json.loads((embeddings.schema.metadata or {}).get(CLASSES, b"[]"))
    test = embeddings.filter(pc.field("split") == "test")
    order = [("checkpoint", "ascending"), ("section", "ascending")]
    groups = test.group_by(["checkpoint", "section"]).aggregate([]).sort_by(order)
    with (
        threadpool_limits(spec.num_threads),  # detectors of many units run side by side
        replacing(spec.run.table(spec.unit)) as path,
        pq.ParquetWriter(path, SCHEMA, compression="zstd", write_page_checksum=True) as writer,
    ):
        for done, group in enumerate(groups.to_pylist()):
            report(Progress(done, groups.num_rows))
            of_group = (pc.field("checkpoint") == group["checkpoint"]) & (pc.field("section") == group["section"])
            bank = embeddings.filter(of_group & fit_rows(inlier.fit_on))
            own = own_products(classes, group["section"])
            section = Section(bank, test.filter(of_group), inlier, most_neighbours(detectors), own)
            tables = [table for detector in detectors for table in section.rows(detector)]
            # one row group a section: readers open a file of hundreds of small ones slowly
            writer.write_table(pa.concat_tables(tables).unify_dictionaries().combine_chunks())
    report(Progress(groups.num_rows, groups.num_rows))


def _declared(detector: DetectorSpec | FusionSpec) -> set[str]:
    """List the columns that a detector or its members declare to read."""
    members = detector.members if isinstance(detector, FusionSpec) else (detector,)
    return {column for member in members for column in columns_of(features_of(member, "embedding"))}


def own_products(classes: Sequence[str], section: str) -> Indices:
    """Return the positions of a section's product logits: one, or several where clusters divide it."""
    return np.array([k for k, name in enumerate(classes) if name.partition("/")[0] == section], np.int64)


def features_of(detector: DetectorSpec, default: str) -> str:
    """Return what a detector reads, a column or one of ``COLUMNS``: what its class declares, else the default."""
    declared = getattr(type(detector.build()), "features", None)
    return declared if isinstance(declared, str) else default


def columns_of(which: str) -> list[str]:
    """Return the columns of an embeddings file that make up what a detector reads."""
    return COLUMNS.get(which, [which])


def fit_rows(fit_on: str) -> pc.Expression:
    """Select the windows of an embeddings file that detectors are fitted to."""
    if fit_on == "validation":
        return pc.field("split") == "validation"
    normal = pc.field("split").isin(["train", "validation"])
    return normal if fit_on == "train" else normal & (pc.field("domain") == "source")


@dataclass(frozen=True)
class Fold:
    """Windows to fit to and windows to score."""

    bank: Features
    domains: NDArray[np.object_]
    """Domain of each of the bank's windows."""
    neighbours: NeighbourSearch
    product: Indices
    """Positions of the section's own product logits."""
    clips: NDArray[np.int64]
    """Clips that are scored."""
    windows: Features
    """Windows of these clips, clip by clip."""


class Section:
    """One section's normal windows and test windows, and the scores of every detector on them.

    Windows of a clip lie together, and every clip has equally many.
    """

    def __init__(self, bank: pa.Table, test: pa.Table, inlier: InlierConfig, most: int, product: Indices) -> None:
        self._inlier = inlier
        self._bank = bank
        self._test = test
        self._num_windows = pc.max(test["window"]).as_py() + 1
        self._most = most
        self._product = product
        self._folds: dict[str, list[Fold]] = {}
        self._known: dict[str, dict[str, list[Scores | str]]] = {}

    def rows(self, detector: DetectorSpec | FusionSpec) -> Iterator[pa.Table]:
        """Score all clips by one detector: a table of ``SCHEMA`` for each pooling."""
        for pooling, parts in self._pooled(detector).items():
            for clips, scores in zip((self._test, self._bank), parts, strict=True):
                if clips is self._test or self._num_folds:
                    yield _rows(clips.filter(pc.field("window") == 0), detector.name, pooling, scores)

    def _pooled(self, detector: DetectorSpec | FusionSpec) -> dict[str, list[Scores | str]]:
        """Clip scores by pooling: of the test clips and of the normal clips, each an array or the reason for none."""
        if isinstance(detector, FusionSpec):
            members = [self._pooled(member) for member in detector.members]
            return {
                pooling: _fused(detector, [member[pooling] for member in members]) for pooling in self._inlier.poolings
            }
        if detector.name not in self._known:
            parts = self._fitted_and_scored(detector)
            self._known[detector.name] = {
                pooling: [self._pool(pooling, windows) for windows in parts] for pooling in self._inlier.poolings
            }
        return self._known[detector.name]

    def _pool(self, pooling: str, windows: Scores | str) -> Scores | str:
        if isinstance(windows, str):
            return windows
        try:
            return pool(pooling, windows.reshape(-1, self._num_windows))
        except Exception as error:  # any function may be plugged in: whatever it raises is its cells' reason
            return _reason(error)

    def _fitted_and_scored(self, spec: DetectorSpec) -> list[Scores | str]:
        """Window scores of the test clips and of the normal clips."""
        if self._bank.num_rows == 0:
            return ["the section has no normal clips to fit to"] * 2
        try:
            whole, *folds = self._folds_of(features_of(spec, self._inlier.features))
        except ValueError as error:
            return [_reason(error)] * 2
        test = _fit_and_score(spec, whole)
        if isinstance(test, str) or not folds:
            return [test, test if isinstance(test, str) else "no training scores: fewer than two folds of normal clips"]
        normal = np.empty((self._bank.num_rows // self._num_windows, self._num_windows))
        for fold in folds:
            scores = _fit_and_score(spec, fold)
            if isinstance(scores, str):
                return [test, scores]
            normal[fold.clips] = scores.reshape(-1, self._num_windows)
        return [test, normal.ravel()]

    @cached_property
    def _num_folds(self) -> int:
        num_clips = self._bank.num_rows // self._num_windows
        folds = min(self._inlier.calibration_folds, num_clips)
        return folds if folds >= 2 else 0

    def _folds_of(self, which: str) -> list[Fold]:
        """All normal windows against the test windows, then each part of the normal clips against the others."""
        if which not in self._folds:
            X, X_test = (features(table, which, self._inlier.metric) for table in (self._bank, self._test))
            domains = np.array(self._bank["domain"].to_pylist(), dtype=object)
            clips = np.arange(len(X) // self._num_windows)
            part = np.repeat(clips % max(self._num_folds, 1), self._num_windows)  # a domain's clips lie together
            whole = NeighbourSearch(X, self._most)
            folds = [Fold(X, domains, whole, self._product, np.empty(0, np.int64), X_test)]
            for k in range(self._num_folds):
                out = part == k
                search = NeighbourSearch(X[~out], self._most)
                scored = clips[clips % self._num_folds == k]
                folds.append(Fold(search.bank, domains[~out], search, self._product, scored, X[out]))
            self._folds[which] = folds
        return self._folds[which]


def features(table: pa.Table, which: str, metric: str = "euclidean") -> Features:
    """Take what detectors see from an embeddings table.

    Args:
        table: n windows.
        which: embedding (n, D), logits (n, K), both (n, D + K), or an output of the objective, (n, 1) or (n, k).
        metric: with ``cosine``, embeddings are scaled to unit length.

    Raises:
        ValueError: there are none of these features, or they are not finite.

    """
    parts = []
    for name in columns_of(which):
        if name not in table.column_names:
            raise ValueError(f"these embeddings have no {name}")
        column = table[name].combine_chunks()
        flat = (column if pa.types.is_floating(column.type) else column.flatten()).to_numpy(zero_copy_only=False)
        rows = flat.reshape(len(column), -1) if len(column) else flat.reshape(0, 0)
        if metric == "cosine" and name == "embedding":
            rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        parts.append(rows)
    stacked = np.hstack(parts).astype(np.float32, copy=False)
    if not np.isfinite(stacked).all():
        raise ValueError("the embeddings hold NaN or infinity")
    return stacked


def _fit_and_score(spec: DetectorSpec, fold: Fold) -> Scores | str:
    """Scores of the fold's windows, or the reason why there are none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # convergence and duplicate warnings, once a grid point
            detector = spec.build()
            fit_detector(detector, fold.bank, domains=fold.domains, neighbours=fold.neighbours, product=fold.product)
            return anomaly_scores(detector, fold.windows)
    except Exception as error:  # any class may be plugged in: whatever it raises is its cells' reason
        return _reason(error)


def _fused(detector: FusionSpec, members: list[list[Scores | str]]) -> list[Scores | str]:
    for member, scores in zip(detector.members, members, strict=True):
        for part in scores:
            if isinstance(part, str):
                return [f"{member.name}: {part}"] * 2
    try:
        return list(fuse(detector.method, [(test, normal) for test, normal in members]))  # type: ignore[misc]
    except ValueError as error:
        return [_reason(error)] * 2


def _reason(error: Exception) -> str:
    return one_line(f"{type(error).__name__}: {error}", 300)


def _rows(clips: pa.Table, detector: str, pooling: str, scores: Scores | str) -> pa.Table:
    count = clips.num_rows
    failed = isinstance(scores, str)
    of_clips = ("clip", "section", "domain", "split", "label", "checkpoint")
    columns = {
        **{name: clips[name].combine_chunks() for name in of_clips},
        "detector": pa.array([detector] * count),
        "pooling": pa.array([pooling] * count),
        "score": pa.nulls(count, pa.float64()) if failed else pa.array(scores),
        "reason": pa.array([scores if failed else None] * count, pa.string()),
    }
    return pa.Table.from_arrays([columns[f.name].cast(f.type) for f in SCHEMA], schema=SCHEMA)
