"""Objectives: what a network learns to tell apart. Each is a class in one file; ``exposure.objective`` names it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from rayasd.arrays import Indices
from rayasd.config import Config
from rayasd.errors import UserError
from rayasd.exposure.batches import Batch, balanced_batches, shuffled_batches
from rayasd.exposure.clips import MachineClips
from rayasd.exposure.objectives.margins import ClassLoss
from rayasd.registry import error_line, find

Evaluated = Iterable[tuple[Tensor, Tensor]]
"""Embeddings (n, D) and targets (n, W) of validation clips, batch by batch."""


class Objective(nn.Module, ABC):
    """Classes of clips, the head that tells them apart, and its loss.

    Its parameters are trained and saved with the network's. All of its computing is in float32.

    Args:
        config: of the variant.
        classes: names of the classes, C of them.
        widths: sizes of the branches whose features make up an embedding; they add up to D.
    """

    parts: ClassVar[tuple[str, ...]] = ()
    """Names of the parts of its loss, as history.jsonl has them."""
    scopes: ClassVar[tuple[str, ...]] = ("machine", "all")
    """Values of ``exposure.scope`` that it is for."""
    learns_anomalies: ClassVar[bool] = False
    """Whether it can learn from ``exposure.real_anomalies``."""
    of_target_alone: ClassVar[bool] = False
    """Whether only clips of the machine type that the network is for have classes."""

    def __init__(self, config: Config, classes: Sequence[str], widths: Sequence[int]) -> None:
        super().__init__()
        self.config, self.classes, self.widths = config, tuple(classes), tuple(widths)

    @classmethod
    def labels(cls, config: Config, clips: MachineClips, target: str) -> list[str | None]:
        """Name the class of each clip of a machine; None: it has none.

        ``target``: machine type that the network is for, or ``ALL_MACHINES``.
        """
        columns = [clips.table[name].to_pylist() for name in config.exposure.classes]
        return ["/".join(row) for row in zip(*columns, strict=True)]

    def batches(self, machines: Sequence[MachineClips], config: Config, seed: int, epoch: int) -> Iterator[Batch]:
        """Compose an epoch's batches: by default, as ``exposure.scope`` says."""
        compose = shuffled_batches if config.exposure.scope == "all" else balanced_batches
        return compose(machines, config, seed, epoch)

    def targets(self, classes: Tensor, of_target: Tensor) -> Tensor:
        """Make the targets that mixup mixes: by default, one-hot classes.

        Args:
            classes: (N,), positions among ``classes``; -1: none.
            of_target: (N,), whether a clip is a normal clip of the machine type that the network is for.

        Returns (N, W).
        """
        one_hot = torch.zeros(len(classes), len(self.classes), device=classes.device)
        rows = torch.arange(len(classes), device=classes.device)[classes >= 0]
        one_hot[rows, classes[rows]] = 1.0
        return one_hot

    @abstractmethod
    def losses(self, embedding: Tensor, targets: Tensor, *, mixed: bool) -> Mapping[str, Tensor]:
        """Compute ``loss``, which is minimised, and its ``parts``, each a scalar.

        ``embedding``: (N, D), a whole batch; ``targets``: (N, W); ``mixed``: whether this is a mixup step.
        """

    def outputs(self, embedding: Tensor) -> Mapping[str, Tensor]:
        """Return what detectors may read beside the embedding: (N,) or (N, k) by name; only what is trained."""
        return {}

    def evaluate(self, batches: Evaluated) -> dict[str, float | None]:
        """Compute ``validation_loss`` and other measures of held-out clips; nothing if there are none."""
        total, count = 0.0, 0
        for embedding, targets in batches:
            total += float(self.losses(embedding, targets, mixed=False)["loss"]) * len(embedding)
            count += len(embedding)
        return {"validation_loss": total / count} if count else {}


