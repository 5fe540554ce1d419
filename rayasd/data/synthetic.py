"""Write a DCASE 2021 tree of synthetic machine sounds: a demo and a test bed, never a benchmark of real machines."""

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import soundfile

from rayasd.data.machine_sounds import MODELS, clip_of, product_of, with_fault
from rayasd.errors import UserError, unknown
from rayasd.files import read_json, write_csv, write_json
from rayasd.host import usable_cpus, worker_pool
from rayasd.randomness import generator

MACHINE_TYPES = tuple(MODELS)
"""The seven machine types of DCASE 2021."""

NUM_DEVELOPMENT_SECTIONS = 3
MARKER = "SYNTHETIC.json"
_UNFINISHED = ".SYNTHETIC.unfinished.json"
"""Exists while a tree is written: tells an interrupted one from recordings."""

VERSION = 2
"""Version of the sound models; a tree of another version is refused."""


@dataclass(frozen=True, kw_only=True)
class SynthesisPlan:
    """What to write."""

    machines: tuple[str, ...] = MACHINE_TYPES
    num_sections: int = 6
    """Sections 00 on; 00 to 02 are development, the rest evaluation."""
    num_source_train: int = 1000
    """Source-domain normal training clips per section."""
    num_target_train: int = 3
    """Target-domain normal training clips per section."""
    num_test: int = 100
    """Normal, and as many anomalous, test clips per section and domain."""
    seconds: float = 10.0
    """Length of a clip."""
    sample_rate: int = 16000
    difficulty: float = 0.5
    """0: loud anomalies; 1: faint ones."""
    seed: int = 0

    def check(self) -> None:
        """Check all values.

        Raises:
            UserError: a value is wrong.

        """
        for machine in self.machines:
            if machine not in MACHINE_TYPES:
                raise unknown("machine", machine, MACHINE_TYPES)
            if self.machines.count(machine) > 1:
                raise UserError(f"machines: {machine} is named twice")
        ranges = {"num_sections": (1, 99), "num_source_train": (1, math.inf), "num_target_train": (0, math.inf),
                  "num_test": (1, math.inf), "difficulty": (0, 1), "seconds": (0.5, math.inf)}  # fmt: skip
        for name, (least, most) in ranges.items():
            if not least <= (value := getattr(self, name)) <= most:
                limits = f"at least {least}" if most == math.inf else f"between {least} and {most}"
                raise UserError(f"{name} = {value}: must be {limits}")


@dataclass(frozen=True)
class _Clip:
    """Coordinates of one clip; with the seed, they determine its samples."""

    machine: str
    section: int
    domain: str
    split: str
    label: str
    index: int
    name: str
    folder: str

    @property
    def path(self) -> str:
        return f"{self.folder}/{self.name}"


