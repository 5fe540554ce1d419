"""Write a tree of synthetic machine sounds as a year's DCASE data: a demo and a test bed, never a benchmark."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import soundfile

from rayasd.data.machine_sounds import clip_of, product_of, two_microphones, with_fault
from rayasd.data.samples import rounded
from rayasd.data.years import DEVELOPMENT_MACHINES, EVALUATION_MACHINES, YEARS, is_development
from rayasd.errors import UserError, unknown
from rayasd.files import read_json, write_csv, write_json
from rayasd.host import usable_cpus, worker_pool
from rayasd.nested import bounded, build
from rayasd.randomness import generator

MARKER = "SYNTHETIC.json"
_UNFINISHED = ".SYNTHETIC.unfinished.json"  # exists while a tree is written: tells an interrupted one from recordings

VERSION = 2  # version of the sound models; a tree of another version is refused


def machine_types(year: int) -> tuple[str, ...]:
    """List a year's machine types."""
    return tuple(dict.fromkeys((*DEVELOPMENT_MACHINES[year], *EVALUATION_MACHINES.get(year, ()))))


@dataclass(frozen=True, kw_only=True)
class SynthesisPlan:
    """Plan of a synthetic tree."""

    year: int = 2021  # DCASE year whose machines, names, folders, channels and ground truth are used
    machines: tuple[str, ...] = ()  # some of the year's; none: all
    num_sections: int = bounded(6, minimum=1, maximum=99)
    """Sections of a machine until 2022, development and evaluation ones as the year divides them; then there is one."""
    num_source_train: int = bounded(1000, minimum=1)  # source-domain normal training clips per section
    num_target_train: int = bounded(3, minimum=0)  # target-domain normal training clips per section, from 2021 on
    num_test: int = bounded(100, minimum=1)
    """Normal, and as many anomalous, test clips per section and domain; in 2025 as many supplemental ones."""
    seconds: float = bounded(10.0, minimum=0.5)  # length of a clip
    sample_rate: int = 16000
    difficulty: float = bounded(0.5, minimum=0, maximum=1)  # 0: loud anomalies; 1: faint ones
    seed: int = 0

    def check(self) -> None:
        """Check all values. Raises UserError: a value is wrong."""
        if self.year not in YEARS:
            raise UserError(f"year = {self.year}: choose one of {', '.join(map(str, YEARS))}")
        build(SynthesisPlan, asdict(self))
        for machine in self.machines:
            if machine not in machine_types(self.year):
                raise unknown(f"machine of {self.year}", machine, machine_types(self.year))
            if self.machines.count(machine) > 1:
                raise UserError(f"machines: {machine} is named twice")


@dataclass(frozen=True)
class _Clip:
    """Coordinates of one clip; with the seed, they determine its samples."""

    machine: str
    section: int
    domain: str
    split: str
    label: str
    index: int
    attributes: str
    name: str
    folder: str
    told: str  # the name that tells all; of evaluation test clips, the file has another

    @property
    def path(self) -> str:
        return f"{self.folder}/{self.name}"


