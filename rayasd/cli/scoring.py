"""What ``rayasd score`` and ``rayasd pack`` do, once their heavy imports are paid for."""

import csv
import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rayasd.cli.display import wide_console
from rayasd.errors import UserError
from rayasd.files import replacing
from rayasd.scoring.loading import Choice, load, parts_of_run
from rayasd.scoring.model import ClipScore, MachineModel
from rayasd.scoring.packing import write_pack
from rayasd.wording import size

_SUFFIXES = {f".{name.lower()}" for name in soundfile.available_formats()}
_POLL_SECONDS, _QUIET_SECONDS = 0.5, 2.0
_COLUMNS = [field.name for field in fields(ClipScore)]
_SCHEMA = pa.schema(
    [(name, {"clip": pa.string(), "section": pa.string(), "reason": pa.string(), "by_product_head": pa.bool_(),
             "anomalous": pa.bool_()}.get(name, pa.float64())) for name in _COLUMNS]
)  # fmt: skip


def score_clips(
    words: Sequence[str],
    *,
    model: Path | None,
    choice: Choice,
    section: str | None,
    form: str,
    out: Path | None,
    watch: bool,
    device: str,
    trust: bool,
) -> int:
    """Score and show; returns the exit code: 1 if a clip could not be scored."""
    if model is None:
        if not words:
            raise UserError("name a run directory or --model FILE, and clips: rayasd score --help")
        model, words = Path(words[0]), words[1:]
    if not words:
        raise UserError("no clips: name files, folders, or - for names from the input")
    if form == "parquet" and out is None:
        raise UserError("--format parquet needs --out FILE")
    if watch and (out is not None or form not in ("table", "jsonl")):
        raise UserError("--watch writes JSON lines to the terminal: leave --format and --out away")
    clips = [] if watch else list(_clips(words))
    if not clips and not watch:
        raise UserError(f"no audio files in {', '.join(words)}")
    loaded = load(model, device=device, trust=trust, **vars(choice))
    if watch:
        with suppress(KeyboardInterrupt):
            _watch(loaded, [Path(word) for word in words], section)
        return 0
    failed = 0

    def counted() -> Iterator[ClipScore]:
        nonlocal failed
        for each in loaded.score(clips, section):
            failed += each.reason is not None
            yield each

    _write(counted(), form, out, loaded)
    return 1 if failed else 0


def pack_model(run: Path, choice: Choice, out: Path | None, licence: str) -> None:
    """Write a packed model and say what it holds."""
    parts = parts_of_run(run, choice)
    path = out or Path(f"{parts.machine}.rayasd")
    write_pack(path, parts, licence)
    systems = parts.systems_of(parts.systems)
    said = f"{path}: {parts.machine}, sections {', '.join(sorted(parts.systems))}, {systems}"
    wide_console().print(Text(f"{said}, {size(path.stat().st_size)}"), soft_wrap=True)


def _clips(words: Iterable[str]) -> Iterator[str]:
    for word in words:
        if word == "-":
            yield from (line.rstrip("\n") for line in sys.stdin if line.strip())
        elif Path(word).is_dir():
            yield from (str(path) for path in _audio_files(Path(word)))
        elif Path(word).exists():
            yield word
        else:
            raise UserError(f"no such file or folder: {word}")


def _audio_files(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.rglob("*")
        if path.suffix.lower() in _SUFFIXES and not path.name.startswith(".") and path.is_file()
    )  # fmt: skip


def _watch(model: MachineModel, folders: Sequence[Path], section: str | None) -> None:
    """Score files as they arrive, once each has not changed for a while; those that are there at the start too."""
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"--watch {folder}: no such folder")
    seen: dict[Path, tuple[int, int]] = {}
    scored: dict[Path, tuple[int, int]] = {}
    quiet_since: dict[Path, float] = {}
    print(f"watching {', '.join(map(str, folders))}; Ctrl-C ends it", file=sys.stderr, flush=True)
    while True:
        ready = []
        for path in [path for folder in folders for path in _audio_files(folder)]:
            try:
                facts = path.stat()
            except FileNotFoundError:
                continue
            state = (facts.st_size, facts.st_mtime_ns)
            if seen.get(path) != state:
                seen[path], quiet_since[path] = state, time.monotonic()
            elif scored.get(path) != state and time.monotonic() - quiet_since[path] >= _QUIET_SECONDS:
                ready.append(path)
                scored[path] = state
        for each in model.score(ready, section):
            print(json.dumps(asdict(each), ensure_ascii=False), flush=True)
        time.sleep(_POLL_SECONDS)


def _write(scores: Iterator[ClipScore], form: str, out: Path | None, model: MachineModel) -> None:
    if form == "parquet":
        assert out is not None
        with replacing(out) as path:
            pq.write_table(pa.Table.from_pylist([asdict(each) for each in scores], _SCHEMA), path)
        return
    with _opened(out) as file:
        if form == "jsonl":
            for each in scores:
                file.write(json.dumps(asdict(each), ensure_ascii=False) + "\n")
        elif form == "csv":
            writer = csv.DictWriter(file, _COLUMNS)
            writer.writeheader()
            writer.writerows(_harmless(asdict(each)) for each in scores)
        else:
            shown = wide_console() if out is None else Console(file=file, width=200)
            shown.print(_table(list(scores), model))


@contextmanager
def _opened(out: Path | None) -> Iterator[IO[str]]:
    if out is None:
        yield sys.stdout
        return
    with replacing(out) as path, path.open("w", encoding="utf-8", newline="") as file:
        yield file


def _harmless(row: dict[str, object]) -> dict[str, object]:
    """Keep spreadsheets from taking a file's name for a formula."""
    return {key: f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t") else value
            for key, value in row.items()}  # fmt: skip


def _table(scores: Sequence[ClipScore], model: MachineModel) -> Table:
    pieces = any(each.start > 0 for each in scores)
    table = Table(box=None, pad_edge=False, header_style="dim", caption_justify="left")
    for name in ("clip", *(["seconds"] if pieces else []), "section", "score", "threshold", "percentile", "decision",
                 "worst at"):  # fmt: skip
        table.add_column(name, justify="right" if name in ("score", "threshold", "percentile", "worst at") else "left",
                         overflow="fold")  # fmt: skip
    for each in scores:
        span = [f"{each.start:.1f}–{each.end:.1f}"] if pieces else []
        if each.reason is not None:
            table.add_row(Text(each.clip), *span, "", "", "", "", Text(each.reason, style="yellow"), "")
            continue
        decision = {None: Text("no training scores", style="dim"), True: Text("anomalous", style="bold red"),
                    False: Text("normal", style="green")}[each.anomalous]  # fmt: skip
        table.add_row(
            Text(each.clip), *span, f"{each.section}{' (nearest)' if each.by_product_head else ''}",
            f"{each.score:.4g}", "" if each.threshold is None else f"{each.threshold:.4g}",
            "" if each.percentile is None else f"{each.percentile:.0f} %", decision, f"{each.worst:.1f} s",
        )  # fmt: skip
    used = {each.section for each in scores if each.section is not None}
    table.caption = f"{model.parts.machine}: {model.parts.systems_of(used)}. Higher scores are more anomalous."
    return table
