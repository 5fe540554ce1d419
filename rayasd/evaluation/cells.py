"""Cells: AUC and pAUC of each (variant, seed, machine, section, domain) under each detector and pooling."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rayasd.evaluation.bootstrap import Cell, CellScores
from rayasd.evaluation.metrics import auc, partial_auc

SCHEMA = pa.schema(
    [
        ("variant", pa.string()),
        ("seed", pa.int64()),
        ("machine", pa.string()),
        ("section", pa.string()),
        ("domain", pa.string()),
        ("part", pa.string()),  # development, evaluation
        ("detector", pa.string()),
        ("pooling", pa.string()),
        ("auc", pa.float64()),  # null unless status is ok
        ("pauc", pa.float64()),
        ("num_normal", pa.int64()),
        ("num_anomaly", pa.int64()),
        ("status", pa.string()),  # ok, unlabelled, failed
        ("reason", pa.string()),  # why it is not ok
        ("selected", pa.bool_()),  # the system chosen on the development sections, of its variant
    ]
)

Scored = tuple[str, str, int, Path]
"""variant, machine, seed and scores file of a finished detect unit."""


def score_cells(scored: Sequence[Scored], catalog: pa.Table, development_sections: Sequence[str]) -> pa.Table:
    """Compute every cell of the finished units, with the catalog's labels: it may know more than the scores did."""
    labels = dict(zip(catalog["clip"].to_pylist(), catalog["label"].to_pylist(), strict=True))
    rows = [row for unit in scored for row in _unit_cells(unit, labels, set(development_sections))]
    return pa.Table.from_pylist(rows, SCHEMA)


def cell_scores(
    scored: Sequence[Scored], catalog: pa.Table, cells: pa.Table, system: tuple[str, str, str]
) -> dict[Cell, CellScores]:
    """Collect the clip scores behind a system's cells, seed by seed; the clips' order is the same in every seed.

    Args:
        scored: finished detect units.
        catalog: with labels.
        cells: the cells wanted; those of other systems, and those that are not ok, are passed over.
        system: variant, detector, pooling.

    """
    variant, detector, pooling = system
    labels = dict(zip(catalog["clip"].to_pylist(), catalog["label"].to_pylist(), strict=True))
    chosen = (pc.field("variant") == variant) & (pc.field("detector") == detector) & (pc.field("pooling") == pooling)
    wanted = cells.filter(chosen & (pc.field("status") == "ok"))
    names = set(zip(*(wanted[n].to_pylist() for n in ("machine", "section", "domain", "seed")), strict=True))
    rows: dict[Cell, list[list[float]]] = {}
    clips: dict[Cell, list[str]] = {}
    for unit_variant, machine, seed, path in sorted(scored):
        if unit_variant != variant:
            continue
        table = pq.read_table(path, filters=[("detector", "=", detector), ("pooling", "=", pooling)])
        for section, domain in sorted({(s, d) for m, s, d, k in names if (m, k) == (machine, seed)}):
            of_cell = table.filter((pc.field("section") == section) & (pc.field("domain") == domain)).sort_by("clip")
            rows.setdefault((machine, section, domain), []).append(of_cell["score"].to_pylist())
            clips[machine, section, domain] = of_cell["clip"].to_pylist()
    return {
        cell: CellScores(tuple(clips[cell]), np.array([labels[clip] == 1 for clip in clips[cell]]), np.array(of_cell))
        for cell, of_cell in rows.items()
    }


def _unit_cells(unit: Scored, labels: dict[str, int | None], development: set[str]) -> list[dict[str, object]]:
    variant, machine, seed, path = unit
    table = pq.read_table(path).unify_dictionaries()
    groups = table.group_by(["section", "domain"], use_threads=False).aggregate([])
    rows = []
    for section, domain in zip(groups["section"].to_pylist(), groups["domain"].to_pylist(), strict=True):
        cell = table.filter((pc.field("section") == section) & (pc.field("domain") == domain))
        systems, clips, scores, reasons = _matrix(cell)
        known = [labels.get(clip) for clip in clips]
        anomalous, normal = (np.array([label == wanted for label in known]) for wanted in (1, 0))
        failed = np.atleast_1d(~np.isfinite(scores).all(axis=1))
        good = np.flatnonzero(~failed)
        values: NDArray[np.float64] = np.full((2, len(systems)), np.nan)
        problem = None
        if not (anomalous | normal).all():
            problem = (
                "unlabelled",
                f"{int((~(anomalous | normal)).sum())} of {len(clips)} clips have no label",
            )
        elif not anomalous.any() or not normal.any():
            problem = (
                "unlabelled",
                f"no {'normal' if anomalous.any() else 'anomalous'} clips: AUC needs both",
            )
        elif len(good):
            values[:, good] = auc(anomalous, scores[good]), partial_auc(anomalous, scores[good])
        for i, (detector, pooling) in enumerate(systems):
            status, reason = ("failed", reasons[i]) if failed[i] else problem or ("ok", None)
            rows.append(
                {
                    "variant": variant,
                    "seed": seed,
                    "machine": machine,
                    "section": section,
                    "domain": domain,
                    "part": "development" if section in development else "evaluation",
                    "detector": detector,
                    "pooling": pooling,
                    "auc": float(values[0, i]) if status == "ok" else None,
                    "pauc": float(values[1, i]) if status == "ok" else None,
                    "num_normal": int(normal.sum()),
                    "num_anomaly": int(anomalous.sum()),
                    "status": status,
                    "reason": reason,
                    "selected": False,
                }
            )
    return rows


def _matrix(
    cell: pa.Table,
) -> tuple[list[tuple[str, str]], list[str], NDArray[np.float64], list[str | None]]:
    """Systems (detector, pooling), clips, scores (systems, clips; NaN where failed) and reasons of one cell's rows.

    A scores file holds, section by section, one block of clips after the other for each system, clips in one order.
    """
    detectors, poolings = (cell[name].to_pylist() for name in ("detector", "pooling"))
    systems = list(dict.fromkeys(zip(detectors, poolings, strict=True)))
    scores = cell["score"].to_numpy().reshape(len(systems), -1)
    clips = cell["clip"].slice(0, scores.shape[1]).to_pylist()
    reasons = cell["reason"].to_pylist()[:: scores.shape[1]]
    return systems, clips, scores, reasons
