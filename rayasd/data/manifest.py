"""People's own recordings: a CSV or Parquet manifest of clips, and how to make one from any folder tree."""

import csv
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from pyarrow.lib import ArrowException

from rayasd.data.folders import folders
from rayasd.data.naming import name_problem, shown
from rayasd.errors import UserError, one_line
from rayasd.files import write_csv
from rayasd.randomness import generator

COLUMNS = ("path", "machine", "section", "domain", "split", "label")
LABEL_WORDS = {
    "": None, "unknown": None, "null": None, "nan": None,
    "0": 0, "normal": 0, "ok": 0,
    "1": 1, "anomaly": 1, "anomalous": 1, "abnormal": 1,
}  # fmt: skip


def is_manifest(path: Path) -> bool:
    """Whether a data source is a manifest and not a folder tree."""
    return path.is_file() and path.suffix.lower() in (".csv", ".parquet")


def read_manifest(path: Path) -> list[dict[str, Any]]:
    """Read a manifest's rows as catalog rows (without size and time); paths are relative to the manifest's folder.

    Raises:
        UserError: a missing column, a path outside the folder, an unknown word; names the line.

    """
    try:
        if path.suffix.lower() == ".parquet":
            table = pq.read_table(path)
            _need_columns(path, table.column_names)
            records: Sequence[Mapping[str, Any]] = table.to_pylist()
        else:
            with path.open(newline="", encoding="utf-8-sig") as file:
                reader = csv.DictReader(file)
                _need_columns(path, reader.fieldnames or [])
                records = list(reader)
    except (ArrowException, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as a manifest: {one_line(error)}") from None
    rows = [_row(record, f"{path.name}, row {number}") for number, record in enumerate(records, 1)]
    first: dict[str, int] = {}
    for number, row in enumerate(rows, 1):
        if first.setdefault(row["clip"], number) != number:
            raise UserError(f"{path.name}, row {number}: {row['clip']} is listed already in row {first[row['clip']]}")
    return rows


def index_tree(root: Path, pattern: str, *, test_fraction: float | None = None, seed: int = 0) -> list[dict[str, str]]:
    """Make manifest rows from the paths below ``root`` that match ``pattern``.

    ``pattern`` is a relative path in which ``{machine}``, ``{section}``, ``{domain}``, ``{split}`` and ``{label}``
    match the folder or part of a name that has it, and ``*`` for anything within one level, for example
    ``{machine}/id_{section}/{label}/*.wav``. What the pattern does not tell is filled in: section 00, domain source,
    anomalous clips to the test split. Normal clips without a split: as many as a section has anomalous ones
    (or ``test_fraction`` of them) go to the test, drawn by ``seed``; where a section has no anomalies, all train.

    Raises:
        UserError: no such folder, a pattern without ``{machine}``, or one that nothing matches.

    """
    if not root.is_dir():
        raise UserError(f"no such folder: {root}")
    expression = _pattern_expression(pattern)
    rows: list[dict[str, str]] = []
    for path in sorted(Path(entry.path) for _, entries in folders(root, follow_links=False) for entry in entries):
        match = expression.fullmatch(path.relative_to(root).as_posix())
        if match is None or path.name.startswith(".") or not path.is_file():
            continue
        if problem := name_problem(str(path.relative_to(root))):
            raise UserError(f"{shown(str(path))} {problem}: rename it")
        found = match.groupdict()
        label = _label(found.get("label", "unknown"), str(path))
        rows.append(
            {
                "path": path.relative_to(root).as_posix(),
                "machine": found["machine"],
                "section": found.get("section", "00"),
                "domain": found.get("domain", "source"),
                "split": found.get("split", "test" if label != 0 else ""),
                "label": {None: "unknown", 0: "normal", 1: "anomaly"}[label],
            }
        )
    if not rows:
        raise UserError(f"nothing below {root} matches {pattern!r}: --pattern says how paths are made up")
    _hold_out_normals(rows, test_fraction, seed)
    return rows


def write_manifest(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Write manifest rows as CSV."""
    write_csv(path, [COLUMNS, *([row[name] for name in COLUMNS] for row in rows)])


def _need_columns(path: Path, columns: Sequence[str]) -> None:
    missing = [name for name in COLUMNS if name not in columns]
    if missing:
        raise UserError(f"{path}: no column {', '.join(missing)}; a manifest has {', '.join(COLUMNS)}")


def _row(record: Mapping[str, Any], place: str) -> dict[str, Any]:
    clip, machine, section, domain, split = (
        "" if record[name] is None else str(record[name]).strip() for name in COLUMNS[:5]
    )
    if not clip or Path(clip).is_absolute() or ".." in Path(clip).parts:
        raise UserError(f"{place}: path {clip!r} must be relative and stay below the manifest's folder")
    if {machine, section} & {"", ".", ".."} or "/" in machine + section:
        raise UserError(f"{place}: machine and section must be plain names, found {machine!r} and {section!r}")
    for name in (clip, machine, section):
        if problem := name_problem(name):
            raise UserError(f"{place}: {shown(name)} {problem}")
    if split not in ("train", "test"):
        raise UserError(f"{place}: split {split!r}: choose train or test")
    domain = domain or "source"
    if domain not in ("source", "target", "unknown"):
        raise UserError(f"{place}: domain {domain!r}: choose source, target or unknown")
    word = "" if record["label"] is None else str(record["label"])
    label = _label(word, place)
    if split == "train" and label == 1:
        raise UserError(f"{place}: an anomalous clip cannot be a training clip")
    return {
        "clip": Path(clip).as_posix(),
        "machine": machine,
        "section": section,
        "domain": domain,
        "split": split,
        "label": 0 if split == "train" else label,
        "attributes": _words(record, "attributes", place),
        "group": _words(record, "group", place) or None,
    }


def _words(record: Mapping[str, Any], column: str, place: str) -> str:
    """Read a column that a manifest may have: operating conditions, or what belongs together, in words of one's own."""
    found = record.get(column)
    text = "" if found is None else str(found).strip()
    if problem := name_problem(text):
        raise UserError(f"{place}: {column} {shown(text)!r}: {problem.removeprefix('has ')}")
    return text


def _label(word: str, place: str) -> int | None:
    key = word.strip().lower().removesuffix(".0")
    if key not in LABEL_WORDS:
        raise UserError(f"{place}: label {word!r}: choose normal, anomaly or unknown")
    return LABEL_WORDS[key]


def _pattern_expression(pattern: str) -> re.Pattern[str]:
    if "{machine}" not in pattern:
        raise UserError(
            f"pattern {pattern!r} needs {{machine}}, for example '{{machine}}/id_{{section}}/{{label}}/*.wav'"
        )
    parts = re.split(r"(\{\w+\}|\*\*/|\*)", pattern)
    expression = ""
    for part in parts:
        if part.startswith("{"):
            name = part[1:-1]
            if name not in COLUMNS[1:]:
                raise UserError(f"pattern {pattern!r}: {part} is not one of {', '.join(COLUMNS[1:])}")
            expression += f"(?P<{name}>[^/]+?)"
        else:
            expression += {"*": "[^/]*", "**/": "(?:.*/)?"}.get(part, re.escape(part))
    try:
        return re.compile(expression)
    except re.error as error:
        raise UserError(f"pattern {pattern!r}: {error}") from None


def _hold_out_normals(rows: list[dict[str, str]], test_fraction: float | None, seed: int) -> None:
    sections: dict[tuple[str, str, str], list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        sections[row["machine"], row["section"], row["domain"]].append(row)
    for key, members in sections.items():
        normals = [row for row in members if row["split"] == ""]
        anomalies = sum(row["label"] == "anomaly" for row in members)
        wanted = anomalies if test_fraction is None else round(test_fraction * len(normals))
        held_out = min(wanted, len(normals) // 2)  # never starve the training of a small section
        chosen = set(generator(seed, "index", *key).permutation(len(normals))[:held_out].tolist())
        for position, row in enumerate(normals):
            row["split"] = "test" if position in chosen else "train"
