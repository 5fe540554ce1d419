"""Every clip read, and what is odd about it, as ``rayasd data check`` shows it."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rayasd.config import Config, DataConfig
from rayasd.data.audio import AudioFacts, read_facts, sample_blocks
from rayasd.data.catalog import ONE_MACHINE, ONE_SECTION, SCALED, Catalog
from rayasd.data.decoding import DECODED_COLUMNS, Content, scaled
from rayasd.data.groups import moments, with_groups
from rayasd.data.oddities import CONTENT, Oddity, is_constant, odd_contents, same_audio
from rayasd.data.same_moments import beginning, envelope, same_moments
from rayasd.errors import BadClipError
from rayasd.host import usable_cpus
from rayasd.wording import counted

_CONTAINERS = {".wav": ("WAV", "WAVEX", "RF64"), ".flac": ("FLAC",), ".ogg": ("OGG",), ".mp3": ("MP3", "MPEG")}
_MUCH_CLIPPED = 0.01


def inspect_clips(
    catalog: Catalog, config: Config, on_progress: Callable[[int, int], None]
) -> tuple[dict[str, AudioFacts], list[Oddity]]:
    """Read every clip, in blocks: memory does not grow with a recording.

    Returns what headers say, by clip; and what is odd about clips, about the catalog, and about clips set side by side.
    """
    rows = catalog.table.select(CONTENT[:4]).to_pylist()

    grouped = with_groups(catalog, config.data.groups)
    group_of = dict(zip(*(grouped.table[name].to_pylist() for name in ("clip", "group")), strict=True))
    scales = {machine: scaled(catalog.root, catalog.of(machine), config.data) for machine in catalog.machines}

    def beginning_of(row: Mapping[str, Any]) -> NDArray[np.int16]:
        return beginning(sample_blocks(catalog.root / row["clip"], scales[row["machine"]]), config.data.sample_rate)

    def read(row: dict[str, Any]) -> tuple[AudioFacts | None, dict[str, Any], list[Oddity]]:
        clip, facts = row["clip"], None
        try:
            facts = read_facts(catalog.root / clip, config.data)
            described, clipped, begun = Content(), 0, np.empty(0, np.int16)
            for samples in sample_blocks(catalog.root / clip, scales[row["machine"]]):
                described.add(samples)
                clipped += int(np.count_nonzero((samples == 32767) | (samples <= -32767)))
                begun = beginning([begun, samples], config.data.sample_rate)
        except BadClipError as error:
            return facts, {}, [Oddity(clip, str(error), True)]
        odd = []
        if facts.container not in _CONTAINERS.get(Path(clip).suffix.lower(), (facts.container,)):
            odd.append(f"{facts.container} inside, whatever its name says")
        held = row | dict(zip(CONTENT[4:], described.facts, strict=True))
        if is_constant(held):
            odd.append("silent or constant")
        elif clipped > _MUCH_CLIPPED * described.frames:
            odd.append("clipped: more than 1 % of its samples at full scale")
        if described.frames < config.window_length:
            odd.append(f"shorter than a window of {config.front_end.window_seconds:g} s: repeats itself")
        held |= {"group": group_of[clip], "envelope": envelope(begun, config.data.sample_rate)}
        return facts, held, [Oddity(clip, problem) for problem in odd]

    facts, contents, oddities = {}, [], list(catalog.oddities)
    with ThreadPoolExecutor(usable_cpus()) as pool:
        for done, (row, (fact, held, odd)) in enumerate(zip(rows, pool.map(read, rows), strict=True), 1):
            if fact is not None:
                facts[row["clip"]] = fact
            if held:
                contents.append(held)
            oddities += odd
            if done % 50 == 0 or done == len(rows):
                on_progress(done, len(rows))
    schema = pa.schema(
        [catalog.table.schema.field(n) for n in CONTENT[:4]] + [DECODED_COLUMNS.field(n) for n in CONTENT[4:]]
    )
    held_by_all = pa.Table.from_pylist([{n: row[n] for n in CONTENT} for row in contents], schema)
    of_whole = [*_of_the_whole(catalog, scales), *_of_groups(grouped)]
    twins = same_moments(contents, beginning_of, config.data.sample_rate)
    return facts, [*oddities, *of_whole, *odd_contents(held_by_all), *same_audio(held_by_all), *twins]


def _of_groups(catalog: Catalog) -> list[Oddity]:
    """Oddities of what belongs together, or seems to."""
    oddities = []
    for machine in catalog.machines:
        rows = catalog.of(machine).select(["clip", "split", "group"]).to_pylist()
        train, test = ({row["group"] for row in rows if row["split"] == split} - {None} for split in ("train", "test"))
        if both := sorted(train & test):
            problem = f"{counted(len(both), 'group')} with clips in training and in test, {both[0]} first"
            oddities.append(Oddity(machine, problem))
        alone = [row["clip"] for row in rows if row["group"] is None and row["split"] in ("train", "test")]
        if several := moments(alone):
            first = next(iter(several.values()))[0]
            problem = f"{counted(len(several), 'moment')} in clips that differ in microphone, channel or segment alone"
            oddities.append(Oddity(machine, f"{problem}, {first} first: data.groups keeps them together"))
    return oddities


def _of_the_whole(catalog: Catalog, scales: Mapping[str, DataConfig]) -> list[Oddity]:
    """Oddities of machines and sections, not of single clips."""
    rows = catalog.table.select(["machine", "section", "split"]).to_pylist()
    sections: dict[str, dict[str, set[str]]] = {}
    for row in rows:
        sections.setdefault(row["machine"], {}).setdefault(row["split"], set()).add(row["section"])
    notes = [(machine, SCALED.format(data.scale)) for machine, data in scales.items() if data.scale != 1.0]
    if len(sections) == 1:
        notes.append((str(catalog.root), ONE_MACHINE))
    if not catalog.has_tests:
        notes.append((str(catalog.root), "no test clips: models score new clips, but are not evaluated"))
    for machine, splits in sections.items():
        train, test = splits.get("train", set()), splits.get("test", set())
        if len(train) == 1:
            notes.append((machine, ONE_SECTION))
        if missing := sorted(test - train):
            notes.append((machine, f"test clips but no training clips in section {', '.join(missing)}"))
        if not train:
            notes.append((machine, "no training clips"))
    return [Oddity(place, note) for place, note in notes]
