"""Training clips that a seed leaves out of its extractor's training: groups of clips (``data.groups``) as a whole."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rayasd.config import ExposureConfig
from rayasd.randomness import generator


def held_out(table: pa.Table, machine: str, exposure: ExposureConfig, seed: int) -> NDArray[np.bool_]:
    """Choose the clips of a machine that a seed is not trained on, and its detectors' scores are honest for.

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
    """Take groups in this order until they have so many clips; not the last one, nor one that would take the most."""
    taken: list[int] = []
    most = max(wanted, int(sizes.sum()) // 2)
    for number in order[:-1]:
        held = sizes[taken].sum() if taken else 0
        if held < wanted and held + sizes[number] <= most:
            taken.append(int(number))
    return np.array(taken, np.int64)
