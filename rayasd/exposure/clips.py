"""The clips that one unit trains on: decoded waveforms of every machine, split into training and validation clips."""

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from rayasd.data.catalog import Catalog
from rayasd.data.waveforms import Waveforms, open_waveforms, scaling
from rayasd.errors import UserError
from rayasd.randomness import generator
from rayasd.unit import UnitSpec

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class MachineClips:
    """One machine's clips. Indices count the machine's rows in the catalog."""

    name: str
    table: pa.Table
    waveforms: Waveforms
    training: Indices
    validation: Indices
    split: NDArray[np.object_]
    """Each clip's part in this unit: train, validation, test; exposed: an anomaly that is trained on; reserved: an
    anomaly that is not used."""
    mean: float
    deviation: float
    """Of the training split's samples, full scale 1."""
    per_batch: int | None = None
    """Clips in each batch; None: an even share among all such."""

    @property
    def sections(self) -> list[str]:
        """Sections that have training clips, sorted: the products of the product head."""
        return sorted(pc.unique(self.table.filter(pc.field("split") == "train")["section"]).to_pylist())

    def products(self) -> Indices:
        """Give each clip's position among ``sections``, -1 for a section without training clips; shape (clips,)."""
        position = {section: k for k, section in enumerate(self.sections)}
        return np.array([position.get(section, -1) for section in self.table["section"].to_pylist()], np.int64)

    def in_target_domain(self, clips: Indices) -> NDArray[np.bool_]:
        """Tell which of these clips are from the target domain."""
        return np.array(self.table["domain"].take(clips).to_pylist(), dtype=object) == "target"


def load_machine(catalog: Catalog, machine: str, spec: UnitSpec) -> MachineClips:
    """Map a machine's waveforms and split its training clips for the unit's seed.

    The split holds out ``validation_fraction`` of each section's source-domain training clips (at least one, and never
    all of them). It depends on seed and machine alone, so that every unit of a seed sees the same. From the unit's own
    machine, anomalous test clips are set aside as ``exposure`` says.

    Raises:
        UserError: the machine has no training clips, or too few anomalous ones to set aside.

    """
    table = catalog.table.filter(pc.field("machine") == machine)
    split = np.array(table["split"].to_pylist(), dtype=object)
    fraction = spec.config.exposure.validation_fraction
    train = np.flatnonzero(split == "train")
    if len(train) == 0:
        raise UserError(f"{machine} has no training clips in {catalog.root}")
    section = np.array(table["section"].to_pylist())
    source = np.array(table["domain"].to_pylist()) != "target"
    if machine == spec.unit.machine:
        _set_aside(split, table, spec)
    for name in sorted(set(section[train])):
        members = train[(section[train] == name) & source[train]]
        wanted = max(1, round(fraction * len(members)))
        count = min(wanted, len(members) - 1) if fraction > 0 else 0
        rng = generator(spec.unit.seed, "validation", machine, name)
        split[rng.permutation(members)[: max(count, 0)]] = "validation"
    mean, deviation = scaling(table.filter(pa.array(np.isin(split, ["train", "validation"]))))
    return MachineClips(
        name=machine,
        table=table,
        waveforms=open_waveforms(catalog, machine, spec.config.data, spec.cache),
        training=np.flatnonzero(split == "train"),
        validation=np.flatnonzero(split == "validation"),
        split=split,
        mean=mean,
        deviation=deviation,
    )


def exposed_anomalies(clips: MachineClips, per_batch: int) -> MachineClips:
    """Return a machine's exposed anomalies as one more source of pseudo-anomalous clips."""
    none = np.empty(0, np.int64)
    return replace(clips, training=np.flatnonzero(clips.split == "exposed"), validation=none, per_batch=per_batch)


def _set_aside(split: NDArray[np.object_], table: pa.Table, spec: UnitSpec) -> None:
    """Take known anomalies out of the test: the first to train on, the next to hide among the normal clips.

    A section's anomalies are drawn from its domains in turn, in one order, so that a smaller number's clips are among a
    larger one's. Sections without a known anomaly are left as they are.
    """
    exposure, machine = spec.config.exposure, spec.unit.machine
    used = exposure.real_anomalies + exposure.contamination
    total = max(used, exposure.reserved_anomalies)
    if total == 0:
        return
    section, domain = (np.array(table[name].to_pylist(), dtype=object) for name in ("section", "domain"))
    anomalous = pc.fill_null(pc.equal(table["label"], 1), False).to_numpy(zero_copy_only=False) & (split == "test")
    if not anomalous.any():
        raise UserError(f"{machine}: exposure asks for {total} anomalies a section, but no test clip is known as one")
    for name in sorted(set(section[anomalous])):
        cells = [np.flatnonzero(anomalous & (section == name) & (domain == d)) for d in sorted(set(domain))]
        cells = [
            generator(exposure.anomaly_seed, "anomalies", machine, name).permutation(cell)
            for cell in cells
            if len(cell)
        ]
        in_turn = [cell[i] for i in range(max(map(len, cells))) for cell in cells if i < len(cell)]
        drawn = in_turn[:total]
        if len(drawn) < total or any(set(cell) <= set(drawn) for cell in cells):
            raise UserError(
                f"{machine} section {name}: setting {total} anomalies aside (exposure.real_anomalies, .contamination, "
                f".reserved_anomalies) leaves none to test on in a domain, of {' + '.join(str(len(c)) for c in cells)}"
            )
        split[drawn] = "reserved"
        split[drawn[: exposure.real_anomalies]] = "exposed"
        hidden = drawn[exposure.real_anomalies : used]
        split[hidden] = "train"
        split[hidden[: round(exposure.validation_fraction * len(hidden))]] = "validation"


def gather(
    clips: MachineClips,
    chosen: Indices,
    starts: Indices,
    length: int,
    out: NDArray[np.int16],
) -> None:
    """Copy one window a clip into ``out`` (clips, length)."""
    for row, (clip, start) in enumerate(zip(chosen.tolist(), starts.tolist(), strict=True)):
        clips.waveforms.window(clip, start, length, out[row])


def standardise(samples: NDArray[np.int16], mean: Tensor, deviation: Tensor, device: torch.device) -> Tensor:
    """Bring int16 windows (N, samples) to the device and z-score them with per-clip mean and deviation (N, 1)."""
    waveforms = torch.from_numpy(samples).to(device, non_blocking=True).float() / 32768.0
    return (waveforms - mean.to(device)) / deviation.to(device)
