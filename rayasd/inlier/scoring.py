"""Fit every detector of one machine's sections to normal embeddings and score its test clips."""

import warnings

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from sklearn import mixture, neighbors  # noqa: F401 - loads BLAS and OpenMP, which the thread limit then reaches
from threadpoolctl import threadpool_limits

from rayasd.config import InlierConfig
from rayasd.files import replacing
from rayasd.inlier.detectors import DetectorSpec, Features, anomaly_scores, fit_detector, parse_detectors
from rayasd.inlier.pooling import find_pooling
from rayasd.unit import Progress, Report, UnitSpec, silent

_WORD = pa.dictionary(pa.int32(), pa.string())

SCHEMA = pa.schema(
    [
        ("clip", pa.string()),
        ("section", _WORD),
        ("domain", _WORD),
        ("split", _WORD),
        ("label", pa.int8()),  # null = unknown when this was written
        ("detector", _WORD),
        ("pooling", _WORD),
        ("score", pa.float64()),  # higher = more anomalous; null where the detector failed
        ("reason", _WORD),  # why it failed, else null
    ]
)


def detect(spec: UnitSpec, report: Report = silent) -> None:
    """Write ``part-0.parquet`` in ``spec.output``: one row a test clip, detector and pooling."""
    inlier = spec.config.inlier
    detectors = parse_detectors(inlier.detectors, inlier)
    embeddings = pq.read_table(spec.run.table(spec.upstream("embed")))
    test = embeddings.filter(pc.field("split") == "test")
    sections = sorted(pc.unique(test["section"]).to_pylist())
    with (
        threadpool_limits(spec.num_threads),  # detectors of many units run side by side
        replacing(spec.run.table(spec.unit)) as path,
        pq.ParquetWriter(path, SCHEMA, compression="zstd") as writer,
    ):
        for done, section in enumerate(sections):
            report(Progress(done, len(sections)))
            of_section = pc.field("section") == section
            bank = embeddings.filter(of_section & _fit_rows(inlier.fit_on))
            clips = test.filter(of_section)
            for table in _score_section(bank, clips, detectors, inlier):
                writer.write_table(table)
    report(Progress(len(sections), len(sections)))


def _fit_rows(fit_on: str) -> pc.Expression:
    if fit_on == "validation":
        return pc.field("split") == "validation"
    normal = pc.field("split") != "test"
    return normal if fit_on == "train" else normal & (pc.field("domain") == "source")


def _score_section(
    bank: pa.Table, test: pa.Table, detectors: list[DetectorSpec], inlier: InlierConfig
) -> list[pa.Table]:
    # Windows of a clip lie together, and every clip has equally many.
    num_windows = pc.max(test["window"]).as_py() + 1
    clips = test.filter(pc.field("window") == 0)
    tables = []
    for detector in detectors:
        scores, reason = _fit_and_score(detector, bank, test, inlier.features)
        for pooling in inlier.poolings:
            pooled = None if scores is None else find_pooling(pooling)(scores.reshape(-1, num_windows))
            tables.append(_rows(clips, detector.name, pooling, pooled, reason))
    return tables


def features(table: pa.Table, which: str) -> Features:
    """Take what detectors see from an embeddings table: (windows, D), (windows, K) or (windows, D + K).

    Raises:
        ValueError: there are none of these features, or they are not finite.

    """
    columns = {
        "embedding": ["embedding"],
        "logits": ["product_logits"],
        "both": ["embedding", "product_logits"],
    }
    parts = []
    for name in columns[which]:
        column = table[name].combine_chunks()
        if column.null_count:
            raise ValueError(f"inlier.features = {which}: these embeddings have no {name}")
        flat = column.flatten().to_numpy(zero_copy_only=False)
        parts.append(flat.reshape(len(column), -1) if len(column) else flat.reshape(0, 0))
    stacked = np.hstack(parts).astype(np.float32, copy=False)
    if not np.isfinite(stacked).all():
        raise ValueError("the embeddings hold NaN or infinity")
    return stacked


def _fit_and_score(
    spec: DetectorSpec, bank: pa.Table, test: pa.Table, which: str
) -> tuple[NDArray[np.float64] | None, str | None]:
    """Scores of the test windows, or None and the reason why there are none."""
    if bank.num_rows == 0:
        return None, "the section has no normal clips to fit to"
    try:
        X, X_test = features(bank, which), features(test, which)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # convergence and duplicate warnings, once a grid point
            detector = spec.build()
            fit_detector(detector, X, np.array(bank["domain"].to_pylist(), dtype=object))
            return anomaly_scores(detector, X_test), None
    except Exception as error:  # any class may be plugged in: whatever it raises is its cells' reason
        return None, f"{type(error).__name__}: {error}".splitlines()[0][:300]


def _rows(
    clips: pa.Table, detector: str, pooling: str, scores: NDArray[np.float64] | None, reason: str | None
) -> pa.Table:
    count = clips.num_rows
    columns = {
        **{name: clips[name].combine_chunks() for name in ("clip", "section", "domain", "split", "label")},
        "detector": pa.array([detector] * count),
        "pooling": pa.array([pooling] * count),
        "score": pa.nulls(count, pa.float64()) if scores is None else pa.array(scores),
        "reason": pa.array([reason] * count, pa.string()),
    }
    return pa.Table.from_arrays([columns[f.name].cast(f.type) for f in SCHEMA], schema=SCHEMA)
