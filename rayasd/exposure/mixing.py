"""What training clips are mixed with: each other, waveforms and targets alike, and noise."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rayasd.arrays import Indices
from rayasd.exposure.clips import MachineClips
from rayasd.randomness import generator

_SNR_DB = (0.0, 20.0)  # of noise


def mixup_probability(schedule: str, progress: float) -> float:
    """Probability that a step mixes, at ``progress`` 0 (start) to 1 (end of training).

    ``cosine-down`` is cos(pi/2 t), from 1 to 0. ``cosine-up`` is (1 - cos(2 pi t)) / 2 until half-way, then 1. With
    ``half``, every step mixes half of its clips.
    """
    if schedule == "cosine-down":
        return max(0.0, math.cos(math.pi / 2 * progress))
    if schedule == "cosine-up":
        return 1.0 if progress >= 0.5 else (1.0 - math.cos(2 * math.pi * progress)) / 2
    return {"always": 1.0, "half": 1.0, "never": 0.0}[schedule]


class Mix(NamedTuple):
    """Partners and weights of a mixup of N clips."""

    partner: Indices  # (N,), a permutation of the batch's clips
    weight: NDArray[np.float32]  # (N,), of the clip itself; its partner has the rest


def draw_mix(num_clips: int, alpha: float, rng: np.random.Generator, *, share: float = 1.0) -> Mix:
    """Draw partners from the whole batch and weights from Beta(alpha, alpha), one per clip.

    ``share``: probability that a clip is mixed at all.
    """
    partner = rng.permutation(num_clips)
    weight = rng.beta(alpha, alpha, num_clips).astype(np.float32)
    return Mix(partner, weight if share == 1.0 else np.where(rng.random(num_clips) < share, weight, np.float32(1.0)))


def mixup(values: Tensor, held: Indices, mix: Mix, rows: Indices) -> Tensor:
    """Mix the batch's clips ``rows`` with their partners.

    Args:
        values: (len(held), …), waveforms or targets of the clips ``held``.
        held: clips of the batch, ascending: all of ``rows`` and of their partners are among them.
        mix: of the whole batch.
        rows: clips of the batch.

    Returns (len(rows), …).
    """
    own, partner = (
        torch.from_numpy(np.searchsorted(held, clips)).to(values.device) for clips in (rows, mix.partner[rows])
    )
    weight = torch.from_numpy(mix.weight[rows]).to(values.device).view(-1, *[1] * (values.dim() - 1))
    return weight * values[own] + (1 - weight) * values[partner]


class Noise:
    """Clips of noise alone, of all machines, and the probability that a training clip gets one of them."""

    def __init__(self, machines: Sequence[MachineClips], probability: float) -> None:
        by_name = {machine.name: machine for machine in machines}  # a machine's exposed anomalies have its name
        self.clips = [(m.waveforms, int(clip)) for m in by_name.values() for clip in np.flatnonzero(m.split == "noise")]
        self.probability = probability if self.clips else 0.0

    def mixed(self, waveforms: Tensor, num_clips: int, rows: Indices, key: tuple[int | str, ...]) -> Tensor:
        """Mix noise into the clips ``rows`` of a batch of ``num_clips``.

        It is drawn for the whole batch from ``key``, so that all ranks draw the same.

        Takes and returns waveforms (len(rows), samples).
        """
        if not self.probability:
            return waveforms
        rng = generator(*key, "noise")
        gets = rng.random(num_clips) < self.probability
        which, place = rng.integers(len(self.clips), size=num_clips), rng.random(num_clips)
        snr = rng.uniform(*_SNR_DB, num_clips)
        length = waveforms.shape[1]
        noise = np.zeros((len(rows), length), np.float32)
        window = np.empty(length, np.int16)
        for row, clip in enumerate(rows):
            if gets[clip]:
                source, number = self.clips[which[clip]]
                slack = max(0, int(source.frames[number]) - length)
                source.window(number, round(place[clip] * slack), length, window)
                centred = window - window.mean(dtype=np.float64)
                noise[row] = centred / max(float(centred.std()), 1.0) * 10 ** (-snr[clip] / 20)
        level = waveforms.square().mean(dim=1, keepdim=True).sqrt()
        return waveforms + level * torch.from_numpy(noise).to(waveforms.device)
