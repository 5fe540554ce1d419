"""Clips of a machine that a seed does not train on, and known anomalies that leave its test to be learned from."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rayasd.arrays import Indices
from rayasd.config import ExposureConfig
from rayasd.errors import UserError
from rayasd.randomness import generator


def held_out(table: pa.Table, machine: str, exposure: ExposureConfig, seed: int) -> NDArray[np.bool_]:
    """Choose the clips of a machine that a seed is not trained on: their scores are honest.

    With ``exposure.hold_out = "fraction"``, ``validation_fraction`` of each section's and domain's training clips: at
    least one of the source domain, of the target domain where that rounds to one. With ``"cross-fit"``, each section's
    and domain's groups are dealt into ``exposure.folds``, and fold ``seed`` mod ``folds`` is held out. A group that has
    clips elsewhere in the machine is where it was first. One group of each section and domain is always trained on. The
    choice depends on seed and machine alone, so that every unit of a seed sees the same.

    Returns (clips,), False for all test clips.
    """
    training = pc.equal(table["split"], "train").to_numpy(zero_copy_only=False)
    in_target = pc.equal(table["domain"], "target").to_numpy(zero_copy_only=False)
    section = np.array(table["section"].to_pylist(), dtype=object)
    group = np.array(pc.fill_null(table["group"], table["clip"]).to_pylist(), dtype=object)
    out: dict[str, bool] = {}
    for name in sorted(set(section[training])):
        for of_target in (False, True):
            members = group[training & (section == name) & (in_target == of_target)]
            groups = list(dict.fromkeys(members))
            place = (machine, name, "target") if of_target else (machine, name)
            if exposure.hold_out == "cross-fit":
                order = generator("cross-fit", *place).permutation(len(groups))
                chosen = order[seed % exposure.folds :: exposure.folds] if len(groups) > 1 else order[:0]
            else:
                order = generator(seed, "validation", *place).permutation(len(groups))
                wanted = round(exposure.validation_fraction * len(members))
                if exposure.validation_fraction > 0 and not of_target:
                    wanted = max(wanted, 1)
                sizes = np.array([(members == each).sum() for each in groups], np.int64)
                chosen = _first(order, sizes, wanted)
            for number, each in enumerate(groups):
                out.setdefault(each, number in chosen)
            if groups and all(out[each] for each in groups):  # held out of another section or domain
                out[groups[0]] = False
    return training & np.array([out.get(each, False) for each in group], bool)


def _first(order: NDArray[np.int64], sizes: NDArray[np.int64], wanted: int) -> NDArray[np.int64]:
    """Take groups in this order until they have so many clips; never all, nor one that would make them exceed half."""
    taken: list[int] = []
    most = max(wanted, int(sizes.sum()) // 2)
    for number in order[:-1]:
        held = sizes[taken].sum() if taken else 0
        if held < wanted and held + sizes[number] <= most:
            taken.append(int(number))
    return np.array(taken, np.int64)


@dataclass(frozen=True)
class SetAside:
    """Rows of a machine's table that leave its test."""

    exposed: Indices  # trained on as pseudo-anomalous clips
    hidden: Indices  # taken for normal training clips
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
