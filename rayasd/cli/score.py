"""``rayasd score``, ``pack`` and ``recalibrate``: what a run has learned, used on new clips."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rayasd.cli.options import DEVICE, FILE, FOLDER, PATH, RUN, TRUST, output_format, together
from rayasd.errors import UserError
from rayasd.printing import tell

if TYPE_CHECKING:
    from rayasd.scoring.model import ClipScore, MachineModel

MODEL = click.argument("model", type=PATH, metavar="RUN|FILE")
choose_model = together(
    click.option("--entry", help="Entry of RUN's leaderboard, ensembles too; default: the first in rank."),
    click.option("--seed", type=int, help="Seed of an entry that is not over seeds; default: the lowest."),
    click.option("--detector", help="Default: what the run's report chose."),
    click.option("--pooling", help="Default: what the run's report chose."),
)
"""Options that choose an entry of a run's leaderboard."""


@click.command()
@MODEL
@click.argument("words", nargs=-1, metavar="CLIP|FOLDER|-…")
@click.option("--machine", help="Machine type; may be left out if there is only one.")
@choose_model
@click.option("--section", help="Section of the clips; default (or auto): the nearest by the product head.")
@click.option("--resample", is_flag=True, help="Convert clips of another sample rate.")
@click.option("--channel", metavar="only|mean|near-far|N", help="Channel to take; default: as in the run.")
@click.option("--percentile", type=click.FloatRange(min=0, max=100),
              help="Percentile of normal training clips for the threshold; default: as in the run.")  # fmt: skip
@output_format("table", "csv", "jsonl", "parquet")
@click.option("-o", "--out", type=FILE,
              help="File, whose ending .csv, .jsonl or .parquet sets the format; default: the terminal.")  # fmt: skip
@click.option("--watch", is_flag=True,
              help="Then score what arrives in the folders, as JSON lines, until Ctrl-C; to --out, they are appended, "
              "and what is in it is not scored again.")  # fmt: skip
@click.option("--on-alarm", metavar="COMMAND", help="With --watch: run at an alarm; its input is the clip's JSON line.")
@click.option("--alarm", metavar="K/N", default="1/1", show_default=True,
              help="With --watch: an alarm when K of a section's last N clips are anomalous.")  # fmt: skip
@click.option("--drift", type=click.IntRange(min=2), default=50, show_default=True,
              help="With --watch: how many clips of a section are compared with normal ones.")  # fmt: skip
