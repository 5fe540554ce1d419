"""Fit every detector of one machine's sections to normal embeddings; score its test clips and its normal clips."""

import json
from collections.abc import Iterator, Mapping
from functools import reduce
from operator import and_
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from sklearn import mixture, neighbors  # noqa: F401 - loads BLAS and OpenMP, which the thread limit then reaches
from threadpoolctl import threadpool_limits

from rayasd.arrays import Features, Indices, Scores
from rayasd.config import InlierConfig
from rayasd.errors import UserError
from rayasd.files import replacing
from rayasd.inlier.bank import Bank, reason, scores_or_reason
from rayasd.inlier.detectors import DetectorSpec, FusionSpec, most_neighbours, parse_detectors
from rayasd.inlier.features import columns_of, features, features_of, normal_rows, own_products
from rayasd.inlier.fusion import fuse
from rayasd.inlier.pooling import is_clip_level, level_of, pool
from rayasd.inlier.scores_file import HELD_OUT, LEAVE_ONE_OUT, SCHEMA, TRAINED_ON
from rayasd.parquet import CLASSES, read_parquet
from rayasd.unit import Progress, Report, UnitSpec, silent


def detect(spec: UnitSpec, report: Report = silent) -> None:
    """Write ``part-0.parquet`` in ``spec.output``: one row per clip, checkpoint, detector and pooling.

    The clips are the test clips, and the normal clips that the detectors are fitted to or that were held out. Those
    are scored in ``inlier.calibration_folds`` parts, each by models of the other parts: thresholds and fusions need
    scores of normal clips that a model has not seen.
    """
    inlier = spec.config.inlier
    detectors = parse_detectors(inlier.detectors, inlier)
    embeddings = read_parquet(spec.run.table(spec.upstream("embed")))
    detectors = [detector for detector in detectors if _declared(detector) <= set(embeddings.column_names)]
    if not detectors:
        raise UserError(f"{spec.unit}: all detectors read outputs that this network does not have: add knn")
    classes = json.loads((embeddings.schema.metadata or {}).get(CLASSES, b"[]"))
    test = embeddings.filter(pc.field("split") == "test")
    order = [("checkpoint", "ascending"), ("section", "ascending")]
    of_bank: dict[str, Any] = {}
    scored = test if test.num_rows else embeddings.filter(normal_rows(inlier.fit_on))  # thresholds need no test clips
    groups = scored.group_by(["checkpoint", "section"]).aggregate([]).sort_by(order)
    with (
        threadpool_limits(spec.num_threads),  # detectors of many units run side by side
        replacing(spec.run.table(spec.unit)) as path,
        pq.ParquetWriter(path, SCHEMA, compression="zstd", write_page_checksum=True) as writer,
    ):
        for done, group in enumerate(groups.to_pylist()):
            report(Progress(done, groups.num_rows))
            scope = group if inlier.per == "section" else {"checkpoint": group["checkpoint"]}
            if scope != of_bank:
                normal = embeddings.filter(_all_equal(scope) & normal_rows(inlier.fit_on))
                bank, of_bank = Bank(normal, inlier, most_neighbours(detectors)), scope
            own = own_products(classes, group["section"])
            section = Section(group["section"], bank, test.filter(_all_equal(group)), inlier, own, spec.config.learns)
            tables = [table for detector in detectors for table in section.rows(detector)]
            # one row group a section: readers open a file of hundreds of small ones slowly
            writer.write_table(pa.concat_tables(tables).unify_dictionaries().combine_chunks())
    report(Progress(groups.num_rows, groups.num_rows))


def _all_equal(values: Mapping[str, Any]) -> pc.Expression:
    """Select the rows whose columns have these values."""
    return reduce(and_, (pc.field(name) == value for name, value in values.items()))


def _declared(detector: DetectorSpec | FusionSpec) -> set[str]:
    """List the columns that a detector or its members declare to read."""
    members = detector.members if isinstance(detector, FusionSpec) else (detector,)
    return {column for member in members for column in columns_of(features_of(member, "embedding"))}


