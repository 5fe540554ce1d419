"""People's own recordings: a CSV or Parquet manifest of clips."""

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rayasd.data.naming import SPLITS, name_problem, section_name, shown
from rayasd.data.tables import read_table, words
from rayasd.errors import UserError

COLUMNS = ("path", "machine", "section", "domain", "split", "label")
_NEEDED = ("path", "machine", "split", "label")
_MORE = ("group", "attributes")
LABEL_WORDS = {
    "": None, "unknown": None, "null": None, "nan": None,
    "0": 0, "normal": 0, "ok": 0, "false": 0,
    "1": 1, "anomaly": 1, "anomalous": 1, "abnormal": 1, "true": 1,
}  # fmt: skip


def read_manifest(path: Path) -> tuple[list[dict[str, Any]], Path, tuple[int, str]]:
    """Read a manifest: any separator, line end and case of columns, as pandas and Excel write them.

    Paths are relative to its folder, or to the one that a first line ``# root: FOLDER`` names, or absolute.

    Returns catalog rows (without size and time), with paths below a root; the root; rate and column of numbers in files
    (.npy, .mat, .csv), 0 and empty where it has none. Raises UserError: a missing column, an unknown word; names the
    row.
    """
    records, columns, facts = read_table(path)
    known = {*COLUMNS, *_MORE} - {*columns}
    spelled = {column: column.lower() for column in columns if column.lower() in known}  # Path, LABEL
    records = [{spelled.get(name, name): value for name, value in record.items()} for record in records]
    columns = [spelled.get(name, name) for name in columns]
    if missing := [name for name in _NEEDED if name not in columns]:
        raise UserError(
            f"{path}: no column {', '.join(missing)}; a manifest has {', '.join(COLUMNS)}: rayasd data index ROOT "
            f"--table {path.name} --columns path=…,label=… makes one"
        )
    if problem := name_problem(facts.get("root", "")):
        raise UserError(f"{path}: the folder of # root: {problem}")
    if not (rate := facts.get("rate", "0")).isdecimal():
        raise UserError(f"{path}: # rate: {rate}: write a whole number of Hz")
    root = Path(os.path.normpath(path.parent.absolute() / facts.get("root", "")))
    rows = [manifest_row(record, f"{path.name}, row {number}") for number, record in enumerate(records, 1)]
    if any(Path(row["clip"]).is_absolute() or row["clip"].startswith("../") for row in rows):
        absolute = [os.path.normpath(root / row["clip"]) for row in rows]
        root = Path(os.path.commonpath([str(Path(each).parent) for each in absolute]))
        for row, each in zip(rows, absolute, strict=True):
            row["clip"] = Path(each).relative_to(root).as_posix()
    first: dict[str, int] = {}
    spelling: dict[str, str] = {}
    for number, row in enumerate(rows, 1):
        row["machine"] = spelling.setdefault(row["machine"].casefold(), row["machine"])
        if first.setdefault(row["clip"], number) != number:
            raise UserError(f"{path.name}, row {number}: {row['clip']} is listed already in row {first[row['clip']]}")
    return rows, root, (int(rate), facts.get("column", ""))


def manifest_text(rows: Sequence[Mapping[str, str]], facts: Mapping[str, object] = MappingProxyType({})) -> str:
    """Write manifest rows as CSV; ``facts``: root (the folder of their paths, if it is another), rate, column."""
    columns = [*COLUMNS, *(name for name in _MORE if any(row.get(name) for row in rows))]
    text = io.StringIO(newline="")
    text.writelines(f"# {name}: {value}\n" for name, value in facts.items() if value)
    csv.writer(text, lineterminator="\n").writerows([columns, *([row[name] for name in columns] for row in rows)])
    return text.getvalue()


def clip_path(text: str, root: Path, place: str) -> str:
    """Return a table's path as one below ``root``, with forward slashes.

    Raises UserError: it is empty or not below ``root``.
    """
    text = text.replace("\\", "/") if "\\" in text and not (root / text).exists() else text
    if text and root.absolute() in Path(os.path.normpath(root.absolute() / text)).parents:
        return Path(os.path.normpath(root.absolute() / text)).relative_to(root.absolute()).as_posix()
    raise UserError(f"{place}: path {text!r} is not below {root}")


def manifest_row(record: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Turn a manifest's row into one of a catalog. Raises UserError: it has a word that cannot be."""
    clip, machine, section, domain, split = (words(record.get(name)) for name in COLUMNS[:5])
    if not clip:
        raise UserError(f"{place}: no path")
    if "\\" in clip:
        clip = clip.replace("\\", "/")
    section, split = section_name(section or "00"), split.lower()
    if {machine, section} & {"", ".", ".."} or "/" in machine + section:
        raise UserError(f"{place}: machine and section must be plain names, found {machine!r} and {section!r}")
    group, attributes = (words(record.get(name)) for name in _MORE)
    for name in (clip, machine, section, group, attributes):
        if problem := name_problem(name):
            raise UserError(f"{place}: {shown(name)!r} {problem}")
    if split not in SPLITS:
        raise UserError(f"{place}: split {split!r}: choose {', '.join(SPLITS)}")
    domain = domain.lower() or "source"
    if domain not in ("source", "target", "unknown"):
        raise UserError(f"{place}: domain {domain!r}: choose source, target or unknown")
    word = words(record.get("label"))
    key = word.lower().removesuffix(".0")
    if key not in LABEL_WORDS:
        raise UserError(f"{place}: label {word!r}: choose normal, anomaly or unknown")
    label = LABEL_WORDS[key]
    if split == "train" and label == 1:
        raise UserError(f"{place}: an anomalous clip cannot be a training clip")
    return {
        "clip": os.path.normpath(clip),
        "machine": machine,
        "section": section,
        "domain": domain,
        "split": split,
        "label": 0 if split == "train" else label,
        "attributes": attributes,
        "group": group or None,
    }
