"""Event files for TensorBoard, one a training and one a ranked system, without TensorFlow or torch."""

import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from rayasd.files import replacing
from rayasd.tracking.tracker import Row, Tracker, metrics
from rayasd.unit import RunDirectory, Unit, UnitSpec

_RESULTS = "events.out.tfevents.results"
_FRAME_BYTES = 16  # length and checksums around a record


class TensorBoard(Tracker):
    """Writes below the run's tensorboard folder; a training that is done anew gets a new file, the old one goes."""

    name = "tensorboard"

    def __init__(self, paths: RunDirectory) -> None:
        super().__init__()
        self._paths = paths
        self._files: dict[Unit, Path] = {}

    def begin(self, spec: UnitSpec) -> int:
        """Find or make the training's file; a record that a kill cut off is taken away."""
        unit = spec.unit
        folder = self._paths.tensorboard / unit.variant / unit.machine / f"seed={unit.seed}"
        path = self._files[unit] = folder / f"events.out.tfevents.{spec.identity[:16]}"
        folder.mkdir(parents=True, exist_ok=True)
        for other in folder.glob("events.out.tfevents.*"):
            if other != path:
                other.unlink()
        path.touch()
        records = list(RawEventFileLoader(str(path)).Load())
        os.truncate(path, sum(len(record) + _FRAME_BYTES for record in records))
        if not records:
            _append(path, [_head()])
        return max((Event.FromString(record).step for record in records), default=0)

    def log(self, unit: Unit, rows: Sequence[Row]) -> None:
        """Add a scalar for each number of an epoch."""
        _append(self._files[unit], (_event("training", row, row["epoch"]) for row in rows))

    def end(self, unit: Unit, how: str) -> None:
        """Nothing more comes."""

    def results(self, entries: Sequence[Row]) -> None:
        """Write each system's scores as scalars of one step."""
        for old in self._paths.tensorboard.glob(f"*/{_RESULTS}"):
            old.unlink()
        for entry in entries:
            with replacing(self._paths.tensorboard / entry["variant"] / _RESULTS) as path:
                _append(path, [_head(), _event("result", entry, 0)])


def _head() -> Event:
    return Event(wall_time=time.time(), file_version="brain.Event:2")


def _event(group: str, row: Row, step: int) -> Event:
    values = [Summary.Value(tag=f"{group}/{tag}", simple_value=value) for tag, value in metrics(row).items()]
    return Event(wall_time=time.time(), step=step, summary=Summary(value=values))


def _append(path: Path, events: Iterable[Event]) -> None:
    with path.open("ab") as file:
        writer = RecordWriter(file)
        for event in events:
            writer.write(event.SerializeToString())
