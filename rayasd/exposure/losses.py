"""The two losses of outlier exposure (Kuroyanagi et al., EUSIPCO 2022), and a place for others.

A machine loss maps ``(output, targets)``, a product loss ``(output, targets, members)`` to a scalar; ``members`` (N,)
are the clips that enter. ``exposure.machine_loss`` and ``exposure.product_loss`` name one of these or an import path.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from rayasd.config import ExposureConfig
from rayasd.exposure.mixup import Targets
from rayasd.exposure.network import Output
from rayasd.registry import find

MachineLoss = Callable[[Output, Targets], Tensor]
ProductLoss = Callable[[Output, Targets, Tensor], Tensor]
Losses = tuple[MachineLoss, ProductLoss]


def machine_bce(output: Output, targets: Targets) -> Tensor:
    """Is it the target machine at all? Mean binary cross-entropy over the N clips."""
    return F.binary_cross_entropy_with_logits(output.machine_logit, targets.machine)


def product_bce(output: Output, targets: Targets, members: Tensor) -> Tensor:
    """Which section of the target machine is it? Mean multi-label BCE over the members' K logits; 0 without members."""
    terms = F.binary_cross_entropy_with_logits(output.product_logits, targets.product, reduction="none")
    return _mean(terms.mean(dim=1), members)


def product_cross_entropy(output: Output, targets: Targets, members: Tensor) -> Tensor:
    """Which section is it, one of K? Mean softmax cross-entropy over the members, weighted by their product targets."""
    per_clip = -(targets.product * F.log_softmax(output.product_logits, dim=1)).sum(dim=1)
    return _mean(per_clip, members)


MACHINE_LOSSES: dict[str, MachineLoss] = {"bce": machine_bce}
PRODUCT_LOSSES: dict[str, ProductLoss] = {"bce": product_bce, "cross-entropy": product_cross_entropy}


def find_losses(exposure: ExposureConfig) -> Losses:
    """Look up the configured machine loss and product loss.

    Raises:
        UserError: there is none of this name.

    """
    of_machine: MachineLoss = find("exposure.machine_loss", exposure.machine_loss, MACHINE_LOSSES)
    of_product: ProductLoss = find("exposure.product_loss", exposure.product_loss, PRODUCT_LOSSES)
    return of_machine, of_product


def product_members(targets: Targets, *, mixed: bool, rule: str) -> Tensor:
    """Clips that enter the product loss.

    Without mixup: those of the target machine. In a mixup step by rule ``target``: those whose mixed machine target is
    above 0; by rule ``all``: every clip.
    """
    if mixed and rule == "all":
        return torch.ones_like(targets.machine, dtype=torch.bool)
    return targets.machine > 0


def _mean(per_clip: Tensor, members: Tensor) -> Tensor:
    weight = members.to(per_clip.dtype)
    return (per_clip * weight).sum() / weight.sum().clamp(min=1)
