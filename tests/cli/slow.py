"""Objectives for sweeps that are to be stopped: slow where that is asked for, with the same results in any case."""

import os
import time
from collections.abc import Mapping

from torch import Tensor

from rayasd.exposure.objectives.margins import SubClusterAdaCos
from rayasd.exposure.objectives.two_bce import TwoBCE

PAUSE = "SLOW_LOSS_SECONDS"


class Slow(TwoBCE):
    """Sleep, which no other process feels, and do what the default does."""

    def losses(self, embedding: Tensor, targets: Tensor, *, mixed: bool) -> Mapping[str, Tensor]:
        time.sleep(float(os.environ.get(PAUSE, "0")))
        return super().losses(embedding, targets, mixed=mixed)


class SlowCentres(SubClusterAdaCos):
    """The same of an objective for a network of all machine types."""

    def forward(self, embedding: Tensor, targets: Tensor) -> Tensor:
        time.sleep(float(os.environ.get(PAUSE, "0")))
        return super().forward(embedding, targets)
