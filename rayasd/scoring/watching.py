"""Score what arrives in folders, for as long as a plant runs: nothing that happens there ends it or loses a clip."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path

import torch

from rayasd.data.audio import NO_MEMORY
from rayasd.errors import StorageError, UserError, one_line
from rayasd.evaluation.decisions import TRAINED_ON_WARNING
from rayasd.inlier.scores_file import TRAINED_ON
from rayasd.printing import tell
from rayasd.scoring.arrivals import Arrivals, Stamp, stamp_of
from rayasd.scoring.journal import Journal, Record
from rayasd.scoring.model import ClipScore, MachineModel
from rayasd.scoring.monitoring import DRIFT, Monitor, run_command
from rayasd.scoring.output import json_line

_AT_ONCE = 16  # clips that are scored before their results are written


@dataclass(frozen=True)
class Watch:
    """Options of a watch."""

    section: str | None = None
    out: Path | None = None
    """File that results are appended to; clips in it are not scored again. None: standard output, and no memory."""
    on_alarm: str | None = None  # command of the shell, which gets the record of the clip as its input
    alarm: tuple[int, int] = (1, 1)  # as of ``Monitor``; so is ``drift``
    drift: int = 50


def watch(model: MachineModel, folders: Sequence[Path], rules: Watch) -> None:
    """Score clips as they arrive, without end.

    A clip whose disk fails is tried again every minute. One that cannot be read for other reasons has its reason in its
    record. The command of an alarm runs before the record is written: a kill between the two repeats it, and a kill at
    any other moment changes nothing but when the rest is done.

    Raises:
        UserError: the section, the model or the file does not fit.
        torch.AcceleratorError: the GPU has failed, and this process cannot use it any more.
    """
    sections = model.fitted(rules.section)
    for name, each in sections.items():
        if each.decision.reason is not None:
            say(f"section {name}: {each.decision.reason}: it raises no alarm")
        elif each.decision.calibration == TRAINED_ON:
            say(f"section {name}: {TRAINED_ON_WARNING}, expect more alarms than promised")
        if each.calibration.kind == TRAINED_ON:
            say(f"section {name}: drift is not tested, since its normal clips were trained on")
    monitor = Monitor(sections, rules.alarm, rules.drift)
    done: dict[str, Stamp] = {}
    with nullcontext() if rules.out is None else Journal(rules.out, say) as journal:
        for records in journal.recorded() if journal else ():
            if (machine := records[0].get("machine")) != model.parts.machine:
                raise UserError(f"{rules.out} has scores of {machine}: name another --out for {model.parts.machine}")
            done[records[0]["clip"]] = records[0]["size"], records[0]["mtime_ns"]
            for record in records:
                values: Record = {field.name: record.get(field.name) for field in fields(ClipScore)}
                score = ClipScore(**values)
                monitor.alarm(score), monitor.drift(score)
        say(f"watching {', '.join(map(str, folders))}; Ctrl-C ends it")
        arrivals = Arrivals(folders, done, say, signals=model.reads_signals)
        _go_on(model, arrivals, monitor, rules, journal.append if journal else partial(tell, nl=False))


def _go_on(
    model: MachineModel, arrivals: Arrivals, monitor: Monitor, rules: Watch, write: Callable[[str], None]
) -> None:
    failing: set[Path] = set()
    for ready in arrivals:
        write("")  # what could not be written before
        for begin in range(0, len(ready), _AT_ONCE):
            stamps = dict(ready[begin : begin + _AT_ONCE])
            for path, scores in _scored(model, list(stamps), rules.section):
                if isinstance(scores, StorageError):
                    if path not in failing:
                        say(f"{scores}; rayasd tries it every minute")
                    failing.add(path)
                    arrivals.later(path)
                elif (now := stamp_of(path)) != stamps[path] and (now or scores[0].reason is not None):
                    say(f"{path}: {scores[0].reason or 'has changed since it was listed'}")  # comes again, or is gone
                else:
                    records = [_record(model, monitor, each, stamps[path], len(scores), rules) for each in scores]
                    arrivals.done(path, stamps[path])
                    write("".join(map(json_line, records)))


def _scored(
    model: MachineModel, paths: Sequence[Path], section: str | None
) -> Iterator[tuple[Path, list[ClipScore] | StorageError]]:
    """Score clips together; if that fails, one after the other, so that each has its own reason."""
    of_clip: dict[str, list[ClipScore]] = {}
    try:
        for each in model.score(paths, section):
            if each.reason == NO_MEMORY and len(paths) > 1:
                raise MemoryError  # alone, it may fit
            of_clip.setdefault(each.clip, []).append(each)
        for path in paths:
            scores = of_clip[str(path)]
            yield path, [each for each in scores if each.reason is not None] or scores  # damage may show at the end
    except torch.AcceleratorError:
        raise
    except Exception as error:  # of a disk, of memory, of what is plugged in
        if len(paths) > 1:
            for path in paths:
                yield from _scored(model, [path], section)
        elif isinstance(error, StorageError):
            yield paths[0], error
        elif isinstance(error, UserError):
            raise
        else:
            memory = isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)
            why = NO_MEMORY if memory else one_line(f"{type(error).__name__}: {error}")
            yield paths[0], [ClipScore(str(paths[0]), 0.0, 0.0, reason=why)]


def _record(model: MachineModel, monitor: Monitor, score: ClipScore, stamp: Stamp, pieces: int, rules: Watch) -> Record:
    alarm, drift = monitor.alarm(score), monitor.drift(score)
    record = {"machine": model.parts.machine, **asdict(score), "alarm": alarm, "drift_p": drift, "pieces": pieces,
              "size": stamp[0], "mtime_ns": stamp[1]}  # fmt: skip
    if score.reason is not None:
        say(f"{score.clip}: {score.reason}")
    if drift is not None and drift < DRIFT:
        say(f"section {score.section}: scores of the last {rules.drift} clips differ from those of normal clips "
            f"(Kolmogorov-Smirnov p = {drift:.2g}): rayasd recalibrate, if they are normal")  # fmt: skip
    if alarm:
        say(f"alarm: {score.clip}, score {score.score:.4g} above {score.threshold:.4g}")
        if rules.on_alarm is not None and (why := run_command(rules.on_alarm, json_line(record))):
            say(f"--on-alarm of {score.clip}: {why}")
    return record


def say(text: str) -> None:
    """Print to standard error, if somebody still reads it."""
    with suppress(OSError):
        tell(text, err=True)