def synthesize(
    out: Path,
    plan: SynthesisPlan,
    *,
    num_workers: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write the tree ``out``/{dev_data,eval_data}/<machine>/… and its ground truth; SYNTHETIC.json comes last.

    The same plan gives the same bytes, however many workers. ``attributes.csv`` has the kind of each anomaly.
    The same call completes an interrupted one; a folder that holds anything else is never written to.

    Returns:
        Clips written; 0 where the same plan has been carried out before.

    Raises:
        UserError: a value of the plan is wrong, or ``out`` holds something else.

    """
    plan.check()
    content = {
        "synthetic": "Made by rayasd data synth. Not recordings.",
        "version": VERSION,
        "plan": asdict(plan) | {"machines": list(plan.machines)},
    }
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: choose another folder")
    if (there := read_json(out / MARKER)) is not None:
        if there == content:
            return 0
        raise UserError(f"{out} holds synthetic data of another plan: delete it or choose another folder")
    clips = [clip for machine in plan.machines for clip in _clips(machine, plan)]
    if (begun := read_json(out / _UNFINISHED)) is None:
        if out.is_dir() and any(out.iterdir()):
            raise UserError(f"{out} is not empty and holds no synthetic data: choose another folder")
        write_json(out / _UNFINISHED, content)
    elif begun != content:
        raise UserError(f"{out} holds unfinished synthetic data of another plan: delete it or choose another folder")
    for folder in sorted({clip.folder for clip in clips}):
        (out / folder).mkdir(parents=True, exist_ok=True)
    kinds: list[str] = []
    chunks = [clips[i : i + 20] for i in range(0, len(clips), 20)]
    with ExitStack() as stack:
        number = min(num_workers or usable_cpus(), len(chunks))
        mapped = map if number == 1 else stack.enter_context(worker_pool(number)).map
        for written in mapped(partial(_write_clips, out, plan), chunks):
            kinds += written
            if on_progress is not None:
                on_progress(len(kinds), len(clips))
    _write_tables(out, clips, kinds)
    write_json(out / MARKER, content)
    (out / _UNFINISHED).unlink()
    return len(clips)


def _clips(machine: str, plan: SynthesisPlan) -> list[_Clip]:
    clips = []
    for section in range(plan.num_sections):
        development = section < NUM_DEVELOPMENT_SECTIONS
        base = f"{'dev' if development else 'eval'}_data/{machine}"
        for domain, count in (("source", plan.num_source_train), ("target", plan.num_target_train)):
            for i in range(count):
                name = f"section_{section:02}_{domain}_train_normal_{i:04}_synthetic.wav"
                clips.append(_Clip(machine, section, domain, "train", "normal", i, name, f"{base}/train"))
        for domain in ("source", "target"):
            order = generator(plan.seed, "order", machine, section, domain).permutation(2 * plan.num_test)
            for position in range(2 * plan.num_test):
                # evaluation names must not give labels away: normal and anomalous clips share one shuffled numbering
                number = position % plan.num_test if development else int(order[position])
                label = "normal" if position < plan.num_test else "anomaly"
                name = f"section_{section:02}_{domain}_test_" + (f"{label}_" if development else "") + f"{number:04}"
                name += "_synthetic.wav" if development else ".wav"
                index = position % plan.num_test
                clips.append(_Clip(machine, section, domain, "test", label, index, name, f"{base}/{domain}_test"))
    return clips


def _write_clips(out: Path, plan: SynthesisPlan, clips: list[_Clip]) -> list[str]:
    """Write some clips; returns the kind of anomaly of each, empty for normal ones."""
    kinds = []
    for clip in clips:
        rng = generator(plan.seed, clip.machine, clip.section, clip.domain, clip.split, clip.label, clip.index)
        product, kind = product_of(clip.machine, clip.section, plan.seed), ""
        if clip.label == "anomaly":
            faults = product.model.faults
            kind = faults[clip.index % len(faults)]
            strength = (1.75 - 1.5 * plan.difficulty) * float(rng.uniform(0.7, 1.3))
            product = with_fault(product, kind, strength, rng)
        sound = clip_of(product, clip.domain, round(plan.seconds * plan.sample_rate), plan.sample_rate, rng)
        samples = np.clip(np.rint(sound * 32768.0), -32768, 32767).astype(np.int16)
        soundfile.write(out / clip.path, samples, plan.sample_rate, subtype="PCM_16")
        kinds.append(kind)
    return kinds


def _write_tables(out: Path, clips: list[_Clip], kinds: list[str]) -> None:
    truth: dict[str, list[tuple[str, int]]] = {}
    for clip in clips:
        if clip.split == "test" and clip.section >= NUM_DEVELOPMENT_SECTIONS:
            file = f"ground_truth_{clip.machine}_section_{clip.section:02}_{clip.domain}_test.csv"
            truth.setdefault(file, []).append((clip.name, int(clip.label == "anomaly")))
    for file, rows in truth.items():
        write_csv(out / "ground_truth_data" / file, sorted(rows))
    anomalies = [(clip.path, kind) for clip, kind in zip(clips, kinds, strict=True) if kind]
    write_csv(out / "attributes.csv", [("clip", "anomaly"), *anomalies])
