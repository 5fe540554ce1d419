"""Event files for TensorBoard, one per training and one per ranked system, without TensorFlow."""

from collections.abc import Sequence
from pathlib import Path

from tensorboardX import SummaryWriter

from rayasd.tracking.tracker import TrackedRow, Tracker, metrics
from rayasd.unit import RunDirectory, Unit, UnitSpec

_RESULTS = ".results"


class TensorBoard(Tracker):
    """Writes below the run's tensorboard folder; each call of ``rayasd track`` writes a training's file anew."""

    def __init__(self, paths: RunDirectory) -> None:
        super().__init__()
        self._folder = paths.tensorboard
        self.place = str(self._folder)
        self._writers: dict[Unit, SummaryWriter] = {}

    def begin(self, spec: UnitSpec) -> int:
        """Open a new file for the training; earlier ones are removed."""
        unit = spec.unit
        if unit in self._writers:
            self._writers.pop(unit).close()
        folder = self._folder / unit.variant / unit.machine / f"seed={unit.seed}"
        _remove(folder, "")
        self._writers[unit] = SummaryWriter(str(folder))
        return 0

    def log(self, unit: Unit, rows: Sequence[TrackedRow]) -> None:
        """Add a scalar for each number of an epoch."""
        for row in rows:
            _write(self._writers[unit], "training", row, row["epoch"])
        self._writers[unit].flush()

    def end(self, unit: Unit, how: str) -> None:
        """Close the training's file."""
        self._writers.pop(unit).close()

    def results(self, entries: Sequence[TrackedRow]) -> None:
        """Write each system's scores as scalars of one step."""
        for folder in self._folder.glob("*"):
            _remove(folder, _RESULTS)
        for entry in entries:
            with SummaryWriter(str(self._folder / entry["variant"]), filename_suffix=_RESULTS) as writer:
                _write(writer, "result", entry, 0)


def _write(writer: SummaryWriter, group: str, row: TrackedRow, step: int) -> None:
    for tag, value in metrics(row).items():
        writer.add_scalar(f"{group}/{tag}", value, step)


def _remove(folder: Path, suffix: str) -> None:
    for old in folder.glob(f"events.out.tfevents.*{suffix}"):
        old.unlink()
