"""Cells: AUC and pAUC of each (variant, seed, machine, section, domain) under each checkpoint, detector and pooling.

Beside them, AUC by attribute of the clips, such as a speed, a load or a kind of fault.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rayasd.config import EvaluationConfig
from rayasd.data.naming import attribute_values
from rayasd.evaluation.bootstrap import Cell, CellScores
from rayasd.evaluation.metrics import METRICS, auc
from rayasd.evaluation.scores import Key, Scored, SectionScores, Words, by_name
from rayasd.evaluation.years import CellKind, cell_kinds, is_development

SCHEMA = pa.schema(
    [
        ("variant", pa.string()),
        ("seed", pa.int64()),  # null: an ensemble over seeds
        ("machine", pa.string()),
        ("section", pa.string()),
        ("domain", pa.string()),  # source, target; since 2022 also both, for the section's pAUC
        ("part", pa.string()),  # development, evaluation
        ("checkpoint", pa.int64()),
        ("detector", pa.string()),
        ("pooling", pa.string()),
        ("auc", pa.float64()),  # null unless status is ok and the year's score counts it
        ("pauc", pa.float64()),
        ("num_normal", pa.int64()),
        ("num_anomaly", pa.int64()),
        ("threshold", pa.float64()),  # of the selected systems, like all up to f1
        ("no_threshold", pa.string()),  # why there is none
        ("calibration", pa.string()),  # held-out, cross-fit, leave-one-out, trained-on
        ("num_calibration", pa.int64()),  # normal clips (or groups of them) behind the threshold
        ("false_alarms", pa.float64()),  # share of the cell's normal clips that are called anomalous
        ("false_alarms_low", pa.float64()),  # its 95 % interval (Clopper-Pearson), like the next
        ("false_alarms_high", pa.float64()),
        ("precision", pa.float64()),
        ("recall", pa.float64()),
        ("f1", pa.float64()),
        ("status", pa.string()),  # ok, unlabelled, failed
        ("reason", pa.string()),  # why it is not ok
        ("selected", pa.bool_()),  # counts for its variant: of the system chosen on the sections that choose
    ]
)

Labels = Mapping[str, int | None]  # label of each clip: 0 normal, 1 anomalous, None unknown


def labels_of(catalog: pa.Table) -> Labels:
    """Read every clip's label from a catalog: it may know more than the scores did when they were written."""
    return dict(zip(catalog["clip"].to_pylist(), catalog["label"].to_pylist(), strict=True))


def score_cells(scored: Sequence[Scored], labels: Labels, evaluation: EvaluationConfig) -> pa.Table:
    """Compute every cell of these scores files."""
    return pa.Table.from_pylist([row for unit in scored for row in _unit_cells(unit, labels, evaluation)], SCHEMA)


def cell_scores(scored: Sequence[Scored], labels: Labels, cells: pa.Table, year: int) -> dict[Cell, CellScores]:
    """Collect the clip scores behind these cells, seed by seed; the clips' order is the same in every seed.

    ``cells``: of one system, or of one per cell; those that are not ok are passed over.
    """
    wanted: dict[Scored, list[dict[str, Any]]] = {}
    files = by_name(scored)
    for row in cells.filter(pc.field("status") == "ok").to_pylist():
        wanted.setdefault(files[row["variant"], row["machine"], row["seed"]], []).append(row)
    found: dict[Cell, list[CellScores]] = {}
    for unit, rows in sorted(wanted.items(), key=lambda item: str(item[0])):
        for row in rows:
            of_section = unit.systems[Key(*(row[name] for name in Key._fields))]
            anomalous, members = members_of(of_section, row["domain"], labels, year)
            order = np.flatnonzero(members)[np.argsort(of_section.clips[members])]
            cell = CellScores(
                clips=tuple(of_section.clips[order]),
                anomalous=anomalous[order],
                scores=of_section.scores[None, order],
                domains=of_section.domains[order],
                groups=of_section.groups[order],
                metrics=tuple(name for name in METRICS if row[name] is not None),
            )
            found.setdefault((unit.machine, row["section"], row["domain"]), []).append(cell)
    return {
        cell: replace(seeds[0], scores=np.concatenate([seed.scores for seed in seeds])) for cell, seeds in found.items()
    }


