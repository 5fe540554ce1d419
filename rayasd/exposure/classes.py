"""Classes of clips: what an objective tells apart."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rayasd.arrays import Indices
from rayasd.config import Config
from rayasd.exposure.clips import MachineClips

if TYPE_CHECKING:
    from rayasd.exposure.objectives import Objective


@dataclass(frozen=True)
class Classes:
    """Names of classes, and the class of each clip."""

    names: tuple[str, ...]  # sorted
    positions: tuple[Indices, ...]  # position of each clip's class among the names, by machine; -1: none

    @classmethod
    def of(
        cls, objective: "type[Objective]", config: Config, machines: Sequence[MachineClips], target: str
    ) -> "Classes":
        """Make the classes that training clips have; ``target`` as ``Objective.labels`` takes it."""
        labels = [objective.labels(config, clips, target) for clips in machines]
        trained = {
            label
            for clips, of_clips in zip(machines, labels, strict=True)
            for label, split in zip(of_clips, clips.table["split"].to_pylist(), strict=True)
            if label is not None and split == "train"
        }
        place = {name: number for number, name in enumerate(sorted(trained))}
        positions = [[place.get(label, -1) if label is not None else -1 for label in of_clips] for of_clips in labels]
        return cls(tuple(place), tuple(np.array(of_clips, np.int64) for of_clips in positions))
