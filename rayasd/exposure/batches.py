"""The clips of each training step, and their windows on the training device."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rayasd.arrays import Indices
from rayasd.config import Config
from rayasd.exposure.clips import MachineClips, ResidentClips, fits_on, gather, standardise
from rayasd.randomness import generator


@dataclass(frozen=True)
class Batch:
    """One step's clips: ``members[m]`` are indices into the clips of the m-th machine."""

    step: int
    members: tuple[Indices, ...]

    @property
    def num_clips(self) -> int:
        """Size of the batch."""
        return sum(map(len, self.members))


def steps_per_epoch(machines: Sequence[MachineClips], config: Config) -> int:
    """Batches of an epoch, by ``exposure.scope``."""
    exposure = config.exposure
    if exposure.scope == "all":
        count = sum(len(machine.training) for machine in machines)
        return max(1, min(-(-count // exposure.batch_size), count // 2))  # batch norms need two clips
    per_batch = exposure.batch_size // 2 - exposure.target_domain_per_batch
    return max(1, -(-len(_once_an_epoch(machines[0], config)) // per_batch))


def shuffled_batches(machines: Sequence[MachineClips], config: Config, seed: int, epoch: int) -> Iterator[Batch]:
    """Compose an epoch's batches of all machines' training clips, each once, shuffled; sizes differ by at most one."""
    which = np.repeat(np.arange(len(machines)), [len(machine.training) for machine in machines])
    clips = np.concatenate([machine.training for machine in machines])
    order = generator(seed, "shuffled", epoch).permutation(len(clips))
    for step, chosen in enumerate(np.array_split(order, steps_per_epoch(machines, config))):
        yield Batch(step, tuple(clips[chosen[which[chosen] == m]] for m in range(len(machines))))


def balanced_batches(machines: Sequence[MachineClips], config: Config, seed: int, epoch: int) -> Iterator[Batch]:
    """Compose an epoch's batches of clips of the first machine, the target, and as many of the others.

    The target machine's training clips are shuffled and dealt into batches whose sizes differ by at most one, so that
    no batch is too small for batch normalisation. Each batch holds as many pseudo-anomalous clips, dealt in turn from
    all other machines; a machine's clips come back only when all of them have been used. Others with ``per_batch`` give
    so many clips to every batch, and the rest is dealt.
    """
    target, *others = machines
    rng = generator(seed, "batches", target.name, epoch)
    once = rng.permutation(_once_an_epoch(target, config))
    num_steps = steps_per_epoch(machines, config)
    extra = config.exposure.target_domain_per_batch
    target_domain = target.training[target.in_target_domain(target.training)] if extra else once[:0]
    dealer = _deal(target_domain, rng) if len(target_domain) else None
    own = generator(seed, "exposed", target.name, epoch)  # the other machines' clips stay the same without them
    pseudo = [_deal(other.training, rng if other.per_batch is None else own) for other in others]
    fixed = [which for which, other in enumerate(others) if other.per_batch is not None]
    even = [which for which in range(len(others)) if which not in fixed]
    turn = 0
    for step, normal in enumerate(np.array_split(once, num_steps)):
        if dealer is not None:
            normal = np.concatenate([normal, [next(dealer) for _ in range(extra)]])
        members: list[list[int]] = [[] for _ in others]
        for which in fixed:
            members[which] += [next(pseudo[which]) for _ in range(min(others[which].per_batch or 0, len(normal)))]
        for _ in range(len(normal) - sum(map(len, members))):
            which = even[turn % len(even)]
            members[which].append(next(pseudo[which]))
            turn += 1
        yield Batch(step, (normal, *(np.array(m, np.int64) for m in members)))


class BatchLoader:
    """Turns batches into waveforms and classes on the training device.

    ``classes``: class of each clip of each machine; -1: none. ``scaling``: see ``Encoder.scaling``. ``resident``: keep
    all samples on the device; by default, where they fit.
    """

    def __init__(
        self, machines: Sequence[MachineClips], classes: Sequence[Indices], config: Config, device: torch.device,
        scaling: str = "machine", *, resident: bool | None = None,
    ) -> None:  # fmt: skip
        self.machines, self.classes, self.device = tuple(machines), tuple(classes), device
        self.length = config.window_length
        scales = [machine.scale(scaling) for machine in self.machines]
        if config.exposure.waveform_scaling == "target":
            scales = [scales[0]] * len(scales)
        self.scales = torch.tensor(scales, dtype=torch.float32)
        if resident is None:
            resident = fits_on(device, self.machines)
        self.resident = [ResidentClips(machine, device) for machine in self.machines] if resident else []

    def slack(self, batch: Batch) -> Indices:
        """Return the last sample at which each clip's window can start, (N,)."""
        frames = [m.waveforms.frames[clips] for m, clips in zip(self.machines, batch.members, strict=True)]
        return np.maximum(np.concatenate(frames) - self.length, 0)

    def waveforms(self, batch: Batch, starts: Indices, rows: Indices) -> Tensor:
        """Cut the windows of the batch's clips ``rows`` (ascending); ``starts`` (N,) are of all its clips.

        Returns waveforms (len(rows), samples).
        """
        clips = np.concatenate(batch.members)
        ends = np.cumsum([0, *map(len, batch.members)])
        bounds = np.searchsorted(rows, ends)
        parts = [rows[begin:end] for begin, end in pairwise(bounds)]
        if self.resident:
            samples = torch.cat(
                [
                    resident.windows(clips[part], starts[part], self.length)
                    for resident, part in zip(self.resident, parts, strict=True)
                ]
            )
        else:
            on_host = np.empty((len(rows), self.length), np.int16)
            for machine, part, begin, end in zip(self.machines, parts, bounds[:-1], bounds[1:], strict=True):
                gather(machine, clips[part], starts[part], self.length, on_host[begin:end])
            samples = torch.from_numpy(on_host).to(self.device)
        which = np.repeat(np.arange(len(self.machines)), np.diff(bounds))
        mean, deviation = self.scales[torch.from_numpy(which)].split(1, dim=1)
        return standardise(samples, mean, deviation)

    def classes_of(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the class of each of the batch's clips, (N,), and whether it is of the first machine, (N,)."""
        chosen = np.concatenate([of[clips] for of, clips in zip(self.classes, batch.members, strict=True)])
        of_first = torch.arange(batch.num_clips) < len(batch.members[0])
        return torch.from_numpy(chosen).to(self.device), of_first.to(self.device)


def validation_batches(machines: Sequence[MachineClips], config: Config) -> Iterator[Batch]:
    """Compose batches of held-out clips.

    With scope ``machine``, each of the target machine with one of another machine, evenly from all.
    """
    if config.exposure.scope == "all":
        for m, machine in enumerate(machines):
            for begin in range(0, len(machine.validation), config.exposure.batch_size):
                chosen = machine.validation[begin : begin + config.exposure.batch_size]
                none = chosen[:0]
                yield Batch(0, tuple(chosen if m == own else none for own in range(len(machines))))
        return
    target, *others = machines
    pools = [(which, other.validation) for which, other in enumerate(others) if len(other.validation)]
    negatives: list[tuple[int, int]] = []
    for turn in range(len(target.validation) if pools else 0):
        which, pool = pools[turn % len(pools)]
        negatives.append((which, int(pool[turn // len(pools) % len(pool)])))
    half = max(1, config.exposure.batch_size // 2)
    for step, begin in enumerate(range(0, len(target.validation), half)):
        span = negatives[begin : begin + half]
        members = [np.array([c for w, c in span if w == which], np.int64) for which in range(len(others))]
        yield Batch(step, (target.validation[begin : begin + half], *members))


def _once_an_epoch(target: MachineClips, config: Config) -> Indices:
    if config.exposure.target_domain_per_batch == 0:
        return target.training
    return target.training[~target.in_target_domain(target.training)]


def _deal(clips: NDArray[np.int64], rng: np.random.Generator) -> Iterator[int]:
    while True:
        yield from rng.permutation(clips).tolist()
