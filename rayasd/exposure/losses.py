"""The two binary cross-entropies of outlier exposure (Kuroyanagi et al., EUSIPCO 2022)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from rayasd.exposure.mixup import Targets


def machine_loss(machine_logit: Tensor, targets: Targets) -> Tensor:
    """Is it the target machine at all? Mean BCE over the N clips of logits (N,)."""
    return F.binary_cross_entropy_with_logits(machine_logit, targets.machine)


def product_loss(product_logits: Tensor, targets: Targets, members: Tensor) -> Tensor:
    """Which section of the target machine is it? Mean multi-label BCE over the members' K logits.

    Args:
        product_logits: (N, K).
        targets: product targets (N, K).
        members: (N,) boolean, the clips that enter; the loss is 0 where there are none.

    """
    per_clip = F.binary_cross_entropy_with_logits(product_logits, targets.product, reduction="none").mean(dim=1)
    weight = members.to(per_clip.dtype)
    return (per_clip * weight).sum() / weight.sum().clamp(min=1)


def product_members(targets: Targets, *, mixed: bool, rule: str) -> Tensor:
    """Clips that enter the product loss.

    Without mixup: those of the target machine. In a mixup step by rule ``target``: those whose mixed machine target is
    above 0; by rule ``all``: every clip.
    """
    if mixed and rule == "all":
        return torch.ones_like(targets.machine, dtype=torch.bool)
    return targets.machine > 0
