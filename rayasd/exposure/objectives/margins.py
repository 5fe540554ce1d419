"""Losses that tell classes apart by angles to their centres, for embeddings that nearest neighbours judge later.

Each is made for C classes and embeddings of branches of some widths, which add up to D, and is a module
``(embedding (N, D), targets (N, C)) -> scalar``. Targets are soft labels: the classes of a mixed clip
share 1. All is computed in the module's own precision whatever the autocast. A module for fewer than two classes raises
``UserError``.
"""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rayasd.errors import UserError


class ClassLoss(nn.Module):
    """Mean over clips of the cross-entropy between soft labels and the softmax of ``logits``."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        if num_classes < 2:
            raise UserError(f"{type(self).__name__} needs at least two classes, not {num_classes}")
        self.num_classes = num_classes

    def logits(self, embedding: Tensor) -> Tensor:
        """Rate the classes of embeddings (N, D): (N, C)."""
        raise NotImplementedError

    def forward(self, embedding: Tensor, targets: Tensor) -> Tensor:
        """Compute the mean loss of N clips."""
        return F.cross_entropy(self.logits(embedding), targets, reduction="none").mean()


class CrossEntropy(ClassLoss):
    """Softmax of a linear layer with biases: no angles."""

    def __init__(self, num_classes: int, widths: Sequence[int]) -> None:
        super().__init__(num_classes)
        self.linear = nn.Linear(sum(widths), num_classes)

    def logits(self, embedding: Tensor) -> Tensor:
        with torch.autocast(embedding.device.type, enabled=False):
            return self.linear(embedding.to(self.linear.weight.dtype))


class _Angular(ClassLoss):
    """Softmax of scaled cosines to the columns of C classes, the same number of columns for each.

    The probability of a class is the sum of those of its columns, computed by logsumexp.
    """

    scale: Tensor  # a buffer: s of the formulas
    others_only: ClassVar[bool] = True  # whether B of the adaptive scale leaves out the classes that share a clip
    vectors: Tensor  # (columns, D), a parameter or a buffer; their length does not matter

    def __init__(self, num_classes: int, vectors: Tensor, *, columns: int, trainable: bool, adaptive: bool) -> None:
        super().__init__(num_classes)
        self.adaptive = adaptive
        self.register_buffer("scale", torch.tensor(_fixed_scale(columns)))
        if trainable:
            self.vectors = nn.Parameter(vectors)
        else:
            self.register_buffer("vectors", vectors)

    def cosines(self, embedding: Tensor) -> Tensor:
        """Compute the cosines between embeddings (N, D) and columns: (N, columns), class by class."""
        with torch.autocast(embedding.device.type, enabled=False):
            unit = F.normalize(embedding.to(self.vectors.dtype), dim=1)
            return self._cosines(unit, F.normalize(self.vectors, dim=1))

    def logits(self, embedding: Tensor) -> Tensor:
        return self._logits(self.cosines(embedding))

    def forward(self, embedding: Tensor, targets: Tensor) -> Tensor:
        """Compute the mean loss of N clips; in training mode, an adaptive scale is adapted to them first."""
        cosines = self.cosines(embedding)
        if self.adaptive and self.training:
            self._adapt(cosines, targets)
        return F.cross_entropy(self._logits(cosines), targets, reduction="none").mean()

    def _cosines(self, unit: Tensor, vectors: Tensor) -> Tensor:
        return unit @ vectors.T

    def _logits(self, cosines: Tensor) -> Tensor:
        # columns are stored class by class
        return (self.scale * cosines).unflatten(1, (self.num_classes, -1)).logsumexp(dim=2)

    @torch.no_grad()
    def _adapt(self, cosines: Tensor, targets: Tensor) -> None:
        """Set s to ln B / cos(min(π/4, θ)), as AdaCos does.

        B is the mean over clips of the sum of exp(s cos) over columns: those of classes without a share in the clip,
        or all of them (``others_only``). θ is the median over clips of the own angle: Σ_c y_c θ_c times the number of
        classes that share the clip, where θ_c adds up the angles to all columns of class c, as Wilkinghoff's code does
        (with many columns it is nearly always above π/4).
        """
        angles = cosines.clamp(-1, 1).acos().unflatten(1, (self.num_classes, -1)).sum(dim=2)
        own = (targets * angles).sum(dim=1) * (targets > 0).sum(dim=1)
        scaled = self.scale * cosines
        if self.others_only:
            scaled = scaled.masked_fill(targets > 0, -math.inf)
        log_b = scaled.flatten().logsumexp(dim=0) - math.log(len(cosines))
        scale = (log_b / own.median().clamp(max=math.pi / 4).cos()).clamp(min=_fixed_scale(2))
        # a new tensor: the graph of an earlier step may hold the old one; no other class in the batch: as before
        self.scale = torch.where(log_b.isfinite(), scale, self.scale)


class AdaCos(_Angular):
    """Softmax of s·cos θ, θ the angle to one trainable centre for each class (Zhang et al., CVPR 2019).

    The scale s is √2 ln(C−1), with ``adaptive`` at first only: see ``_adapt``. It is never below √2 ln 2: the formula
    gives 0 for two classes, with which nothing could be learned.
    """

    def __init__(self, num_classes: int, widths: Sequence[int], *, adaptive: bool = False) -> None:
        centres = _centres(num_classes, sum(widths))
        super().__init__(num_classes, centres, columns=num_classes, trainable=True, adaptive=adaptive)


class SubClusterAdaCos(_Angular):
    """AdaCos with several centres for each class, whose probabilities are added (Wilkinghoff, IJCNN 2021).

    The scale s is √2 ln(C·S−1) for S sub-clusters, with ``adaptive`` at first only. Centres that are not ``trainable``
    keep the directions that they were drawn with.
    """

    others_only: ClassVar[bool] = False

    def __init__(
        self, num_classes: int, widths: Sequence[int], *, subclusters: int = 16, trainable: bool = True,
        adaptive: bool = False,
    ) -> None:  # fmt: skip
        columns = num_classes * _at_least_one("subclusters", subclusters)
        centres = _centres(columns, sum(widths))
        super().__init__(num_classes, centres, columns=columns, trainable=trainable, adaptive=adaptive)


class AdaProj(_Angular):
    """Softmax of s·cos θ, θ the angle to the embedding's projection on the class (Wilkinghoff, EUSIPCO 2024).

    A class is ``subspace`` fixed random unit vectors w; x is projected to Σ ⟨x,w⟩ w. Scale as in ``AdaCos``.
    """

    def __init__(self, num_classes: int, widths: Sequence[int], *, subspace: int = 32, adaptive: bool = False) -> None:
        vectors = torch.randn(num_classes * _at_least_one("subspace", subspace), sum(widths))
        super().__init__(num_classes, vectors, columns=num_classes, trainable=False, adaptive=adaptive)

    def _cosines(self, unit: Tensor, vectors: Tensor) -> Tensor:
        vectors = vectors.unflatten(0, (self.num_classes, -1))
        projections = torch.einsum("ncs,csd->ncd", torch.einsum("nd,csd->ncs", unit, vectors), vectors)
        return (F.normalize(projections, dim=2) * unit.unsqueeze(1)).sum(dim=2)


class ArcFace(_Angular):
    """Softmax of s·cos θ, with s·cos(θ + margin) for the own class (Deng et al., CVPR 2019).

    A soft label y is a weighted sum of hard ones: the loss is Σ_c y_c L_c, where L_c has the margin on class c alone
    (ArcMix; Choi & Choi, 2024).
    """

    def __init__(self, num_classes: int, widths: Sequence[int], *, margin: float = 0.5, scale: float = 64.0) -> None:
        centres = _centres(num_classes, sum(widths))
        super().__init__(num_classes, centres, columns=num_classes, trainable=True, adaptive=False)
        self.margin = margin
        self.scale.fill_(scale)

    def forward(self, embedding: Tensor, targets: Tensor) -> Tensor:
        cosines = self.cosines(embedding)
        rows, own = targets.nonzero(as_tuple=True)  # one row for each class that shares a clip
        cosines_of_rows = cosines[rows]
        cosine = cosines_of_rows.gather(1, own.unsqueeze(1))
        sine = (1 - cosine.square()).clamp(min=1e-12).sqrt()  # at 0 the root has no finite gradient
        with_margin = cosine * math.cos(self.margin) - sine * math.sin(self.margin)
        logits = self.scale * cosines_of_rows.scatter(1, own.unsqueeze(1), with_margin)
        terms = F.cross_entropy(logits, own, reduction="none")
        return (targets[rows, own] * terms).sum() / len(embedding)


class FeatureExchange(ClassLoss):
    """SubClusterAdaCos, and a second one that recognises exchanged branches (FeatEx; Wilkinghoff, ICASSP 2024).

    The embedding is the concatenation of M branches. For the second loss, each clip gets with the given probability all
    branches but the first from other clips, by a permutation of the batch for each branch. Its C·(M+1) classes are
    [y, 0, …] for clips left alone and [0, y/M, y₂/M, …] for exchanged ones, with the labels y_m of the clip from which
    branch m comes. Nothing is exchanged in evaluation mode. Both losses have weight 1 and trainable centres. Draws come
    from torch's default generator (of the CPU, whatever the device).

    Raises UserError: fewer than two branches or classes.
    """

    def __init__(
        self, num_classes: int, widths: Sequence[int], *, probability: float = 0.5, subclusters: int = 16
    ) -> None:
        super().__init__(num_classes)
        self.widths, self.probability = _branches(self, widths), probability
        num_kinds = len(widths) + 1
        self.plain = SubClusterAdaCos(num_classes, widths, subclusters=subclusters)
        self.exchanged = SubClusterAdaCos(num_classes * num_kinds, widths, subclusters=subclusters)

    def forward(self, embedding: Tensor, targets: Tensor) -> Tensor:
        return self.plain(embedding, targets) + self.exchanged(*self.exchange(embedding, targets))

    def exchange(self, embedding: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Exchange branches: embeddings (N, D) and labels (N, C·(M+1))."""
        num, num_branches = len(embedding), len(self.widths)
        unchanged = F.pad(targets, (0, self.num_classes * num_branches))
        if not self.training:
            return embedding, unchanged
        chosen = (torch.rand(num, 1) < self.probability).to(embedding.device)
        orders = [torch.arange(num), *(torch.randperm(num) for _ in self.widths[1:])]
        orders = [order.to(embedding.device) for order in orders]
        branches = embedding.split(self.widths, dim=1)
        moved = torch.cat([branch[order] for branch, order in zip(branches, orders, strict=True)], dim=1)
        labels = torch.cat([torch.zeros_like(targets), *(targets[order] / num_branches for order in orders)], dim=1)
        return torch.where(chosen, moved, embedding), torch.where(chosen, labels, unchanged)


