"""``rayasd recalibrate``: a model's detectors and thresholds for what normal sounds like now."""

from pathlib import Path
from typing import Any

import click

from rayasd.cli.options import DEVICE, TRUST
from rayasd.cli.score import MODEL, changed, choose_model
from rayasd.errors import UserError
from rayasd.printing import tell


@click.command()
@MODEL
@click.option("--normal", "folder", type=click.Path(path_type=Path, file_okay=False), required=True,
              help="Recordings of the machine in good order, searched with all folders below.")  # fmt: skip
@click.option("--machine", help="May be left out where there is one alone.")
@choose_model
@click.option("--section", help="Which product they are of; may be left out where there is one alone.")
@click.option("--resample", is_flag=True, help="Convert clips of another sample rate; the new model does, too.")
@click.option("--channel", metavar="only|mean|near-far|N", help="Of clips with several; for the new model, too.")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="File of the new model."
)
@DEVICE
@TRUST
def recalibrate(
    model: Path, folder: Path, section: str | None, out: Path, device: str, trust: bool, resample: bool,
    channel: str | None, **choice: Any,
) -> None:  # fmt: skip
    """Fit a model's detectors and threshold to new normal clips.

    Networks are not trained again. The new clips take the place of the section's normal clips; its other sections, and
    a packed model's other machines, stay as they are.

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

    before = changed(load(model, device=device, trust=trust, **choice), resample, channel)
    clips = audio_files(folder, signals=before.reads_signals)
    if not clips:
        raise UserError(f"no audio files in {folder}" if folder.is_dir() else f"no such folder: {folder}")
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
    tell(f"{out}: {parts.machine}, section {section}: {limit}{was}, from {len(new.normal)} normal clips")