def members_of(
    of_section: SectionScores, domain: str, labels: Labels, year: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Tell which of a section's test clips are anomalous ones of a cell, and which are its clips; (clips,) each."""
    kind = next(kind for kind in cell_kinds(year, of_section.domains) if kind.domain == domain)
    return _members(of_section.clips, kind, labels)


def _unit_cells(unit: Scored, labels: Labels, evaluation: EvaluationConfig) -> list[dict[str, Any]]:
    by_section: dict[str, dict[Key, SectionScores]] = {}
    for key, of_key in unit.systems.items():
        by_section.setdefault(key.section, {})[key] = of_key
    rows = []
    for section, systems in by_section.items():
        part = "development" if is_development(evaluation, unit.machine, section) else "evaluation"
        first = next(iter(systems.values()))
        if len(first.clips) == 0:
            continue
        scores = np.stack([of_system.scores for of_system in systems.values()])
        failed = np.atleast_1d(~np.isfinite(scores).all(axis=1))
        for kind in cell_kinds(evaluation.rule_year, first.domains):
            anomalous, members = _members(first.clips, kind, labels)
            problem = why_not_evaluated(first.clips, kind, labels)
            good = scores[~failed][:, members]
            values: dict[str, NDArray[np.float64]] = {name: np.full(len(scores), np.nan) for name in kind.metrics}
            if problem is None and not failed.all():
                for name in kind.metrics:
                    values[name][~failed] = METRICS[name](anomalous[members], good)
            for i, (key, of_key) in enumerate(systems.items()):
                status, reason = ("failed", of_key.reason) if failed[i] else problem or ("ok", None)
                if status == "ok" and np.ptp(of_key.scores[members]) == 0.0:
                    status, reason = "failed", "all its clips have the same score"
                rows.append(
                    {
                        **dict.fromkeys(SCHEMA.names),
                        "variant": unit.variant,
                        "seed": unit.seed,
                        "machine": unit.machine,
                        "domain": kind.domain,
                        "part": part,
                        **key._asdict(),
                        **{name: float(of[i]) for name, of in values.items() if status == "ok"},
                        "num_normal": int((members & ~anomalous).sum()),
                        "num_anomaly": int(anomalous.sum()),
                        "status": status,
                        "reason": reason,
                        "selected": False,
                    }
                )
    return rows


def labelled_cells(catalog: pa.Table, evaluation: EvaluationConfig) -> dict[str, int]:
    """Count, for each machine, the cells that can be evaluated: all their clips have labels, of both classes."""
    test = catalog.filter(pc.field("split") == "test")
    labels, counts = labels_of(test), dict.fromkeys(pc.unique(test["machine"]).to_pylist(), 0)
    for group in test.group_by(["machine", "section"]).aggregate([("clip", "list"), ("domain", "list")]).to_pylist():
        clips, domains = (np.array(group[f"{name}_list"], dtype=object) for name in ("clip", "domain"))
        kinds = cell_kinds(evaluation.rule_year, domains)
        counts[group["machine"]] += sum(why_not_evaluated(clips, kind, labels) is None for kind in kinds)
    return counts


def _members(clips: Words, kind: CellKind, labels: Labels) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return two masks (clips,): the cell's anomalous clips, and all its clips."""
    label = np.array([labels.get(clip) for clip in clips], dtype=object)
    anomalous = (label == 1) & kind.anomalous
    return anomalous, anomalous | ((label == 0) & kind.normal)


def why_not_evaluated(clips: Words, kind: CellKind, labels: Labels) -> tuple[str, str] | None:
    """Status and reason of a cell that cannot be evaluated."""
    if kind.problem is not None:
        return "unlabelled", kind.problem
    concerned = kind.normal | kind.anomalous
    unknown = sum(labels.get(clip) is None for clip in clips[concerned])
    if unknown:
        return "unlabelled", f"{unknown} of {concerned.sum()} clips have no label"
    anomalous, members = _members(clips, kind, labels)
    if not anomalous.any() or anomalous.sum() == members.sum():
        return "unlabelled", f"no {'normal' if anomalous.any() else 'anomalous'} clips: AUC needs both"
    return None


class OfValue(NamedTuple):
    """AUC of a machine's clips of one attribute value."""

    machine: str
    value: str
    num_normal: int
    num_anomaly: int
    auc: float  # mean over sections, weighted by their anomalous clips, and over seeds; fraction of 1
    of_all_normal: bool  # no normal clip has the value, as of a kind of fault: all of the section are taken


def aucs_by_attribute(
    scored: Sequence[Scored], labels: Labels, attributes: Mapping[str, str], cells: pa.Table, entry: str
) -> list[OfValue]:
    """Compute an entry's AUC of each machine and attribute value: anomalous clips that have it against normal ones.

    ``scored``: with ensembles; ``attributes``: of the clips, from their names or a manifest.
    """
    chosen = cells.filter(pc.field("selected") & (pc.field("variant") == entry) & (pc.field("status") == "ok"))
    systems = {(row["machine"], row["seed"], Key(*(row[n] for n in Key._fields))) for row in chosen.to_pylist()}
    files, found = by_name(scored), dict[tuple[str, str], list[tuple[int, int, float, bool]]]()
    for machine, seed, key in sorted(systems, key=str):
        of_section = files[entry, machine, seed].systems[key]
        label = np.array([labels.get(clip) for clip in of_section.clips], dtype=object)
        values = [set(attribute_values(attributes.get(clip, ""))) for clip in of_section.clips]
        for value in sorted(set().union(*values)):
            has = np.array([value in own for own in values])
            anomalous, normal = has & (label == 1), has & (label == 0)
            of_all = not normal.any()
            normal = label == 0 if of_all else normal
            if anomalous.any() and normal.any():
                members = anomalous | normal
                score = float(auc(anomalous[members], of_section.scores[members])[0])
                part = int(normal.sum()), int(anomalous.sum()), score, bool(of_all)
                found.setdefault((machine, value), []).append(part)
    num_seeds = {m: len({seed for machine, seed, _ in systems if machine == m}) for m, _, _ in systems}
    rows = []
    for (machine, value), parts in sorted(found.items()):
        normals, anomalies, scores, all_normal = zip(*parts, strict=True)
        share, mean = num_seeds[machine], float(np.average(scores, weights=anomalies))
        rows.append(OfValue(machine, value, sum(normals) // share, sum(anomalies) // share, mean, all(all_normal)))
    return rows
