"""The clips that one unit trains on: decoded waveforms of every machine, split into training and validation clips."""

from dataclasses import dataclass

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
    mean: float
    deviation: float
    """Of the training split's samples, full scale 1."""

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
    all of them). It depends on seed and machine alone, so that every unit of a seed sees the same.

    Raises:
        UserError: the machine has no training clips.

    """
    table = catalog.table.filter(pc.field("machine") == machine)
    train = np.flatnonzero(pc.equal(table["split"], "train").to_numpy())
    if len(train) == 0:
        raise UserError(f"{machine} has no training clips in {catalog.root}")
    section = np.array(table["section"].to_pylist())
    source = np.array(table["domain"].to_pylist()) != "target"
    held_out: list[int] = []
    for name in sorted(set(section[train])):
        members = train[(section[train] == name) & source[train]]
        wanted = max(1, round(spec.config.exposure.validation_fraction * len(members)))
        count = min(wanted, len(members) - 1) if spec.config.exposure.validation_fraction > 0 else 0
        rng = generator(spec.unit.seed, "validation", machine, name)
        held_out += rng.permutation(members)[: max(count, 0)].tolist()
    validation = np.array(sorted(held_out), np.int64)
    mean, deviation = scaling(table.take(train))
    return MachineClips(
        name=machine,
        table=table,
        waveforms=open_waveforms(catalog, machine, spec.config.data, spec.cache),
        training=np.setdiff1d(train, validation),
        validation=validation,
        mean=mean,
        deviation=deviation,
    )


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
