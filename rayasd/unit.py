"""Units of work and the run directory: the one place that knows every path of a run and what a unit's identity is."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from rayasd.config import Config
from rayasd.files import Below, digest
from rayasd.nested import differing
from rayasd.stages import STAGES, NumClips, StageName, machine_of

_WITHOUT_EFFECT = frozenset({"exposure.checkpoint_every", "embedding.batch_size", "data.on_bad_clip"})
"""Settings that do not change a result."""


STATE = "state.pt"  # name of the file, in a training's folder, from which an interrupted training goes on


@dataclass(frozen=True, order=True)
class Unit:
    """One stage of one machine's system: the smallest thing that is scheduled, retried and marked done."""

    stage: StageName
    variant: str
    machine: str
    seed: int

    def __str__(self) -> str:
        return f"{self.stage} {self.machine} {self.variant} seed {self.seed}"

    def upstream(self, stage: StageName, config: Config) -> "Unit":
        """Name the unit of an earlier stage that this one builds on."""
        return Unit(stage, self.variant, machine_of(stage, self.machine, config), self.seed)


@dataclass(frozen=True)
class RunDirectory:
    """Paths of a run. Units of one machine, variant and seed meet only through these files."""

    root: Path

    config = Below("config.toml")  # resolved configuration (TOML)
    manifest = Below("manifest.json")  # command, revision, versions, data and plan (JSON)
    lock = Below("lock.json")  # lock of the whole run: its driver (JSON)
    catalog = Below("catalog.parquet")  # the decoded catalog (Parquet)
    cells = Below("cells.parquet")  # AUC and pAUC of every cell (Parquet)
    ensembles = Below("ensembles")  # where the ensembles' scores are
    html = Below("report.html")  # the report as one page
    plots = Below("plots")  # where the report's pictures are
    tensorboard = Below("tensorboard")  # folder of TensorBoard's event files

    def part_lock(self, machine: str) -> Path:
        """Lock of a machine's part of the run, or of a share of it (2of5): its driver (JSON)."""
        return self.root / f"lock-{machine}.json"

    @property
    def locks(self) -> list[Path]:
        """Lock of the whole run, and those of parts that exist."""
        return [self.lock, *self.part_locks()]

    def part_locks(self) -> list[Path]:
        """List the locks of parts that exist."""
        return sorted(self.root.glob("lock-*.json"))

    def of_driver(self, name: str, part: Iterable[str] | None) -> Path:
        """File that one driver writes: events.jsonl, or events-fan.jsonl of one that does the fans alone."""
        stem, dot, suffix = name.partition(".")
        return self.root / (name if part is None else f"{stem}-{'+'.join(sorted(part))}{dot}{suffix}")

    def ensemble(self, entry: str, machine: str, seed: int | None) -> Path:
        """Scores file of an ensemble (Parquet)."""
        hive = (f"variant={entry}", f"machine={machine}", "seed=all" if seed is None else f"seed={seed}")
        return self.ensembles.joinpath(*hive, "part-0.parquet")

    def leaderboard(self, suffix: str) -> Path:
        """One row a system, as parquet, csv or md."""
        return self.root / f"leaderboard.{suffix}"

    def plot(self, name: str) -> Path:
        """Chart of the report (SVG)."""
        return self.plots / f"{name}.svg"

    def output(self, unit: Unit) -> Path:
        """Folder that a unit writes, and no other unit does."""
        words = {"variant": unit.variant, "machine": unit.machine, "seed": unit.seed}
        return self.root / STAGES[unit.stage].folder.format(**words)

    def table(self, unit: Unit) -> Path:
        """Parquet file of an embed or detect unit."""
        return self.output(unit) / "part-0.parquet"

    def marker(self, unit: Unit, kind: Literal["DONE", "FAILED"]) -> Path:
        """Marker of a finished or failed unit."""
        return self.output(unit) / f"{STAGES[unit.stage].hidden}{kind}"

    def history(self, unit: Unit) -> Path:
        """History of a training, one JSON line an epoch."""
        return self.output(unit) / "history.jsonl"

    def progress(self, unit: Unit) -> Path:
        """How far a running unit is (JSON, replaced as it goes on)."""
        return self.output(unit) / f"{STAGES[unit.stage].hidden}progress.json"


@dataclass(frozen=True, kw_only=True)
class UnitSpec:
    """All that a stage needs to know to do a unit: plain values and paths, the same on every host."""

    unit: Unit
    config: Config  # the variant's resolved configuration
    run: RunDirectory
    cache: Path  # waveform cache on the host that does the unit
    data_root: Path
    data: str  # fingerprint of the data and of the pretrained weights
    device: str = "auto"  # auto, cpu, cuda or cuda:N
    num_threads: int = 1
    stop: Path | None = None  # while this file exists, units save their state at the next good moment and end
    num_ranks: int = 1
    """Processes of one host that train the unit together, a GPU each or all on CPUs; not part of its identity."""

    @property
    def output(self) -> Path:
        """Folder that this unit writes."""
        return self.run.output(self.unit)

    def upstream(self, stage: StageName) -> Unit:
        """Name the unit of an earlier stage that this one builds on."""
        return self.unit.upstream(stage, self.config)

    def work(self, clips: NumClips) -> float:
        """Return how much the unit goes through, in its stage's ``work_unit``."""
        return STAGES[self.unit.stage].work(self.unit.machine, self.config, clips)

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that decide the result, of this stage and of those before, where they differ from the defaults.

        A new setting with a default that changes nothing leaves finished units as they are.
        """
        stages = list(STAGES)[: list(STAGES).index(self.unit.stage) + 1]
        tables = [name for stage in stages for name in STAGES[stage].settings]
        return _deciding(*((name, getattr(self.config, name)) for name in tables))

    @property
    def version(self) -> int:
        """Version of the stage."""
        return STAGES[self.unit.stage].version

    @property
    def identity(self) -> str:
        """Sha256 of all that decides the result: version, settings, machine, seed, data."""
        return digest([self.version, self.settings, self.unit.machine, self.unit.seed, self.data])


@lru_cache(maxsize=1024)
def _deciding(*tables: tuple[str, Any]) -> dict[str, Any]:
    """Pick the settings that change a result; many units share them."""
    settings = {f"{name}.{key}": value for name, table in tables for key, value in differing(table).items()}
    return {key: value for key, value in settings.items() if key not in _WITHOUT_EFFECT}


@dataclass(frozen=True)
class Progress:
    """How far a unit is, as its stage reports it."""

    done: int  # epochs, clips or sections done
    total: int
    clips: int = 0  # clips seen since the last report
    loss: float | None = None
    note: str = ""  # notes for the user: the device and why, where the weights come from


Report = Callable[[Progress], bool | None]
"""Takes a stage's progress; True asks it to stop at the next point from which it can go on."""


def silent(progress: Progress) -> bool:
    """Report to nobody."""
    return False


class Stopped(Exception):  # noqa: N818 - it is no error
    """The unit was asked to stop and has saved its state."""
