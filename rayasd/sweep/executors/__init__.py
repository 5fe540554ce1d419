"""Where units run. An executor takes specs and gives outcomes; the driver alone decides what runs when."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rayasd.stages import STAGES, StageName
from rayasd.sweep.worker import Outcome
from rayasd.unit import Unit, UnitSpec
from rayasd.wording import counted

Counts = Mapping[tuple[StageName, str], int]
"""Units by stage and state."""
Reported = Mapping[Unit, Mapping[str, Any]]
"""How far running units are, as their progress files say."""


@dataclass(frozen=True)
class Resources:
    """Resources that a unit requests or a node offers."""

    cpus: float
    gpus: float = 0.0

    def fits(self, other: "Resources") -> bool:
        """Whether ``other`` can be met from this."""
        return other.cpus <= self.cpus + 1e-9 and other.gpus <= self.gpus + 1e-9

    def plus(self, other: "Resources", sign: int = 1) -> "Resources":
        """Add, or subtract with ``sign=-1``."""
        return Resources(self.cpus + sign * other.cpus, self.gpus + sign * other.gpus)

    def __str__(self) -> str:
        return f"{counted(float(self.cpus), 'CPU')} and {counted(float(self.gpus), 'GPU')}"


@dataclass(frozen=True)
class Request:
    """Resources of one unit by stage: embedding uses one GPU at most, detectors none."""

    cpus: float
    gpus: float
    """A part of one, or a whole number."""

    def of(self, stage: StageName) -> Resources:
        """Resources of a unit of this stage."""
        return Resources(self.cpus, min(self.gpus, STAGES[stage].most_gpus))

    def usable(self, nodes: Sequence[Resources]) -> Resources:
        """Return what units of this size can use of all nodes: three of 0.6 GPUs do not fit on two.

        (Embedding units of one GPU may use more than this says where training takes several.)
        """
        cpus = sum(math.floor(node.cpus / self.cpus + 1e-9) for node in nodes) * self.cpus
        if self.gpus > 1:
            gpus = sum(math.floor(node.gpus / self.gpus + 1e-9) for node in nodes) * self.gpus
        else:
            per_gpu = math.floor(1 / self.gpus + 1e-9) if self.gpus else 0
            gpus = sum(node.gpus for node in nodes) * per_gpu * self.gpus
        return Resources(cpus, gpus)


class Executor(Protocol):
    """Runs units in other processes."""

    @property
    def nodes(self) -> Sequence[Resources]:
        """Resources of each node as it is now: nodes come and go. A unit runs within one."""

    def describe(self) -> list[str]:
        """Return lines for people: first where units run, then what else they should know."""

    def submit(self, spec: UnitSpec, resources: Resources) -> None:
        """Start a unit; the driver keeps within what the nodes have."""

    def wait(self, timeout: float) -> list[Outcome]:
        """Give the outcomes that came within ``timeout`` seconds; returns as soon as there is one."""

    def cancel(self, unit: Unit) -> None:
        """End a running unit; no outcome of it follows."""

    def close(self) -> None:
        """End everything that this executor started."""