@DEVICE
@TRUST
def score(
    model: Path, words: tuple[str, ...], section: str | None, form: str, out: Path | None, watch: bool,
    on_alarm: str | None, alarm: str, drift: int, device: str, trust: bool, resample: bool, channel: str | None,
    percentile: float | None, **choice: Any,
) -> None:  # fmt: skip
    """Score new clips of one machine.

    Each gets a score, a decision, a p-value by normal clips and its worst window. RUN is a run
    directory that has a report, FILE what rayasd pack wrote. Folders are searched for audio files; - reads names from
    the input, one per line. Recordings longer than training clips are scored piece by piece.

    \b
        rayasd score runs/first --machine fan --section 00 new/
        rayasd score fan.rayasd recording.wav --format jsonl
        rayasd score fan.rayasd --watch incoming/ --out scores.jsonl --alarm 3/5 --on-alarm ./tell-somebody
        find . -name '*.wav' | rayasd score runs/first --machine fan - --format csv --out scores.csv
    """
    from rayasd.cli.display import wide_console
    from rayasd.data.folders import is_signal
    from rayasd.scoring.loading import load
    from rayasd.scoring.output import write_scores

    if not words:
        raise UserError("no clips: name files, folders, or - for names from the input")
    if out is not None and not watch:
        form = out.suffix[1:] if form == "table" and out.suffix in (".csv", ".jsonl", ".parquet") else form
    _refuse_recording(out)
    if form == "parquet" and out is None:
        raise UserError("--format parquet needs --out FILE")
    if watch and form not in ("table", "jsonl"):
        raise UserError("--watch writes JSON lines: leave --format out")
    of_watch = {"--on-alarm": on_alarm is not None, "--alarm": alarm != "1/1", "--drift": drift != 50}
    if not watch and any(of_watch.values()):
        raise UserError(f"{next(option for option, is_given in of_watch.items() if is_given)} needs --watch")
    smoothing = _smoothing(alarm)
    for folder in words if watch else ():
        with suppress(OSError):  # of a disk that fails now: the watch names it, and goes on
            if not Path(folder).is_dir():
                raise UserError(f"--watch {folder}: no such folder")
    clips = [] if watch else list(_clips(words))
    if out is not None and out.exists() and any(out.samefile(clip) for clip in clips if Path(clip).exists()):
        raise UserError(f"--out {out} is one of the clips: name another file")
    if not clips and not watch:
        given = "names of clips in the input, one per line" if words == ("-",) else f"audio files in {', '.join(words)}"
        raise UserError(f"no {given}")
    loaded = changed(load(model, device=device, trust=trust, **choice), resample, channel, percentile)
    if not loaded.reads_signals:
        clips = [clip for clip in clips if clip in words or not is_signal(Path(clip).name)]
    if not clips and not watch:
        raise UserError(f"no audio files in {', '.join(words)}")
    section = loaded.named(section)
    if watch:
        from rayasd.scoring import watching

        rules = watching.Watch(section, out, on_alarm, smoothing, drift)
        with suppress(KeyboardInterrupt):
            watching.watch(loaded, [Path(word).absolute() for word in words], rules)
        return
    failed = 0

    def counted() -> Iterator["ClipScore"]:
        nonlocal failed
        for each in loaded.score(clips, section):
            failed += each.reason is not None
            yield each

    write_scores(counted(), form, wide_console() if out is None else out, loaded)
    raise SystemExit(1 if failed else 0)


def changed(
    model: "MachineModel", resample: bool, channel: str | None, percentile: float | None = None
) -> "MachineModel":
    """Return the model with the rules of a command's options, if there are any."""
    from dataclasses import replace

    from rayasd.config import Config, from_dict

    def change(config: Config) -> Config:
        data, evaluation = config.data, config.evaluation
        data = replace(data, resample=resample or data.resample, channel=channel or data.channel)
        if percentile is not None:
            evaluation = replace(evaluation, threshold="percentile", false_alarm_rate=1 - percentile / 100)
        return from_dict(replace(config, data=data, evaluation=evaluation).as_dict())

    return model.changed(change) if resample or channel or percentile is not None else model


def _refuse_recording(out: Path | None) -> None:
    """Keep an output from taking a recording's place, as where a shell puts several names behind --out."""
    from rayasd.data.folders import is_audio

    if out is not None and is_audio(out.name):
        raise UserError(f"--out {out} is named as a recording: name another file")


def _smoothing(text: str) -> tuple[int, int]:
    needed, _, of = text.partition("/")
    if not (needed.isdecimal() and of.isdecimal() and 1 <= int(needed) <= int(of)):
        raise UserError(f"--alarm {text}: write K/N, K of the last N clips, as 3/5")
    return int(needed), int(of)


def _clips(words: Iterable[str]) -> Iterator[str]:
    from rayasd.data.folders import audio_files

    for word in words:
        if word == "-":
            yield from (line.rstrip("\r\n") for line in sys.stdin if line.strip())
        elif Path(word).is_dir():
            yield from map(str, audio_files(Path(word), signals=True))
        elif Path(word).exists():
            yield word
        else:
            raise UserError(f"no such file or folder: {word}")


