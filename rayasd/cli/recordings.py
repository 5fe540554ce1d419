"""What the ``rayasd data`` commands do, once their imports are paid for."""

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rayasd import presets
from rayasd.cli.display import clip_progress, wide_console
from rayasd.cli.options import choose
from rayasd.config import Config
from rayasd.data.audio import AudioFacts, BadClipError, read_facts, read_samples
from rayasd.data.catalog import Catalog
from rayasd.data.decoding import DECODED_COLUMNS, content
from rayasd.data.ground_truth import scan_labelled
from rayasd.data.manifest import index_tree, write_manifest
from rayasd.data.oddities import CONTENT, Oddity, odd_contents
from rayasd.errors import UserError
from rayasd.host import usable_cpus
from rayasd.wording import counted

_SHOWN_PATHS = 3
_CONTAINERS = {".wav": ("WAV", "WAVEX", "RF64"), ".flac": ("FLAC",)}
_MUCH_CLIPPED = 0.01


def check_data(source: Path, ground_truth: Path | None, overrides: Sequence[str]) -> int:
    """Print a data set's table and oddities; returns the exit code."""
    console = wide_console()
    config = presets.load("eusipco2022", overrides)
    catalog = scan_labelled(source, ground_truth)
    facts, contents, oddities = _read_all(console, catalog, config)
    oddities = [*catalog.oddities, *oddities, *_of_the_whole(catalog), *odd_contents(contents)]
    console.print(_counts(catalog, facts))
    if catalog.synthetic:
        console.print(Text("synthetic: made by rayasd data synth", style="yellow"))
    by_problem: dict[tuple[bool, str], list[str]] = {}
    for odd in oddities:
        by_problem.setdefault((not odd.unusable, odd.problem), []).append(odd.path)
    for (harmless, problem), paths in sorted(by_problem.items()):
        word, style = ("note", "yellow") if harmless else ("unusable", "red")
        more = f", and {len(paths) - _SHOWN_PATHS} more" if len(paths) > _SHOWN_PATHS else ""
        console.print(Text(f"{word}  {', '.join(paths[:_SHOWN_PATHS])}{more}: {problem}", style=style), soft_wrap=True)
    unusable = sum(odd.unusable for odd in oddities)
    clips, notes = counted(catalog.table.num_rows, "clip"), counted(len(oddities) - unusable, "note")
    console.print(f"{clips}, {notes}, {unusable} unusable")
    return 1 if unusable else 0


def synthesize_data(out: Path, machines: str, plan: Mapping[str, Any]) -> None:
    """Write synthetic recordings."""
    from rayasd.data.synthetic import MACHINE_TYPES, SynthesisPlan, synthesize

    console = wide_console()
    chosen = choose("machine", machines, list(MACHINE_TYPES))
    with clip_progress(console, "writing") as on_progress:
        count = synthesize(out, SynthesisPlan(machines=chosen, **plan), on_progress=on_progress)
    console.print(f"{count} synthetic clips in {out}" if count else f"{out} is there already, made by the same plan")


def index_data(root: Path, pattern: str, test_fraction: float | None, seed: int, out: Path | None) -> None:
    """Write a manifest of one's own recordings."""
    out = out or root / "clips.csv"
    rows = index_tree(root, pattern, test_fraction=test_fraction, seed=seed)
    try:
        base = out.parent.resolve()
        for row in rows:
            row["path"] = (root.resolve() / row["path"]).relative_to(base).as_posix()
    except ValueError:
        raise UserError(
            f"--out {out}: a manifest lies in a folder above its clips, for example {root / 'clips.csv'}"
        ) from None
    write_manifest(out, rows)
    counts = Counter((row["machine"], row["split"]) for row in rows)
    summary = ", ".join(f"{machine} {split} {n}" for (machine, split), n in sorted(counts.items()))
    wide_console().print(f"{out}: {len(rows)} clips ({summary})", highlight=False)


def _read_all(
    console: Console, catalog: Catalog, config: Config
) -> tuple[dict[str, AudioFacts], pa.Table, list[Oddity]]:
    """Read every clip: what headers say, what clips that can be used hold (columns ``CONTENT``), and what is odd."""
    rows = catalog.table.select(CONTENT[:4]).to_pylist()

    def read(row: dict[str, Any]) -> tuple[AudioFacts | None, dict[str, Any], list[Oddity]]:
        clip, facts = row["clip"], None
        try:
            facts = read_facts(catalog.root / clip)
            samples = read_samples(catalog.root / clip, config.data)
        except BadClipError as error:
            return facts, {}, [Oddity(clip, str(error), True)]
        odd = []
        if facts.container not in _CONTAINERS.get(Path(clip).suffix.lower(), (facts.container,)):
            odd.append(f"{facts.container} inside, whatever its name says")
        if samples.min() == samples.max():
            odd.append("silent or constant")
        elif np.mean((samples == 32767) | (samples <= -32767)) > _MUCH_CLIPPED:
            odd.append("clipped: more than 1 % of its samples at full scale")
        if len(samples) < config.window_length:
            odd.append(f"shorter than a window of {config.front_end.window_seconds:g} s: repeats itself")
        held = row | dict(zip(CONTENT[4:], content(samples), strict=True))
        return facts, held, [Oddity(clip, problem, False) for problem in odd]

    facts, contents, oddities = {}, [], []
    with ThreadPoolExecutor(usable_cpus()) as pool, clip_progress(console, "reading") as on_progress:
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
    return facts, pa.Table.from_pylist(contents, schema), oddities


def _of_the_whole(catalog: Catalog) -> list[Oddity]:
    """Oddities of machines and sections, not of single clips."""
    rows = catalog.table.select(["machine", "section", "split"]).to_pylist()
    sections: dict[str, dict[str, set[str]]] = {}
    for row in rows:
        sections.setdefault(row["machine"], {}).setdefault(row["split"], set()).add(row["section"])
    oddities = []
    if len(sections) == 1:
        oddities.append(Oddity(str(catalog.root), "one machine type: outlier exposure needs a second", False))
    for machine, splits in sections.items():
        train, test = splits.get("train", set()), splits.get("test", set())
        if len(train) == 1:
            oddities.append(Oddity(machine, "one section: the product loss has nothing to tell apart", False))
        if missing := sorted(test - train):
            oddities.append(Oddity(machine, f"test clips but no training clips in section {', '.join(missing)}", False))
        if not train:
            oddities.append(Oddity(machine, "no training clips", False))
    return oddities


def _counts(catalog: Catalog, facts: Mapping[str, AudioFacts]) -> Table:
    groups: dict[tuple[str, str, str, str], list[dict[str, Any]]] = {}
    for row in catalog.table.to_pylist():
        groups.setdefault((row["machine"], row["section"], row["domain"], row["split"]), []).append(row)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("machine", "section", "domain", "split"):
        table.add_column(name)
    for name in ("normal", "anomalous", "unlabelled", "seconds", "Hz"):
        table.add_column(name, justify="right")
    for key, rows in sorted(groups.items()):
        labels = Counter(row["label"] for row in rows)
        known = [facts[row["clip"]] for row in rows if row["clip"] in facts]
        lengths = sorted({round(fact.seconds, 2) for fact in known})
        span = "–" if not lengths else f"{lengths[0]:g}" if len(lengths) == 1 else f"{lengths[0]:g}–{lengths[-1]:g}"
        rates = ", ".join(str(rate) for rate in sorted({fact.sample_rate for fact in known}))
        table.add_row(*(Text(part) for part in key), *(str(labels[label]) for label in (0, 1, None)), span, rates)
    return table
