"""Do one unit, in whatever process an executor chose: run the stage, report progress through a file, mark it done."""

import importlib
import json
import os
import socket
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rayasd import __version__
from rayasd.errors import NoGPUError, UserError, one_line
from rayasd.files import gone, no_links, remove_unfinished, storage_error, suppress_full
from rayasd.host import freed_memory_kept
from rayasd.stages import STAGES
from rayasd.sweep.markers import mark_done, why_unusable
from rayasd.sweep.plan import prerequisite
from rayasd.unit import Progress, RunDirectory, Stopped, Unit, UnitSpec

_FIRST_SECONDS, _FIRST_INTERVAL, _INTERVAL = 10.0, 0.5, 2.0  # each report is three questions to a shared file system


@dataclass(frozen=True)
class Outcome:
    """How a unit ended."""

    unit: Unit
    error: str | None = None  # one line; None when it is done
    details: str = ""  # traceback
    hopeless: bool = False  # trying again would give the same: bad configuration or data
    stopped: bool = False  # the run was asked to stop; the unit has saved its state
    host_lost: bool = False  # its host went, with all that ran there
    hits_all: bool = False
    """A disk is full, read-only or gone, or GPUs are not seen. All units would fail; none is marked as failed."""
    damaged: Unit | None = None  # a prerequisite's files differ from what was written
    pause_seconds: float = 0.0  # how long to wait before trying again: what it lacked may be free then


def do_unit(spec: UnitSpec, show: Callable[[str], None] | None = None) -> Outcome:
    """Do a unit and mark it done; never raises because of the unit's own failure. ``show`` gets lines of progress."""
    reporter = FileReporter(spec.run, spec.unit, spec.stop, show)
    try:
        if not spec.run.catalog.exists():
            raise gone(spec.run.root)  # else the folder would be made in the empty mount point
        spec.run.marker(spec.unit, "DONE").unlink(missing_ok=True)
        needed = prerequisite(spec.unit, spec.config)
        if needed is not None and (why := why_unusable(replace(spec, unit=needed))):
            return Outcome(spec.unit, why, hopeless=True, damaged=needed)
        spec.output.mkdir(parents=True, exist_ok=True)
        remove_unfinished(spec.output)
        reporter(Progress(0, 0))  # the first sign of life, before imports that take seconds
        stage = STAGES[spec.unit.stage]
        module, name = stage.function
        if stage.uses_torch:
            import torch

            torch.set_num_threads(spec.num_threads)
        with freed_memory_kept():
            getattr(importlib.import_module(module), name)(spec, reporter)
        spec.run.progress(spec.unit).unlink(missing_ok=True)
        seconds = round(time.monotonic() - reporter.started, 3)
        mark_done(spec, rayasd=__version__, seconds=seconds, clips=reporter.clips, notes=reporter.notes)
    except Stopped:
        return Outcome(spec.unit, stopped=True)
    except Exception as error:
        there = spec.run.catalog.exists()
        trouble = storage_error(error, spec.run.root, spec.cache, spec.data_root) if there else gone(spec.run.root)
        if trouble is not None:
            return Outcome(spec.unit, str(trouble), traceback.format_exc(), hopeless=True, hits_all=True)
        hopeless = isinstance(error, UserError)
        reason = str(error) if hopeless else f"{type(error).__name__}: {error}"
        hits_all = isinstance(error, NoGPUError)
        return Outcome(spec.unit, one_line(reason, 500), traceback.format_exc(), hopeless, hits_all=hits_all)
    return Outcome(spec.unit)


def how_far(unit: Unit, state: Mapping[str, Any]) -> str:
    """Return a running unit's progress in one line, from its progress file."""
    if not state.get("total"):
        return f"{unit}: starts"
    loss = "" if state["loss"] is None else f", loss {state['loss']:.4g}"
    return f"{unit}: {state['done']} of {state['total']}{loss}, {state['clips_per_second']:.0f} clips/s"


@dataclass
class FileReporter:
    """Writes a unit's progress file, twice a second at first, then every 2 s; the driver and ``rayasd`` read it."""

    run: RunDirectory
    unit: Unit
    stop: Path | None = None  # while this file exists, the unit is asked to stop
    show: Callable[[str], None] | None = None  # gets a line for people with each report
    started: float = field(default_factory=time.monotonic)
    written: float = 0.0
    clips: int = 0
    loss: float | None = None
    first: tuple[int, float] | None = None
    """Work done, and time, at the first report: not 0 after an interruption; imports are not counted."""
    notes: list[str] = field(default_factory=list)
    stopping: bool = False

    def __call__(self, progress: Progress) -> bool:
        """Take a stage's report; tells whether the run has been asked to stop."""
        self.clips += progress.clips
        self.loss = self.loss if progress.loss is None else progress.loss
        if progress.total:
            self.first = self.first or (progress.done, time.monotonic())
        if progress.note:
            self.notes.append(progress.note)
        moment = time.monotonic()
        interval = _FIRST_INTERVAL if moment - self.started < _FIRST_SECONDS else _INTERVAL
        if moment - self.written < interval and not progress.note:
            return self.stopping
        self.written = moment
        first, began = self.first or (0, self.started)
        done, seconds = progress.done - first, max(moment - began, 1e-9)
        state = {
            "done": progress.done,
            "total": progress.total,
            "loss": self.loss,
            "clips_per_second": self.clips / seconds,
            "seconds_left": seconds / done * (progress.total - progress.done) if done else None,
            "notes": self.notes,
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }
        if self.show:
            self.show(how_far(self.unit, state))
        path = self.run.progress(self.unit)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
        with suppress_full():  # there may be room again when it matters
            try:
                with open(temporary, "w", encoding="utf-8", opener=no_links) as file:
                    json.dump(state, file)
                os.replace(temporary, path)  # not flushed: losing it loses nothing
            except OSError:
                temporary.unlink(missing_ok=True)
                raise
        self.stopping = self.stop is not None and self.stop.exists()
        return self.stopping
