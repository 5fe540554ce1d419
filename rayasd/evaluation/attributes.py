"""AUC by attribute of the clips, such as a speed, a load or a kind of fault."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayasd.data.naming import attribute_values
from rayasd.evaluation.cells import Labels
from rayasd.evaluation.metrics import auc
from rayasd.evaluation.scores import Key, Scored, by_name


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
        label = np.array([-1 if labels.get(clip) is None else labels[clip] for clip in of_section.clips])
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