@click.command()
@RUN
@choose_model
@click.option("--machine", help="Pack one machine alone; default: all.")
@click.option("-o", "--out", type=FILE, help="Default MACHINE.rayasd or RUN.rayasd")
@click.option("--licence", default="", help="Licence under which the model may be used; kept in the file.")
@TRUST
def pack(run: Path, machine: str | None, out: Path | None, licence: str, **choice: Any) -> None:
    """Make one file of RUN's models of its machines.

    For rayasd score on any host. It holds weights (safetensors), normal embeddings and their scores (Parquet) and
    configuration (JSON), and no code; of an ensemble, all members.

    \b
        rayasd pack runs/first -o first.rayasd
        rayasd pack runs/first --machine fan --entry both+seeds
    """
    from rich.text import Text

    from rayasd.cli.display import wide_console
    from rayasd.scoring.loading import RunModels
    from rayasd.scoring.packing import chosen_machine, write_pack
    from rayasd.wording import size

    _refuse_recording(out)
    models = RunModels(run, **choice)
    machines = models.machines if machine is None else [chosen_machine(run, machine, models.machines)]
    path = out or Path(f"{machines[0] if len(machines) == 1 else run.resolve().name}.rayasd")
    lines = write_pack(path, map(models.parts, machines), licence)
    wide_console().print(Text("\n".join([*lines, f"{path}: {size(path.stat().st_size)}"])), soft_wrap=True)


@click.command()
@MODEL
@click.option("--normal", "folder", type=FOLDER, required=True,
              help="Recordings of the machine in good order, searched with all folders below.")  # fmt: skip
@click.option("--machine", help="Machine type; may be left out if there is only one.")
@choose_model
@click.option("--section", help="Section of the clips; may be left out if there is only one.")
@click.option("--resample", is_flag=True, help="Convert clips of another sample rate; the new model does, too.")
@click.option("--channel", metavar="only|mean|near-far|N", help="Channel to take; for the new model, too.")
@click.option("-o", "--out", type=FILE, required=True, help="File of the new model.")
@DEVICE
@TRUST
def recalibrate(
    model: Path, folder: Path, section: str | None, out: Path, device: str, trust: bool, resample: bool,
    channel: str | None, **choice: Any,
) -> None:  # fmt: skip
    """Fit a model's detectors and threshold to new normal clips.

    Networks are not trained again. The new clips take the place of the section's normal clips; its other sections, and
    a packed model's other machines, stay as they are. Give recordings that the network was not trained on.

    \b
        rayasd recalibrate fan.rayasd --normal recordings/may -o fan-may.rayasd
        rayasd recalibrate runs/first --machine fan --section 00 --normal recordings/may -o fan.rayasd
    """
    from rayasd.data.folders import audio_files
    from rayasd.data.naming import matching
    from rayasd.scoring.loading import load
    from rayasd.scoring.model import MachineModel
    from rayasd.scoring.packing import machines_of, read_pack, write_pack
    from rayasd.scoring.recalibration import recalibrated

    _refuse_recording(out)
    if not folder.is_dir():
        raise UserError(f"no such folder: {folder}")
    before = changed(load(model, device=device, trust=trust, **choice), resample, channel)
    clips = audio_files(folder, signals=before.reads_signals)
    if not clips:
        raise UserError(f"no audio files in {folder}")
    if section is None and len(before.sections) > 1:
        raise UserError(f"{model} has several sections: name one of {', '.join(before.sections)} by --section")
    section = matching("section", section or before.sections[0], before.sections)
    parts = recalibrated(before, section, folder, clips, lambda text: tell(text, err=True))
    old, new = (each.fitted(section)[section].decision for each in (before, MachineModel(parts, device)))
    names = [parts.machine] if model.is_dir() else machines_of(model)
    models = (parts if name == parts.machine else read_pack(model, name, trust=trust) for name in names)
    write_pack(out, models, str(parts.provenance.get("licence", "")))
    was = "" if old.threshold is None else f" (was {old.threshold:.4g})"
    limit = new.reason if new.threshold is None else f"threshold {new.threshold:.4g}"
    tell(f"{out}: {parts.machine}, section {section}: {limit}{was}, from {new.num_groups} normal clips")
