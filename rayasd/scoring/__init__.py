"""Score new clips with what a run has learned of one machine.

>>> from rayasd.scoring import load                             # doctest: +SKIP
>>> model = load("fan.rayasd")                                  # or load("runs/first", machine="fan")
>>> for clip in model.score(["new.wav"], section="00"): print(clip.score, clip.anomalous)
"""

from rayasd.scoring.loading import load
from rayasd.scoring.model import ClipScore, MachineModel

__all__ = ["ClipScore", "MachineModel", "load"]
