"""The stages of a sweep: what runs each one, where its files go, what it needs and what it costs.

A new stage is one object here, and the function that it names.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from rayasd.config import Config
from rayasd.windows import windows_of

StageName = Literal["train", "embed", "detect"]
ALL_MACHINES = "shared"
"""In the place of a machine type's name: the network of all machine types, where ``exposure.scope`` is ``all``."""


@dataclass(frozen=True)
class NumClips:
    """Clips of each machine."""

    train: Mapping[str, int]
    every: Mapping[str, int]
    frames: Mapping[str, float]
    """Of its usual clip; of decoded clips alone."""

    @classmethod
    def of(cls, catalog: pa.Table) -> "NumClips":
        """Count the rows of a catalog's table."""
        train, frames = catalog.filter(pc.field("split") == "train"), dict[str, float]()
        if "frames" in catalog.column_names:
            of_tests = catalog.filter(pc.is_in(catalog["split"], pa.array(["train", "test"])))
            usual = of_tests.group_by(["machine", "split"]).aggregate([("frames", "approximate_median")])
            for row in usual.to_pylist():
                machine = row["machine"]
                frames[machine] = max(row["frames_approximate_median"] or 0.0, frames.get(machine, 0.0))
        return cls(Counter(train["machine"].to_pylist()), Counter(catalog["machine"].to_pylist()), frames)

    def trained_on(self, machine: str, config: Config) -> float:
        """Count the clips that go through the training steps of a machine's network, or of all machines'."""
        total = self.epochs(config) * self._own(machine, config)
        return total if machine == ALL_MACHINES else 2 * total

    def epochs(self, config: Config) -> int:
        """Count the epochs of a variant's trainings.

        They are the same for all seeds and machines, though these may hold out other numbers of clips: the weights of
        one system are named by their epoch.
        """
        exposure = config.exposure
        networks = [ALL_MACHINES] if exposure.scope == "all" else [each for each, count in self.train.items() if count]
        steps = min((self._steps(each, config) for each in networks), default=1)
        return max(exposure.epochs, ceil(exposure.min_steps / steps)) if exposure.epochs else 0

    def checkpoints(self, config: Config) -> int:
        """Count the weights that the training of a machine's network keeps to choose from."""
        exposure = config.exposure
        if not (exposure.keep_every and exposure.epochs and config.network.is_trained):
            return 1
        return ceil(self.epochs(config) / exposure.keep_every)

    def _own(self, machine: str, config: Config) -> float:
        of_machine = sum(self.train.values()) if machine == ALL_MACHINES else self.train[machine]
        return of_machine * (1 - config.exposure.held_out_share)

    def _steps(self, machine: str, config: Config) -> int:
        a_step = config.exposure.batch_size / (1 if machine == ALL_MACHINES else 2)
        return max(1, ceil(self._own(machine, config) / a_step))

    def scored(self, machine: str, config: Config) -> int:
        """Count the clips of a machine that each kept checkpoint is applied to."""
        return self.every[machine] * self.checkpoints(config)

    def embedded(self, machine: str, config: Config) -> int:
        """Count the windows of a machine's clips, for each kept checkpoint."""
        known, num_windows = self.frames.get(machine), config.embedding.num_windows
        return self.scored(machine, config) * (windows_of(config, known) if known else num_windows)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage: its function, files, settings, needs and cost."""

    name: StageName
    function: tuple[str, str]
    """Module and name; takes a ``UnitSpec`` and a ``Report``. Imported only where a unit runs."""
    folder: str  # pattern of a unit's folder in the run
    hidden: str = ""
    """Before the names of its markers: readers of Parquet trees pass over names that begin with an underscore."""
    settings: tuple[str, ...]  # tables of the configuration that decide its result, besides those of the stages before
    version: int
    """Raised whenever a change of the code, or of a setting's default, changes the stage's results, here and in the
    stages that build on it: units of an older version are done again."""
    uses_torch: bool
    most_gpus: float  # most GPUs that one unit can use
    may_be_shared: bool = False  # whether one unit serves all machine types where ``exposure.scope`` is ``all``
    is_needed: Callable[[Config], bool] = lambda config: True  # whether a variant goes through it
    work_unit: str  # unit of its speed
    work: Callable[[str, Config, NumClips], float]  # how much of that a machine's unit goes through
    output_bytes: Callable[[str, Config, NumClips, int], int]
    """About what a machine's unit leaves on disk; the last argument is the number of learned parameters."""


def _num_systems(config: Config) -> int:
    """Count detectors and poolings, each family over the whole grid."""
    of_grid = [1 if re.search(r"-\d+$|\)$", text) else len(config.inlier.grid) for text in config.inlier.detectors]
    return sum(of_grid) * len(config.inlier.poolings)


_HIVE = "variant={variant}/machine={machine}/seed={seed}"

TRAIN = Stage(
    name="train", function=("rayasd.exposure.training", "train"), folder="models/{variant}/{machine}/seed={seed}",
    settings=("data", "front_end", "network", "exposure"), version=7, uses_torch=True, most_gpus=float("inf"),
    may_be_shared=True, is_needed=lambda config: config.network.is_trained,
    work_unit="clips",
    work=lambda machine, config, clips: clips.trained_on(machine, config),
    output_bytes=lambda machine, config, clips, parameters: 4 * parameters * clips.checkpoints(config),
)  # fmt: skip
EMBED = Stage(
    name="embed", function=("rayasd.exposure.embedding", "embed"), folder=f"embeddings/{_HIVE}", hidden="_",
    settings=("embedding",), version=6, uses_torch=True, most_gpus=1.0,
    work_unit="windows",
    work=lambda machine, config, clips: float(clips.embedded(machine, config)),
    output_bytes=lambda machine, config, clips, parameters: (
        clips.embedded(machine, config) * (4 * config.network.embedding_dim + 16)
    ),
)  # fmt: skip
DETECT = Stage(
    name="detect", function=("rayasd.inlier.scoring", "detect"), folder=f"scores/{_HIVE}", hidden="_",
    settings=("inlier",), version=10, uses_torch=False, most_gpus=0.0,
    work_unit="clips",
    work=lambda machine, config, clips: float(clips.scored(machine, config)),
    output_bytes=lambda machine, config, clips, parameters: clips.scored(machine, config) * _num_systems(config) * 10,
)  # fmt: skip

STAGES: dict[StageName, Stage] = {stage.name: stage for stage in (TRAIN, EMBED, DETECT)}
"""In the order in which a unit's files are made."""


def stages_of(config: Config) -> list[StageName]:
    """Name the stages that a variant goes through, in order."""
    return [stage.name for stage in STAGES.values() if stage.is_needed(config)]


def machine_of(stage: StageName, machine: str, config: Config) -> str:
    """Return the machine of the unit that does this stage for a machine: its own, or ``ALL_MACHINES``."""
    return ALL_MACHINES if STAGES[stage].may_be_shared and config.exposure.scope == "all" else machine
