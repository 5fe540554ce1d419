"""Mixup of waveforms and of both targets, and how likely a step mixes over the course of training."""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Targets(NamedTuple):
    """Targets of N clips. Pseudo-anomalous clips: machine 0 and product all zero."""

    machine: Tensor
    """(N,), 1 for the target machine."""
    product: Tensor
    """(N, K), one-hot."""


def mixup_probability(schedule: str, progress: float) -> float:
    """Probability that a step mixes, at ``progress`` 0 (start) to 1 (end of training).

    ``cosine-down`` is cos(pi/2 t), from 1 to 0. ``cosine-up`` is (1 - cos(2 pi t)) / 2 until half-way, then 1.
    """
    if schedule == "cosine-down":
        return max(0.0, math.cos(math.pi / 2 * progress))
    if schedule == "cosine-up":
        return 1.0 if progress >= 0.5 else (1.0 - math.cos(2 * math.pi * progress)) / 2
    return {"always": 1.0, "never": 0.0}[schedule]


def mixup(waveforms: Tensor, targets: Targets, alpha: float, rng: np.random.Generator) -> tuple[Tensor, Targets]:
    """Mix each clip with a partner drawn from the whole batch, weights from Beta(alpha, alpha), one a clip.

    Args:
        waveforms: (N, samples).
        targets: of the same N clips, mixed with the same weights.
        alpha: both parameters of the Beta distribution.
        rng: source of weights and partners.

    """
    num_clips = len(waveforms)
    partner = torch.from_numpy(rng.permutation(num_clips)).to(waveforms.device)
    weight = torch.from_numpy(rng.beta(alpha, alpha, num_clips).astype(np.float32)).to(waveforms.device)

    def mix(values: Tensor) -> Tensor:
        w = weight.view(-1, *[1] * (values.dim() - 1))
        return w * values + (1 - w) * values[partner]

    return mix(waveforms), Targets(mix(targets.machine), mix(targets.product))
