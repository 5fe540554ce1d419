"""``rayasd data``: fetch, check and index recordings, make synthetic ones."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rayasd.cli.options import FILE, FOLDER, GROUND_TRUTH, PATH
from rayasd.errors import UserError, unknown
from rayasd.printing import tell
from rayasd.study.choices import choose

if TYPE_CHECKING:
    from rich.table import Table

    from rayasd.data.audio import AudioFacts
    from rayasd.data.catalog import Catalog

_SHOWN_PATHS = 3
_SHOWN_VALUES = 12


@click.group()
def data() -> None:
    """Fetch, check, index or synthesise recordings."""


@data.command()
@click.argument("dataset", metavar="DATASET")
@click.option("-o", "--out", type=FOLDER, required=True,
              help="Folder for dev_data/, eval_data/ and ground_truth_data/.")  # fmt: skip
@click.option("--machines", default="all", show_default=True, help="all, or some machine types: fan,pump.")
@click.option("--parts", default="all", show_default=True, help="all, or some of dev,eval,ground-truth.")
@click.option("--keep-archives", is_flag=True, help="Keep the zip files in OUT/archives.")
def fetch(dataset: str, out: Path, machines: str, parts: str, keep_archives: bool) -> None:
    """Fetch a DCASE Task 2 data set from Zenodo.

    DATASET is one of dcase2020 to dcase2026. The same command continues where it stopped.

    \b
        rayasd data fetch dcase2021 --out data/dcase2021
        rayasd data fetch dcase2021 --out data/dcase2021 --machines fan,pump --parts dev
    """
    from rich.markup import escape
    from rich.progress import DownloadColumn, Progress, TransferSpeedColumn
    from rich.text import Text

    from rayasd.cli.display import wide_console
    from rayasd.data.fetch import DataRoot
    from rayasd.data.zenodo import RECORDS, list_archives
    from rayasd.sweep.lock import locked
    from rayasd.wording import counted, size

    console = wide_console()
    if dataset not in RECORDS:
        raise unknown("data set", dataset, RECORDS)
    archives = list_archives(dataset, choose("part", parts, list(RECORDS[dataset])))
    available = sorted({archive.machine for archive in archives if archive.machine is not None})
    if machines != "all" and not available:
        raise UserError("the ground truth is one archive of all machines: leave --machines out, or add --parts eval")
    chosen = choose("machine", machines, available)
    archives = [archive for archive in archives if archive.machine is None or archive.machine in chosen]
    out.mkdir(parents=True, exist_ok=True)
    with locked(out / ".fetch.lock") as check:
        root = DataRoot(dataset, out)
        missing = [archive for archive in archives if not root.has(archive)]
        to_download = size(sum(map(root.bytes_to_download, missing)))
        plan = f"{dataset}: {counted(len(missing), 'archive')} to fetch from Zenodo, {to_download}"
        console.print(Text(plan), soft_wrap=True)
        columns = *Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn()
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
            bar = bars.add_task("", total=None)

            def update(name: str, done: int, total: int) -> None:
                check()
                bars.update(bar, description=escape(name), completed=done, total=total)

            root.fetch(missing, keep_archives=keep_archives, on_progress=update)
    done = f"{counted(len(missing), 'archive')} unpacked in {out}, {len(archives) - len(missing)} there already"
    console.print(Text(f"{done}: rayasd data check {out}"), soft_wrap=True)


@data.command()
@click.argument("root", type=PATH)
@GROUND_TRUTH
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="data.resample=true, data.channel=0 …")
def check(root: Path, ground_truth: Path | None, overrides: tuple[str, ...]) -> None:
    """Read every clip below ROOT and list what is unusual or unusable.

    Exit code 1 if something is unusable.

    \b
        rayasd data check data/synthetic
        rayasd data check recordings.csv --set data.resample=true --set data.channel=mean
    """
    from rich.text import Text

    from rayasd import presets
    from rayasd.cli.display import clip_progress, wide_console
    from rayasd.data.ground_truth import scan_labelled
    from rayasd.data.inspection import inspect_clips
    from rayasd.data.years import years_told
    from rayasd.evaluation.years import settled_by_data
    from rayasd.wording import counted

    console = wide_console()
    catalog = scan_labelled(root, ground_truth)
    config = settled_by_data(presets.load("eusipco2022", overrides), catalog)
    with clip_progress(console, "reading") as on_progress:
        facts, oddities = inspect_clips(catalog, config, on_progress)
    console.print(_counts(catalog, facts))
    told, by = years_told(catalog.table, catalog.dataset)
    if told:
        console.print(Text(f"evaluation.year = auto: the rules of DCASE {told[0]}, found by {by}"), soft_wrap=True)
    for line in _attributes(catalog):
        console.print(Text(line), soft_wrap=True)
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
    raise SystemExit(1 if unusable else 0)


@data.command()
@click.argument("out", type=FOLDER)
@click.option("--year", type=click.IntRange(2020, 2026), default=2021, show_default=True,
              help="DCASE year of names, layout, channels and ground truth.")  # fmt: skip
@click.option("--machines", default="all", show_default=True, help="all, or some of the year's machine types.")
@click.option("--sections", "num_sections", type=click.IntRange(min=1, max=99), default=6, show_default=True,
              help="Sections per machine type until 2022; later years have one.")  # fmt: skip
@click.option("--train", "num_source_train", type=click.IntRange(min=1), default=1000, show_default=True,
              help="Source-domain training clips per section.")  # fmt: skip
@click.option("--target-train", "num_target_train", type=click.IntRange(min=0), default=3, show_default=True,
              help="Target-domain training clips per section.")  # fmt: skip
@click.option("--test", "num_test", type=click.IntRange(min=1), default=100, show_default=True,
              help="Normal test clips per section and domain, and as many anomalous ones.")  # fmt: skip
@click.option("--seconds", type=click.FloatRange(min=0.5), default=10.0, show_default=True, help="Length of a clip.")
@click.option("--difficulty", type=click.FloatRange(min=0, max=1), default=0.5, show_default=True,
              help="0: loud anomalies; 1: faint ones.")  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True,
              help="Each seed gives other machines.")  # fmt: skip
def synth(out: Path, year: int, machines: str, **plan: Any) -> None:
    """Write synthetic machine recordings to OUT.

    Folders, names and ground truth are those of a year of DCASE Task 2.

    \b
        rayasd data synth data/synthetic --train 30 --test 10 --seconds 4
        rayasd data synth data/as2026 --year 2026 --train 30 --test 10 --seconds 4
    """
    from rayasd.cli.display import clip_progress, wide_console
    from rayasd.data.synthetic import SynthesisPlan, machine_types, synthesize

    console = wide_console()
    chosen = choose("machine", machines, list(machine_types(year)))
    with clip_progress(console, "writing") as on_progress:
        count = synthesize(out, SynthesisPlan(year=year, machines=chosen, **plan), on_progress=on_progress)
    console.print(f"{count} synthetic clips in {out}" if count else f"{out} is there already, made by the same plan")


@data.command()
@click.argument("root", type=FOLDER)
@click.option("--pattern", default="{machine}/id_{section}/{label}/*.wav", show_default=True,
              help="Where machine, section, domain, split, label, group and attributes are in a path; * matches "
              "within a level, ** any levels.")  # fmt: skip
@click.option("--table", type=FILE, help="Table of clips, used instead of --pattern.")
@click.option("--columns", default="", metavar="path=NAME,…",
              help="Its columns, or text with columns in braces: path=sounds/{Filename},label=ClassId.")  # fmt: skip
@click.option("--machine", help="Machine type of all clips, if no path or column has it.")
@click.option("--label", type=click.Choice(["normal", "anomaly", "unknown"]), help="Label of all clips, likewise.")
@click.option("--normal", default="", metavar="WORDS", help="Your words for normal: good,healthy,*_OK.")
@click.option("--anomaly", default="", metavar="WORDS",
              help="Your words for anomalous, kept as attributes; '*': all others.")  # fmt: skip
@click.option("--split", "splits", multiple=True, metavar="WORD=train|test|…",
              help="Your words for train, test, noise (noise alone) and clean (without noise).")  # fmt: skip
@click.option("--test-fraction", type=click.FloatRange(min=0, max=0.5), default=0.2, show_default=True,
              help="Share of the normal clips (or groups) without a split that becomes test clips.")  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True,
              help="Seed of the choice of test clips.")  # fmt: skip
@click.option("--cut", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS",
              help="Cut longer recordings into clips of this length; each recording is one group.")  # fmt: skip
@click.option("--rate", type=click.IntRange(min=0), default=0, metavar="HZ",
              help="Sample rate of .npy, .mat and .csv files, kept in the manifest.")  # fmt: skip
@click.option("--column", default="", metavar="NAME", help="Column of .csv, variable of .mat files; kept as well.")
@click.option("-o", "--out", type=FILE, help="Manifest to write; default ROOT/clips.csv.")
@click.option("--root", "seen_as", type=FOLDER,
              help="Path of ROOT on the hosts that read the manifest; written into its first line.")  # fmt: skip
@click.option("--partial", is_flag=True, help="Leave out audio files that match nothing or are missing.")
@click.option("--force", is_flag=True, help="Replace a manifest that differs.")
def index(
    root: Path, out: Path | None, seen_as: Path | None, partial: bool, force: bool, cut: float | None, rate: int,
    column: str, **options: Any,
) -> None:  # fmt: skip
    """Write a manifest of your own recordings below ROOT, for --data.

    The default pattern is that of MIMII (fan/id_00/normal/00000000.wav, 8 channels):

    \b
        rayasd data index MIMII --out MIMII/clips.csv
        rayasd sweep --data MIMII/clips.csv --set data.channel=0
        rayasd data index parts --pattern '{machine}/{label}/**/*.wav' --normal good --anomaly '*'
        rayasd data index motor --table motor.csv --columns path=Filename,label=ClassId --machine motor --normal 1

    A manifest is a CSV or Parquet table with the columns path, machine, section, domain, split and label; you may write
    it yourself. If audio matches nothing, it is counted and nothing is written (exit code 1), unless --partial is
    given. Clips that are added later move no clip from training to test.
    """
    from rayasd.cli.display import wide_console
    from rayasd.config import DataConfig
    from rayasd.data import indexing
    from rayasd.data.manifest import manifest_text
    from rayasd.data.naming import SPLITS
    from rayasd.files import write_text
    from rayasd.wording import counted

    columns, splits = (_pairs(part) for part in (options.pop("columns").split(","), options.pop("splits")))
    table, pattern = options.pop("table"), options.pop("pattern")
    if strange := [word for word, split in splits.items() if split not in SPLITS]:
        raise UserError(f"--split {strange[0]}={splits[strange[0]]}: choose {', '.join(SPLITS)}")
    normal, anomaly = ([word for word in options.pop(name).split(",") if word] for name in ("normal", "anomaly"))
    rules = indexing.Rules(partial=partial, **options, normal=normal, anomaly=anomaly, splits=splits)
    if table:
        rows, left = indexing.index_table(root, table, columns, rules)
    else:
        rows, left = indexing.index_tree(root, pattern, rules)
    out = out or root / "clips.csv"
    left = [path for path in left if path.absolute() != out.absolute()]
    if left and not partial:
        tell(f"{len(left)} audio files match nothing, first: {left[0]}; --partial leaves them out", err=True)
        raise SystemExit(1)
    if cut:
        rows = indexing.cut(root, rows, cut, DataConfig(signal_rate=rate, signal_column=column))
    above = seen_as is None and out.parent.resolve() in (root.resolve(), *root.resolve().parents)
    for row in rows if above else ():
        row["path"] = (root.resolve() / row["path"]).relative_to(out.parent.resolve()).as_posix()
    facts = {"root": None if above else seen_as or root.resolve(), "rate": rate, "column": column}
    text = manifest_text(rows, facts)
    if out.exists() and not force and out.read_bytes() != text.encode():
        raise UserError(f"{out} exists and differs: --force replaces it, -o FILE chooses another place")
    try:
        write_text(out, text)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}; -o FILE chooses another place") from None
    counts = Counter((row["machine"], row["split"]) for row in rows)
    summary = ", ".join(f"{machine} {split} {n}" for (machine, split), n in sorted(counts.items()))
    groups = len({row["group"] for row in rows} - {""})
    summary += f"; {counted(groups, 'group')} of clips that stay together" if groups else ""
    more = f"; {len(left)} audio files match nothing and are left out, {left[0]} first" if left else ""
    wide_console().print(f"{out}: {counted(len(rows), 'clip')} ({summary}){more}", highlight=False, markup=False)


def _pairs(parts: Iterable[str]) -> dict[str, str]:
    """Read KEY=VALUE words."""
    words = [part.partition("=") for part in parts if part.strip()]
    if wrong := [word for word, sign, value in words if not (sign and value)]:
        raise UserError(f"{wrong[0]!r}: write NAME=VALUE")
    return {word.strip(): value.strip() for word, _, value in words}


def _attributes(catalog: "Catalog") -> Iterator[str]:
    """Print which attribute values a machine's clips have, and how many have each."""
    from rayasd.data.naming import attribute_values

    for machine in catalog.machines:
        told = catalog.of(machine)["attributes"].to_pylist()
        counts = Counter(value for each in told for value in attribute_values(each))
        if len(counts) > 1:
            more = f", and {len(counts) - _SHOWN_VALUES} more values" if len(counts) > _SHOWN_VALUES else ""
            shown = ", ".join(f"{value} {count}" for value, count in sorted(counts.items())[:_SHOWN_VALUES])
            yield f"attributes of {machine}: {shown}{more}"


def _counts(catalog: "Catalog", facts: Mapping[str, "AudioFacts"]) -> "Table":
    from rich.text import Text

    from rayasd.cli.display import plain_table

    groups: dict[tuple[str, str, str, str], list[dict[str, Any]]] = {}
    for row in catalog.table.to_pylist():
        groups.setdefault((row["machine"], row["section"], row["domain"], row["split"]), []).append(row)
    numbers = ("normal", "anomalous", "unlabelled", "seconds", "Hz")
    table = plain_table(("machine", "section", "domain", "split", *numbers), numbers, header="bold")
    for key, rows in sorted(groups.items()):
        labels = Counter(row["label"] for row in rows)
        known = [facts[row["clip"]] for row in rows if row["clip"] in facts]
        lengths = sorted({round(fact.seconds, 2) for fact in known})
        span = "–" if not lengths else f"{lengths[0]:g}" if len(lengths) == 1 else f"{lengths[0]:g}–{lengths[-1]:g}"
        rates = ", ".join(str(rate) for rate in sorted({fact.sample_rate for fact in known}))
        table.add_row(*(Text(part) for part in key), *(str(labels[label]) for label in (0, 1, None)), span, rates)
    return table