def synthesize(
    out: Path,
    plan: SynthesisPlan,
    *,
    num_workers: int | None = None,
    on_progress: Callable[[int, int], object] = lambda done, total: None,
) -> int:
    """Write the tree ``out``/{dev_data,eval_data}/…/<machine>/… and its ground truth; SYNTHETIC.json comes last.

    The same plan gives the same bytes, however many workers. ``attributes.csv`` has the kind of each anomaly; since
    2022, ``attributes_SS.csv`` in each machine's folder has the attributes of the clips whose names tell them.
    The same call completes an interrupted one; a folder that holds anything else is never written to.

    Returns clips written; 0 where the same plan has been carried out before. Raises UserError: a value of the plan is
    wrong, or ``out`` holds something else.
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
    clips = [clip for machine in plan.machines or machine_types(plan.year) for clip in _clips(machine, plan)]
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
            on_progress(len(kinds), len(clips))
    _write_tables(out, plan.year, clips, kinds)
    write_json(out / MARKER, content)
    (out / _UNFINISHED).unlink()
    return len(clips)


def _clips(machine: str, plan: SynthesisPlan) -> Iterator[_Clip]:
    year, one_section = plan.year, plan.year >= 2023
    domains = ("source",) if year == 2020 else ("source", "target")
    first = int(year == 2020 and machine.startswith("Toy"))  # these IDs count from 01
    for section in range(first, first + (1 if one_section else plan.num_sections)):
        development = is_development(year, machine, f"{section:02}")
        base = f"{'dev' if development else 'eval'}_data/{'raw/' if one_section else ''}{machine}"

        def clip(domain: str, split: str, label: str, index: int, number: int | None = None) -> _Clip:
            attributes = f"speed_{index % 3}" if year >= 2022 else ""
            told = _name(year, section, domain, split, label, attributes, index)  # noqa: B023 - used at once
            name = told if number is None else _name(year, section, domain, split, "", "", number)  # noqa: B023
            folder = f"{domain}_{split}" if year == 2021 and split == "test" else split
            return _Clip(machine, section, domain, split, label, index, attributes, name, f"{base}/{folder}", told)  # noqa: B023

        for domain, count in zip(domains, (plan.num_source_train, plan.num_target_train), strict=False):
            yield from (clip(domain, "train", "normal", i) for i in range(count))
        if year == 2025:
            kinds = ("clean", "noise")
            yield from (clip("source", "supplemental", kinds[i % 2], i) for i in range(plan.num_test))
        # evaluation names must not give labels away, nor domains since 2022: such clips share one shuffled numbering
        for group in [domains] if year >= 2022 else [(domain,) for domain in domains]:
            members = [(d, label, i) for d in group for label in ("normal", "anomaly") for i in range(plan.num_test)]
            order = generator(plan.seed, "order", machine, section, *group).permutation(len(members))
            for (domain, label, i), number in zip(members, order, strict=True):
                yield clip(domain, "test", label, i, None if development else int(number))


def _name(year: int, section: int, domain: str, split: str, label: str, attributes: str, number: int) -> str:
    """Name a clip as the year does; one without a label is an evaluation test clip."""
    if year == 2020:
        return f"{label}_id_{section:02}_{number:08}.wav".removeprefix("_")
    if not label and year >= 2022:
        return f"section_{section:02}_{number:04}.wav"
    words = [f"section_{section:02}", domain, split, label, f"{number:04}", attributes or "synthetic" * bool(label)]
    return "_".join(filter(None, words)) + ".wav"


def _write_clips(out: Path, plan: SynthesisPlan, clips: list[_Clip]) -> list[str]:
    """Write some clips; returns the kind of anomaly of each, empty for normal ones."""
    kinds = []
    for clip in clips:
        rng = generator(plan.seed, clip.machine, clip.section, clip.domain, clip.split, clip.label, clip.index)
        product, kind = product_of(clip.machine, clip.section, plan.seed), ""
        if clip.attributes:
            product = replace(product, speed=product.speed * (1 + 0.03 * int(clip.attributes[-1])))
        if clip.label == "anomaly":
            faults = product.model.faults
            kind = faults[clip.index % len(faults)]
            strength = (1.75 - 1.5 * plan.difficulty) * float(rng.uniform(0.7, 1.3))
            product = with_fault(product, kind, strength, rng)
        length = round(plan.seconds * plan.sample_rate)
        sound = clip_of(product, clip.domain, length, plan.sample_rate, rng, part=clip.label)
        if plan.year == 2026:
            sound = two_microphones(sound, plan.sample_rate, rng)
        soundfile.write(out / clip.path, rounded(sound), plan.sample_rate, subtype="PCM_16")
        kinds.append(kind)
    return kinds


def _write_tables(out: Path, year: int, clips: list[_Clip], kinds: list[str]) -> None:
    truth: dict[str, list[tuple[object, ...]]] = {}
    hidden = [clip for clip in clips if clip.name != clip.told]
    for clip in hidden:
        domain = f"_{clip.domain}" if year == 2021 else ""
        file = f"ground_truth_{clip.machine}_section_{clip.section:02}{domain}_test.csv"
        truth.setdefault(f"ground_truth_data/{file}", []).append((clip.name, int(clip.label == "anomaly")))
        truth.setdefault(f"ground_truth_domain/{file}", []).append((clip.name, int(clip.domain == "target")))
    for path, rows in truth.items():
        if year >= 2022 or (year == 2021 and not path.startswith("ground_truth_domain")):
            write_csv(out / path, sorted(rows))
    if year != 2021 and hidden:
        machines = dict.fromkeys(clip.machine for clip in hidden)
        of_machine = {m: sorted((c.name, c.told) for c in hidden if c.machine == m) for m in machines}
        write_csv(out / f"eval_data_list_{year}.csv", [row for m in machines for row in [(m,), *of_machine[m]]])
    named: dict[str, list[tuple[str, ...]]] = {}
    for clip in clips:
        if clip.attributes and clip.name == clip.told:
            folder, _, split = clip.folder.rpartition("/")
            row = (f"{clip.machine}/{split}/{clip.name}", *clip.attributes.split("_"))
            named.setdefault(f"{folder}/attributes_{clip.section:02}.csv", []).append(row)
    for path, named_rows in named.items():
        write_csv(out / path, [("file_name", "d1p", "d1v"), *named_rows])
    anomalies = [(clip.path, kind) for clip, kind in zip(clips, kinds, strict=True) if kind]
    write_csv(out / "attributes.csv", [("clip", "anomaly"), *anomalies])
