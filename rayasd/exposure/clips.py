"""The clips that one unit trains on: decoded waveforms of every machine, split into training and validation clips."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from rayasd.arrays import Indices
from rayasd.data.catalog import Catalog, check_outlier_exposure, replaced
from rayasd.data.splits import held_out, set_aside
from rayasd.data.waveforms import Waveforms, open_waveforms, scaling
from rayasd.errors import UserError
from rayasd.exposure.transforms import changed
from rayasd.randomness import generator
from rayasd.stages import ALL_MACHINES
from rayasd.unit import Progress, Report, UnitSpec, silent

_MOST_TRANSFORMED = 500  # transformed clips of a machine: 256 MB of windows of 2 s at 16 kHz


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
    anomaly that is not used; noise, clean: a supplemental clip."""
    mean: float
    deviation: float  # mean and deviation of the training split's samples, full scale 1
    per_batch: int | None = None  # clips in each batch; None: an even share among all such
    clustered: bool = False  # whether the attributes of its training clips are clusters

    def scale(self, scaling: str) -> tuple[float, float]:
        """Return the mean and deviation by which an encoder with this ``scaling`` wants waveforms standardised."""
        return (self.mean, self.deviation) if scaling == "machine" else (0.0, 1.0)

    def in_target_domain(self, clips: Indices) -> NDArray[np.bool_]:
        """Tell which of these clips are from the target domain."""
        return np.array(self.table["domain"].take(clips).to_pylist(), dtype=object) == "target"


def load_machine(catalog: Catalog, machine: str, spec: UnitSpec, report: Report = silent) -> MachineClips:
    """Map a machine's waveforms and split its training clips for the unit's seed.

    Which clips are held out is ``rayasd.data.splits``'s choice. From the unit's own machine, anomalous test clips are
    set aside as ``exposure`` says.

    ``report`` gets signs of life while clips are decoded, where this host has not decoded them yet.

    Raises UserError: the machine has no training clips, or too few anomalous ones to set aside.
    """
    table = catalog.of(machine)
    split = np.array(table["split"].to_pylist(), dtype=object)
    exposure = spec.config.exposure
    if not (split == "train").any():
        raise UserError(f"{machine} has no training clips in {catalog.root}")
    split[held_out(table, machine, exposure, spec.unit.seed)] = "validation"
    if spec.unit.machine in (machine, ALL_MACHINES):
        aside, section = set_aside(table, machine, exposure), np.array(table["section"].to_pylist())
        split[aside.exposed], split[aside.reserved], split[aside.hidden] = "exposed", "reserved", "train"
        for name in sorted(set(section[aside.hidden])):
            members = aside.hidden[section[aside.hidden] == name]
            split[members[: round(exposure.held_out_share * len(members))]] = "validation"
    mean, deviation = scaling(table.filter(pa.array(np.isin(split, ["train", "validation"]))))
    return MachineClips(
        name=machine,
        table=table,
        waveforms=open_waveforms(catalog, machine, spec.config.data, spec.cache, lambda: report(Progress(0, 0))),
        training=np.flatnonzero(split == "train"),
        validation=np.flatnonzero(split == "validation"),
        split=split,
        mean=mean,
        deviation=deviation,
    )


def transformed(clips: MachineClips, window: int, seed: int) -> MachineClips:
    """Make a source of pseudo-anomalous clips of a machine's own training and held-out ones, see ``changed``."""
    rng = generator(seed, "transforms", clips.name)
    share = min(1.0, _MOST_TRANSFORMED / (len(clips.training) + len(clips.validation)))
    kept = [rng.choice(part, int(np.ceil(share * len(part))), False) for part in (clips.training, clips.validation)]
    chosen = np.concatenate(kept)
    return _source(clips, "transformed", chosen, changed(clips.waveforms, chosen, window, rng), len(kept[0]))


def supplemental(clips: MachineClips, kinds: Sequence[str]) -> list[MachineClips]:
    """Make a source of pseudo-anomalous clips of a machine's supplemental ones, if it has any."""
    chosen = np.flatnonzero(np.isin(clips.split, kinds))
    waveforms = replace(clips.waveforms, offsets=clips.waveforms.offsets[chosen], frames=clips.waveforms.frames[chosen])
    return [_source(clips, "supplemental", chosen, waveforms, len(chosen))] if len(chosen) else []


