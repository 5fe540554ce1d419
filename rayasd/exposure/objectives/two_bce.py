"""The paper's objective: two binary cross-entropies (Kuroyanagi et al., EUSIPCO 2022)."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rayasd.config import Config
from rayasd.exposure.clips import MachineClips
from rayasd.exposure.objectives import Evaluated, Objective


class TwoBCE(Objective):
    """Whether a clip is of the target machine, and of which of its K sections ("products").

    The machine loss is a binary cross-entropy of a logit of the embedding's mean square, weighted by
    ``exposure.lambda_machine``. The product loss is a multi-label one over K logits, weighted by
    ``exposure.lambda_product``. Targets have the machine target in their first column, then the products'.
    """

    parts = ("machine_loss", "product_loss")
    scopes = ("machine",)
    learns_anomalies = True
    of_target_alone = True

    def __init__(self, config: Config, classes: Sequence[str], widths: Sequence[int]) -> None:
        super().__init__(config, classes, widths)
        self.machine_head = nn.Linear(1, 1)  # its input is the embedding's mean square: a hypersphere criterion
        self.product_head = nn.Linear(sum(widths), len(classes), bias=False)

    @classmethod
    def labels(cls, config: Config, clips: MachineClips, target: str) -> list[str | None]:
        """Name each clip's section, with its cluster where there are any; clips of other machines have no class."""
        if clips.name != target:
            return [None] * clips.table.num_rows
        sections, attributes = (clips.table[name].to_pylist() for name in ("section", "attributes"))
        if not clips.clustered:
            return sections
        return [f"{s}/{a}" if a else s for s, a in zip(sections, attributes, strict=True)]

    def targets(self, classes: Tensor, of_target: Tensor) -> Tensor:
        """Put the machine target before the one-hot products; (N, 1 + K). All zero for pseudo-anomalous clips."""
        machine = of_target.float().unsqueeze(1)
        return torch.cat([machine, super().targets(classes, of_target) * machine], dim=1)

    def machine_logit(self, embedding: Tensor) -> Tensor:
        """Return the (N,) logits of being the target machine's normal sound."""
        logit: Tensor = self.machine_head(embedding.square().mean(dim=1, keepdim=True)).squeeze(1)
        return logit

    def losses(self, embedding: Tensor, targets: Tensor, *, mixed: bool) -> Mapping[str, Tensor]:
        """Compute the weighted sum and both parts."""
        exposure, machine, product = self.config.exposure, targets[:, 0], targets[:, 1:]
        members = product_members(machine, mixed=mixed, rule=exposure.mixup_product_loss)
        of_product = product_loss(self.product_head(embedding), product, members, exposure.product_loss)
        of_machine = F.binary_cross_entropy_with_logits(self.machine_logit(embedding), machine)
        loss = exposure.lambda_machine * of_machine + exposure.lambda_product * of_product
        return {"loss": loss, "machine_loss": of_machine, "product_loss": of_product}

    def outputs(self, embedding: Tensor) -> Mapping[str, Tensor]:
        """Return ``machine_logit`` (N,) and ``product_logits`` (N, K), where their losses have weight."""
        exposure, found = self.config.exposure, {}
        if exposure.lambda_machine:
            found["machine_logit"] = self.machine_logit(embedding)
        if exposure.lambda_product:
            found["product_logits"] = self.product_head(embedding)
        return found

    def evaluate(self, batches: Evaluated) -> dict[str, float | None]:
        """Compute both losses, the AUC of the machine logit and the accuracy of the products."""
        from sklearn.metrics import roc_auc_score  # a second to import, and a sweep only checks networks

        exposure = self.config.exposure
        logits, truth, sums, hits = [], [], [0.0, 0.0], 0
        for embedding, targets in batches:
            machine, product = targets[:, 0], targets[:, 1:]
            of_parts = self.losses(embedding, targets, mixed=False)
            members = machine > 0
            sums[0] += of_parts["machine_loss"].item() * len(embedding)
            sums[1] += of_parts["product_loss"].item() * int(members.sum())
            guess = self.product_head(embedding)[members].argmax(dim=1)
            hits += int((guess == product[members].argmax(dim=1)).sum())
            logits.append(self.machine_logit(embedding))
            truth.append(machine)
        if not logits:
            return {}
        scores, known = torch.cat(logits).cpu(), torch.cat(truth).cpu()
        num_target = int(known.sum())
        of_machine, of_product = sums[0] / len(known), sums[1] / num_target
        return {
            "validation_loss": exposure.lambda_machine * of_machine + exposure.lambda_product * of_product,
            "validation_machine_loss": of_machine,
            "validation_product_loss": of_product,
            "validation_machine_auc": float(roc_auc_score(known, scores)) if num_target < len(known) else None,
            "validation_product_accuracy": hits / num_target,
        }


def product_members(machine: Tensor, *, mixed: bool, rule: str) -> Tensor:
    """Clips (N,) that enter the product loss, by their machine targets (N,).

    Without mixup: those of the target machine. In a mixup step by rule ``target``: those whose mixed machine target is
    above 0; by rule ``all``: every clip.
    """
    return torch.ones_like(machine, dtype=torch.bool) if mixed and rule == "all" else machine > 0


def product_loss(logits: Tensor, targets: Tensor, members: Tensor, kind: str) -> Tensor:
    """Mean product loss of logits (N, K) over the ``members`` (N,), 0 without members.

    ``targets``: (N, K), mixed or one-hot; ``kind``: ``bce``, the mean of K binary cross-entropies; or
    ``cross-entropy`` of a softmax, weighted by the targets.
    """
    if kind == "bce":
        per_clip = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(dim=1)
    else:
        per_clip = F.cross_entropy(logits, targets, reduction="none")
    weight = members.to(per_clip.dtype)
    return (per_clip * weight).sum() / weight.sum().clamp(min=1)
