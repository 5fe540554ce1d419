"""Known anomalies that leave a machine's test: to be trained on, or hidden among its normal training clips."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayasd.arrays import Indices
from rayasd.config import ExposureConfig
from rayasd.errors import UserError
from rayasd.randomness import generator


@dataclass(frozen=True)
class SetAside:
    """Rows of a machine's table that leave its test."""

    exposed: Indices  # to be trained on as pseudo-anomalous clips
    hidden: Indices  # to be taken for normal training clips
    reserved: Indices  # not used at all


def set_aside(table: pa.Table, machine: str, exposure: ExposureConfig) -> SetAside:
    """Draw the anomalies that leave the test of a machine (``table``: its clips in the catalog).

    They are drawn from each section's domains in turn, in one order, so that a smaller number's clips are among a
    larger one's. Sections without training clips, or without a known anomaly, are left as they are.

    Raises UserError: no anomaly is known, or a domain of a section would have none left to test on.
    """
    total = exposure.anomalies_aside
    columns = {name: np.array(table[name].to_pylist(), dtype=object) for name in ("section", "domain", "split")}
    trained = set(columns["section"][columns["split"] == "train"])
    anomalous = pc.fill_null(pc.equal(table["label"], 1), False).to_numpy(zero_copy_only=False)
    known = anomalous & (columns["split"] == "test") & np.isin(columns["section"], list(trained))
    if total and not known.any():
        raise UserError(f"{machine}: exposure asks for {total} anomalies a section, but no test clip is known as one")
    exposed, hidden, reserved = [], [], []
    for section in sorted(set(columns["section"][known])) if total else []:
        of_section = known & (columns["section"] == section)
        cells = [np.flatnonzero(of_section & (columns["domain"] == d)) for d in sorted(set(columns["domain"]))]
        rng = generator(exposure.anomaly_seed, "anomalies", machine, section)
        shuffled = [rng.permutation(cell).tolist() for cell in cells if len(cell)]
        in_turn = [cell[i] for i in range(max(map(len, shuffled))) for cell in shuffled if i < len(cell)]
        drawn = in_turn[:total]
        if len(drawn) < total or any(set(cell) <= set(drawn) for cell in shuffled):
            there = " + ".join(str(len(cell)) for cell in shuffled)
            raise UserError(
                f"{machine} section {section}: setting {total} anomalies aside (exposure.real_anomalies, "
                f".contamination, .reserved_anomalies) leaves none to test on in a domain, of {there}"
            )
        used = exposure.real_anomalies + exposure.contamination
        exposed += drawn[: exposure.real_anomalies]
        hidden += drawn[exposure.real_anomalies : used]
        reserved += drawn[used:]
    return SetAside(*(np.array(rows, np.int64) for rows in (exposed, hidden, reserved)))