class Section:
    """One section's test clips and normal clips, and the scores of every detector on them.

    Windows of a clip lie together, and every clip has equally many. The bank may be of more sections than this one.
    """

    def __init__(
        self, name: str, bank: Bank, test: pa.Table, inlier: InlierConfig, product: Indices, learns: bool
    ) -> None:
        self._bank = bank
        self._test = test
        self._inlier = inlier
        self._product = product
        clips = bank.table.filter(pc.field("window") == 0)
        self._own = pc.equal(clips["section"], name).to_numpy(zero_copy_only=False)
        self._clips = [_described(part, learns) for part in (test, clips.filter(pa.array(self._own)))]
        self._tests: dict[tuple[str, str], Features] = {}
        self._known: dict[tuple[str, str], list[Scores | str]] = {}

    def rows(self, detector: DetectorSpec | FusionSpec) -> Iterator[pa.Table]:
        """Score all clips by one detector: a table of ``SCHEMA`` for each pooling."""
        for pooling in self._inlier.poolings:
            of_test, of_normal = self.pooled(detector, pooling)
            yield _rows(self._clips[0], detector.name, pooling, of_test)
            if self._bank.num_folds:
                yield _rows(self._clips[1], detector.name, pooling, of_normal)

    def pooled(self, detector: DetectorSpec | FusionSpec, pooling: str) -> list[Scores | str]:
        """Scores of the test clips and of the section's normal clips, each an array or the reason for none."""
        if isinstance(detector, FusionSpec):
            return _fused(detector, [self.pooled(member, pooling) for member in detector.members])
        level = level_of(pooling)
        key = (detector.name, level)
        if key not in self._known:
            self._known[key] = self._scored(detector, level)
        parts = self._known[key]
        return parts if is_clip_level(pooling) else [self._pool(pooling, windows) for windows in parts]

    def _pool(self, pooling: str, windows: Scores | str) -> Scores | str:
        if isinstance(windows, str):
            return windows
        try:
            return pool(pooling, windows.reshape(-1, self._bank.num_windows))
        except Exception as error:  # any function may be plugged in: whatever it raises is its cells' reason
            return reason(error)

    def _scored(self, spec: DetectorSpec, level: str) -> list[Scores | str]:
        """Scores of the test clips and of the normal clips, or of all their windows."""
        detector, normal = self._bank.fitted(spec, level, self._product)
        if isinstance(detector, str):
            return [detector] * 2
        which = features_of(spec, self._inlier.features)
        if (which, level) not in self._tests:
            try:
                self._tests[which, level] = features(
                    self._test, which, self._inlier.metric, level, self._bank.num_windows
                )
            except ValueError as error:
                return [reason(error)] * 2
        no_test = self._test.num_rows == 0
        test = np.empty(0) if no_test else scores_or_reason(detector, self._tests[which, level])
        if isinstance(test, str):
            return [test] * 2
        if not isinstance(normal, str):
            normal = normal.reshape(len(self._own), -1)[self._own].ravel()
        return [test, normal]


def _fused(detector: FusionSpec, members: list[list[Scores | str]]) -> list[Scores | str]:
    for member, scores in zip(detector.members, members, strict=True):
        for part in scores:
            if isinstance(part, str):
                return [f"{member.name}: {part}"] * 2
    try:
        return list(fuse(detector.method, [(test, normal) for test, normal in members]))  # type: ignore[misc]
    except ValueError as error:
        return [reason(error)] * 2


def _described(table: pa.Table, learns: bool) -> pa.Table:
    """Take one row of each clip, and add how its score comes about if it is a normal one."""
    clips = table.filter(pc.field("window") == 0)
    words = {"train": TRAINED_ON if learns else LEAVE_ONE_OUT, "validation": HELD_OUT if learns else LEAVE_ONE_OUT}
    return clips.append_column("calibration", pa.array(map(words.get, clips["split"].to_pylist()), pa.string()))


def _rows(clips: pa.Table, detector: str, pooling: str, scores: Scores | str) -> pa.Table:
    count = clips.num_rows
    failed = isinstance(scores, str)
    of_clips = ("clip", "section", "domain", "split", "label", "checkpoint", "group", "calibration")
    columns = {
        **{name: clips[name].combine_chunks() for name in of_clips},
        "detector": pa.array([detector] * count),
        "pooling": pa.array([pooling] * count),
        "score": pa.nulls(count, pa.float64()) if failed else pa.array(scores),
        "reason": pa.array([scores if failed else None] * count, pa.string()),
    }
    return pa.Table.from_arrays([columns[f.name].cast(f.type) for f in SCHEMA], schema=SCHEMA)
