"""Labels that clips' names do not tell: from the organisers' files, or from a catalog that knows more."""

import csv
import re
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from rayasd.data.catalog import SCHEMA, Catalog, scan
from rayasd.errors import UserError

_GROUND_TRUTH = re.compile(
    r"ground_truth_(?P<machine>.+)_section_(?P<section>\d+)(?:_(?P<domain>source|target))?_test\.csv"
)


def with_ground_truth(catalog: Catalog, folder: Path, *, must_match: bool = True) -> Catalog:
    """Fill the unknown labels of test clips from ``ground_truth_<machine>_section_SS_<domain>_test.csv`` files.

    Raises:
        UserError: no such folder or no such files, a row that is not ``clip,0|1``, a label that contradicts a name, or
            (with ``must_match``) no clip that is named.

    """
    files = sorted(folder.glob("ground_truth_*.csv"))
    if not files:
        raise UserError(f"no ground_truth_<machine>_section_SS_<domain>_test.csv in {folder}")
    truth: dict[tuple[str, str], int] = {}
    for file in files:
        match = _GROUND_TRUTH.fullmatch(file.name)
        if match is None:
            raise UserError(f"{file}: expected a name like ground_truth_fan_section_03_source_test.csv")
        with file.open(newline="", encoding="utf-8-sig") as lines:
            for number, row in enumerate(csv.reader(lines), 1):
                if len(row) < 2 or row[1].strip() not in ("0", "1"):
                    raise UserError(f"{file}, line {number}: expected 'clip name,0|1', found {','.join(row)!r}")
                truth[match["machine"], row[0].strip()] = int(row[1])
    tests = zip(*(catalog.table.filter(~catalog.is_train)[n].to_pylist() for n in ("machine", "clip")), strict=True)
    if must_match and not any((machine, clip.rpartition("/")[2]) in truth for machine, clip in tests):
        raise UserError(f"the ground truth in {folder} names none of the test clips in {catalog.root}")
    labels = []
    columns = (catalog.table[name].to_pylist() for name in ("machine", "clip", "split", "label"))
    for machine, clip, split, label in zip(*columns, strict=True):
        true = truth.get((machine, clip.rpartition("/")[2])) if split == "test" else None
        if true is not None and label is not None and label != true:
            raise UserError(f"{clip}: its name says label {label}, the ground truth in {folder} says {true}")
        labels.append(label if true is None else true)
    return _with_labels(catalog, labels)


def scan_labelled(source: Path, ground_truth: Path | None) -> Catalog:
    """Catalog clips, with labels from a ground-truth folder, else from a ground_truth_data folder in or below the root.

    Raises:
        UserError: as ``scan`` and ``with_ground_truth``.

    """
    catalog = scan(source)
    if ground_truth is not None:
        return with_ground_truth(catalog, ground_truth)
    for found in (catalog.root / "ground_truth_data", *sorted(catalog.root.glob("*/ground_truth_data"))):
        if found.is_dir():
            catalog = with_ground_truth(catalog, found, must_match=False)
    return catalog


def with_labels_of(catalog: Catalog, known: Catalog) -> Catalog:
    """Fill the unknown labels of test clips from a catalog that knows more."""
    labels = dict(zip(known.table["clip"].to_pylist(), known.table["label"].to_pylist(), strict=True))
    pairs = zip(catalog.table["clip"].to_pylist(), catalog.table["label"].to_pylist(), strict=True)
    return _with_labels(catalog, [labels.get(clip) if label is None else label for clip, label in pairs])


def _with_labels(catalog: Catalog, labels: list[int | None]) -> Catalog:
    position = catalog.table.schema.get_field_index("label")
    table = catalog.table.set_column(position, SCHEMA.field("label"), pa.array(labels, pa.int8()))
    return replace(catalog, table=table)