def find_classes(
    objective: type[Objective], config: Config, machines: Sequence[MachineClips], target: str
) -> tuple[list[str], list[Indices]]:
    """Return the classes that training clips have, sorted, and by machine the place of each clip's class; -1: none.

    ``target`` as ``Objective.labels`` takes it.
    """
    labels = [objective.labels(config, clips, target) for clips in machines]
    trained = {
        label
        for clips, of_clips in zip(machines, labels, strict=True)
        for label, split in zip(of_clips, clips.table["split"].to_pylist(), strict=True)
        if label is not None and split == "train"
    }
    names = sorted(trained)
    place: dict[str | None, int] = {name: number for number, name in enumerate(names)}
    return names, [np.array([place.get(label, -1) for label in of_clips], np.int64) for of_clips in labels]


class ClassObjective(Objective):
    """Classes told apart by one loss. ``loss`` makes the loss of so many classes and these widths."""

    def __init__(
        self, config: Config, classes: Sequence[str], widths: Sequence[int], loss: Callable[..., ClassLoss]
    ) -> None:
        super().__init__(config, classes, widths)
        self.head = loss(len(classes), widths)

    def losses(self, embedding: Tensor, targets: Tensor, *, mixed: bool) -> Mapping[str, Tensor]:
        """Compute the loss; it has no parts."""
        return {"loss": self.head(embedding, targets)}


_MARGINS = "rayasd.exposure.objectives.margins"
OBJECTIVES = {
    "two-bce": "rayasd.exposure.objectives.two_bce.TwoBCE",
    "cross-entropy": f"{_MARGINS}.CrossEntropy",
    "adacos": f"{_MARGINS}.AdaCos",
    "sub-cluster-adacos": f"{_MARGINS}.SubClusterAdaCos",
    "adaproj": f"{_MARGINS}.AdaProj",
    "arcface": f"{_MARGINS}.ArcFace",
    "feature-exchange": f"{_MARGINS}.FeatureExchange",
    "subspace": f"{_MARGINS}.Subspace",
}
"""Import paths by name."""


def find_objective(config: Config) -> tuple[type[Objective], Callable[..., Objective]]:
    """Look up what ``exposure.objective`` names: an ``Objective``, or a ``ClassLoss``.

    Returns the class of the objective, and what makes one, with its parameters bound. Raises UserError: there is none
    of this name, it is no objective, or not one for these settings.
    """
    name, exposure = config.exposure.objective, config.exposure
    found = find("exposure.objective", name, OBJECTIVES)
    cls = found.func if isinstance(found, partial) else found
    if isinstance(cls, type) and issubclass(cls, ClassLoss):
        cls, found = ClassObjective, partial(ClassObjective, loss=found)
        if not exposure.classes:
            raise UserError(f"exposure.classes names no column: exposure.objective {name} needs classes")
    if not (isinstance(cls, type) and issubclass(cls, Objective)):
        raise UserError(f"exposure.objective {name}: must be a subclass of Objective or ClassLoss (docs/extending.md)")
    if exposure.scope not in cls.scopes:
        raise UserError(f"exposure.objective {name} needs exposure.scope = {' or '.join(cls.scopes)}")
    if exposure.real_anomalies and not cls.learns_anomalies:
        raise UserError(f"exposure.objective {name} cannot learn from exposure.real_anomalies: two-bce can")
    return cls, found


def make_objective(config: Config, classes: Sequence[str], widths: Sequence[int]) -> Objective:
    """Make the objective that ``exposure.objective`` names.

    Raises UserError: there is none of this name, or it cannot be made: too few classes, or too few branches.
    """
    _, make = find_objective(config)
    try:
        return make(config, classes, widths)
    except UserError as error:
        raise UserError(f"exposure.objective {config.exposure.objective}: {error}") from None
    except Exception as error:  # whatever a constructor raises
        raise UserError(f"exposure.objective {config.exposure.objective}: {error_line(error)}") from None