def _source(clips: MachineClips, what: str, chosen: Indices, waveforms: Waveforms, num_training: int) -> MachineClips:
    """Make a machine of its own of some clips of another, the first ones for training."""
    name, count = f"{clips.name} {what}", len(chosen)
    return replace(
        clips,
        name=name,
        table=replaced(clips.table.take(chosen), {"machine": [name] * count, "split": ["train"] * count}),
        waveforms=waveforms,
        training=np.arange(num_training),
        validation=np.arange(num_training, count),
        split=np.where(np.arange(count) < num_training, "train", "validation").astype(object),
    )


def load_training_machines(catalog: Catalog, spec: UnitSpec, report: Report = silent) -> list[MachineClips]:
    """Load the machines that a unit trains on.

    For one machine type: it comes first, then what ``exposure.pseudo_anomalies`` names, then its own supplemental clips
    and exposed anomalies. For all machine types: all that are present; where their clips are of one class, these clips
    transformed, too; then supplemental clips.

    Raises UserError: there is no other machine with training clips, and nothing may stand in.
    """
    name, exposure, window = spec.unit.machine, spec.config.exposure, spec.config.window_length
    kind, seed = exposure.pseudo_anomalies, spec.unit.seed
    if name == ALL_MACHINES:
        machines = [load_machine(catalog, each, spec, report) for each in sorted(catalog.trained)]
        rows = catalog.table.filter(catalog.is_train).select(exposure.classes).to_pylist()
        alone = kind == "auto" and not exposure.clusters and all(row == rows[0] for row in rows)
        if alone or kind == "transforms":
            machines += [transformed(machine, window, seed) for machine in machines]
        return [*machines, *(more for m in machines for more in supplemental(m, exposure.supplemental_anomalies))]
    check_outlier_exposure(catalog, [name], kind)
    target = load_machine(catalog, name, spec, report)
    others = [load_machine(catalog, other, spec, report) for other in sorted(catalog.trained - {name})]
    if not others or kind == "transforms":
        others = [transformed(target, window, seed)]
    others += supplemental(target, exposure.supplemental_anomalies)
    if len(exposed := np.flatnonzero(target.split == "exposed")):
        none = np.empty(0, np.int64)
        more = replace(target, training=exposed, validation=none, per_batch=exposure.real_anomalies_per_batch)
        return [target, *others, more]
    return [target, *others]


def gather(clips: MachineClips, chosen: Indices, starts: Indices, length: int, out: NDArray[np.int16]) -> None:
    """Copy one window a clip into ``out`` (clips, length)."""
    for row, (clip, start) in enumerate(zip(chosen.tolist(), starts.tolist(), strict=True)):
        clips.waveforms.window(clip, start, length, out[row])


class ResidentClips:
    """One machine's ``Waveforms`` in the memory of the device that trains on them."""

    def __init__(self, clips: MachineClips, device: torch.device) -> None:
        parts = (clips.waveforms.samples, clips.waveforms.offsets, clips.waveforms.frames)
        self.samples, self.offsets, self.frames = (torch.tensor(part, device=device) for part in parts)

    def windows(self, chosen: Indices, starts: Indices, length: int) -> Tensor:
        """Cut one window (n, length) a clip, as ``Waveforms.window`` does."""
        clip, start = (torch.from_numpy(part).to(self.samples.device) for part in (chosen, starts))
        place = (start[:, None] + torch.arange(length, device=clip.device)) % self.frames[clip][:, None]
        return self.samples[self.offsets[clip][:, None] + place]


def fits_on(device: torch.device, machines: Sequence[MachineClips]) -> bool:
    """Whether all their samples fit into a quarter of a GPU's free memory; never so on CPUs, which map them anyway."""
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return sum(clips.waveforms.samples.nbytes for clips in machines) < free / 4


def standardise(samples: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """Z-score int16 windows (N, samples) with per-clip mean and deviation (N, 1), on the device that holds them."""
    waveforms = samples.float() / 32768.0
    return (waveforms - mean.to(samples.device)) / deviation.to(samples.device)