class Subspace(ClassLoss):
    """SubClusterAdaCos with fixed centres on the concatenation, plus one with trainable centres on each branch.

    All have weight 1 and ``subclusters`` per class.

    Raises UserError: fewer than two branches or classes.
    """

    def __init__(self, num_classes: int, widths: Sequence[int], *, subclusters: int = 16) -> None:
        super().__init__(num_classes)
        self.widths = _branches(self, widths)
        self.joint = SubClusterAdaCos(num_classes, widths, subclusters=subclusters, trainable=False)
        self.parts = nn.ModuleList(SubClusterAdaCos(num_classes, [width], subclusters=subclusters) for width in widths)

    def forward(self, embedding: Tensor, targets: Tensor) -> Tensor:
        branches = zip(self.parts, embedding.split(self.widths, dim=1), strict=True)
        return sum((part(branch, targets) for part, branch in branches), start=self.joint(embedding, targets))


def _at_least_one(name: str, number: int) -> int:
    if number < 1:
        raise UserError(f"{name} = {number}: give at least 1")
    return number


def _fixed_scale(columns: int) -> float:
    return math.sqrt(2) * math.log(max(columns - 1, 2))


def _centres(columns: int, dim: int) -> Tensor:
    return nn.init.xavier_uniform_(torch.empty(columns, dim))


def _branches(module: nn.Module, widths: Sequence[int]) -> list[int]:
    if len(widths) < 2:
        raise UserError(f"{type(module).__name__} needs an embedding of at least two branches, not {len(widths)}")
    return list(widths)
