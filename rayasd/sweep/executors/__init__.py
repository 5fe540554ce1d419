"""Where units run. An executor takes specs and gives outcomes; the driver alone decides what runs when."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from rayasd.sweep.worker import Outcome
from rayasd.unit import Stage, UnitSpec


@dataclass(frozen=True)
class Resources:
    """What a unit asks for, or what there is."""

    cpus: float
    gpus: float = 0.0

    def fits(self, other: "Resources") -> bool:
        """Whether ``other`` can be met from this."""
        return other.cpus <= self.cpus + 1e-9 and other.gpus <= self.gpus + 1e-9

    def plus(self, other: "Resources", sign: int = 1) -> "Resources":
        """Add, or subtract with ``sign=-1``."""
        return Resources(self.cpus + sign * other.cpus, self.gpus + sign * other.gpus)

    def __str__(self) -> str:
        return f"{self.cpus:g} CPUs and {self.gpus:g} GPUs"


@dataclass(frozen=True)
class Request:
    """Resources of one unit by stage: detectors never need a GPU. At most one GPU."""

    cpus: float
    gpus: float

    def of(self, stage: Stage) -> Resources:
        """Resources of a unit of this stage."""
        return Resources(self.cpus, 0.0 if stage == "detect" else self.gpus)

    def usable(self, nodes: Sequence[Resources]) -> Resources:
        """Say what units of this size can use of all nodes: three of 0.6 GPUs do not fit on two."""
        gpus = sum(node.gpus for node in nodes)
        per_gpu = math.floor(1 / self.gpus + 1e-9) if self.gpus else 0
        return Resources(sum(node.cpus for node in nodes), gpus * per_gpu * self.gpus)


class Executor(Protocol):
    """Runs units in other processes."""

    @property
    def nodes(self) -> Sequence[Resources]:
        """Resources of each node; a unit runs within one."""

    def describe(self) -> str:
        """Say in one line where units run, for people."""

    def submit(self, spec: UnitSpec, resources: Resources) -> None:
        """Start a unit; the driver keeps within what the nodes have."""

    def wait(self, timeout: float) -> list[Outcome]:
        """Give the outcomes that came within ``timeout`` seconds; returns as soon as there is one."""

    def close(self) -> None:
        """End everything that this executor started."""
