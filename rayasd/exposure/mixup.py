"""Mixup of waveforms and targets, and how likely a step mixes over the course of training."""

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rayasd.arrays import Indices


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
