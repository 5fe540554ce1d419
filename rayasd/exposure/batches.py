"""Balanced batches: every normal clip of the target machine once an epoch, beside as many pseudo-anomalous ones."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rayasd.arrays import Indices
from rayasd.config import Config
from rayasd.exposure.clips import MachineClips, ResidentClips, fits_on, gather, standardise
from rayasd.exposure.mixup import Targets
from rayasd.randomness import generator


@dataclass(frozen=True)
class Batch:
    """One step's clips: ``members[m]`` are indices into machine m's clips, the target machine first."""

    step: int
    members: tuple[Indices, ...]

    @property
    def num_clips(self) -> int:
        """Size of the batch."""
        return sum(map(len, self.members))


def steps_per_epoch(target: MachineClips, config: Config) -> int:
    """Batches of an epoch."""
    per_batch = config.exposure.batch_size // 2 - config.exposure.target_domain_per_batch
    return max(1, -(-len(_once_an_epoch(target, config)) // per_batch))


def epoch_batches(
    target: MachineClips, others: Sequence[MachineClips], config: Config, seed: int, epoch: int
) -> Iterator[Batch]:
    """Compose an epoch's batches.

    The target machine's training clips are shuffled and dealt into batches whose sizes differ by at most one, so that
    no batch is too small for batch normalisation. Each batch holds as many pseudo-anomalous clips, dealt in turn from
    all other machines; a machine's clips come back only when all of them have been used. Others with ``per_batch`` give
    so many clips to every batch, and the rest is dealt.
    """
    rng = generator(seed, "batches", target.name, epoch)
    once = rng.permutation(_once_an_epoch(target, config))
    num_steps = steps_per_epoch(target, config)
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
    """Turns batches into standardised waveforms and targets on the training device."""

    def __init__(
        self,
        target: MachineClips,
        others: Sequence[MachineClips],
        config: Config,
        device: torch.device,
        *,
        resident: bool | None = None,
    ) -> None:
        self.machines = (target, *others)
        self.device = device
        self.length = config.window_length
        self.products = torch.from_numpy(target.products())
        self.num_products = len(target.sections)
        scales = [(m.mean, m.deviation) for m in self.machines]
        if config.exposure.waveform_scaling == "target":
            scales = [(target.mean, target.deviation)] * len(self.machines)
        self.scales = torch.tensor(scales, dtype=torch.float32)
        if resident is None:
            resident = fits_on(device, self.machines)
        self.resident = [ResidentClips.of(machine, device) for machine in self.machines] if resident else []
        """Samples on the device, where they fit; else each batch's windows are sent there."""

    def load(self, batch: Batch, start: Callable[[Indices], Indices]) -> tuple[Tensor, Targets]:
        """Cut one window a clip; ``start`` maps the largest possible first sample of each clip to the chosen one.

        Returns:
            Waveforms (N, samples) and targets of the batch's clips, the target machine's first.

        """
        return self.waveforms(batch, self.starts(batch, start), np.arange(batch.num_clips)), self.targets(batch)

    def starts(self, batch: Batch, start: Callable[[Indices], Indices]) -> Indices:
        """Choose the first sample of each clip's window, (N,)."""
        slack = np.concatenate(
            [m.waveforms.frames[c] - self.length for m, c in zip(self.machines, batch.members, strict=True)]
        )
        return start(np.maximum(slack, 0))

    def waveforms(self, batch: Batch, starts: Indices, rows: Indices) -> Tensor:
        """Cut the windows of the batch's clips ``rows`` (ascending); ``starts`` (N,) are of all its clips.

        Returns:
            Waveforms (len(rows), samples).

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

    def targets(self, batch: Batch) -> Targets:
        """Give the targets of all the batch's clips."""
        num_normal = len(batch.members[0])
        machine = (torch.arange(batch.num_clips) < num_normal).float()
        product = torch.zeros(batch.num_clips, self.num_products)
        product[torch.arange(num_normal), self.products[torch.from_numpy(batch.members[0])]] = 1.0
        return Targets(machine.to(self.device), product.to(self.device))


def random_starts(rng: np.random.Generator) -> Callable[[Indices], Indices]:
    """Choose every start evenly between 0 and the largest possible one."""
    return lambda slack: rng.integers(0, slack + 1)


def central_starts(slack: Indices) -> Indices:
    """Choose the window in the middle of each clip."""
    return slack // 2


def validation_batches(target: MachineClips, others: Sequence[MachineClips], batch_size: int) -> Iterator[Batch]:
    """Held-out normal clips of the target machine, each with one held-out clip of another machine, evenly from all."""
    pools = [(which, other.validation) for which, other in enumerate(others) if len(other.validation)]
    negatives: list[tuple[int, int]] = []
    for turn in range(len(target.validation) if pools else 0):
        which, pool = pools[turn % len(pools)]
        negatives.append((which, int(pool[turn // len(pools) % len(pool)])))
    half = max(1, batch_size // 2)
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
