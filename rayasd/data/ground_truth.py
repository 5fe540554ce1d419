"""Labels and domains that clips' names do not tell: from the organisers' files, or from a catalog that knows more."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rayasd.data.catalog import Catalog, scan, with_columns
from rayasd.data.naming import parse_clip_name
from rayasd.data.tables import read_rows
from rayasd.errors import UserError

_GROUND_TRUTH = re.compile(
    r"ground_truth_(?P<machine>.+)_section_(?P<section>\d+)(?:_(?P<domain>source|target))?_test\.csv"
)
_PATTERNS = ("ground_truth_*.csv", "eval_data_list_*.csv")
_LABELS, _DOMAINS = "ground_truth_data", "ground_truth_domain"
_FOLDERS = (_LABELS, _DOMAINS, "datasets")


Truths = dict[tuple[str, str], dict[str, Any]]
"""What is known of label, domain and attributes, by machine (its name folded) and name of the file."""


def with_ground_truth(catalog: Catalog, folder: Path, *, must_match: bool = True) -> Catalog:
    """Fill unknown labels, domains and attributes of test clips from the organisers' files.

    * ``ground_truth_<machine>_section_SS[_<domain>]_test.csv``, rows ``clip,0|1``: labels.
    * The same names in a folder ``ground_truth_domain``, rows ``clip,0|1``: 0 source, 1 target.
    * ``eval_data_list_YEAR.csv``, lines ``machine`` and ``clip,name that tells all``; of several, the one that names
      most of the clips.

    They lie in ``folder``, in its folders of these names or beside it.

    Raises UserError: no such folder or no such files, a row that makes no sense, a label that contradicts a name, or
    (with ``must_match``) no clip that is named.
    """
    places = [folder, *(folder / name for name in _FOLDERS), folder.parent / _DOMAINS]
    if folder.name in _FOLDERS:
        places.append(folder.parent)
    files = [sorted(file for place in places for file in place.glob(pattern)) for pattern in _PATTERNS]
    if not folder.is_dir() or not any(files):
        raise UserError(f"no {_PATTERNS[0]} (<machine>_section_SS_<domain>_test) and no {_PATTERNS[1]} in {folder}")
    rows = catalog.table.select(["clip", "machine", "split", "label", "domain", "attributes"]).to_pylist()
    names = [(row["machine"].casefold(), row["clip"].rpartition("/")[2]) for row in rows]
    tested = {name for name, row in zip(names, rows, strict=True) if row["split"] == "test"}
    lists = [_of_list(file) for file in files[1]]
    truth: Truths = max(lists, key=lambda each: len(tested & each.keys()), default={})
    for file in files[0]:
        for key, facts in _of_rows(file):
            known, label = truth.setdefault(key, {}), facts.get("label")
            if label is not None and label != known.get("label", label):
                raise UserError(f"{file}: {key[1]} has label {label}, {folder} says {known['label']} elsewhere")
            known |= facts
    if must_match and not tested & truth.keys():
        raise UserError(f"the ground truth in {folder} names none of the test clips in {catalog.root}")
    for key, row in zip(names, rows, strict=True):
        true = truth.get(key, {}) if row["split"] == "test" else {}
        clip, label, domain, attributes = (row[name] for name in ("clip", "label", "domain", "attributes"))
        if label not in (None, true.get("label", label)):
            raise UserError(f"{clip}: its name says label {label}, the ground truth in {folder} says {true['label']}")
        if domain not in (None, "unknown", true.get("domain", domain)):
            raise UserError(f"{clip}: it is of the domain {domain}, {folder} says {true['domain']}")
        row |= {**true, "attributes": attributes or true.get("attributes", "")}
    return with_columns(catalog, {name: [row[name] for row in rows] for name in ("label", "domain", "attributes")})


def _of_rows(file: Path) -> Iterator[tuple[tuple[str, str], dict[str, Any]]]:
    match = _GROUND_TRUTH.fullmatch(file.name)
    if match is None:
        raise UserError(f"{file}: expected a name like ground_truth_fan_section_03_source_test.csv")
    for number, row in enumerate(read_rows(file), 1):
        if len(row) < 2 or row[1].strip() not in ("0", "1"):
            raise UserError(f"{file}, line {number}: expected 'clip name,0|1', found {','.join(row)!r}")
        value = int(row[1])
        key = match["machine"].casefold(), row[0].strip()
        if file.parent.name == _DOMAINS:
            yield key, {"domain": ("source", "target")[value]}
        else:
            yield key, {"label": value} | ({"domain": match["domain"]} if match["domain"] else {})


def _of_list(file: Path) -> Truths:
    found: Truths = {}
    machine = ""
    for number, row in enumerate(read_rows(file), 1):
        cells = [cell.strip() for cell in row if cell.strip()]
        if len(cells) == 1:
            machine = cells[0].casefold()
        elif cells:
            try:
                name = parse_clip_name(Path(cells[1]).stem, "test")
            except ValueError as error:
                raise UserError(f"{file}, line {number}: {cells[1]}: {error}") from None
            label = {} if name.label is None else {"label": name.label}
            found[machine, cells[0]] = {"domain": name.domain, "attributes": name.attributes, **label}
    return found


def _with_attribute_files(catalog: Catalog) -> Catalog:
    """Fill attributes that clips' names do not tell from ``attributes_SS.csv`` in the folders of machines.

    Its columns are file_name, d1p, d1v, d2p, d2v …: names and values.
    """
    clips, attributes = (catalog.table[name].to_pylist() for name in ("clip", "attributes"))
    folders = {
        clip.rpartition("/")[0].rpartition("/")[0] for clip, told in zip(clips, attributes, strict=True) if not told
    }
    known: dict[str, str] = {}
    for folder in sorted(folders):
        for file in sorted((catalog.root / folder).glob("attributes_*.csv")):
            for row in read_rows(file)[1:]:
                words = [word.strip() for word in row if word.strip() and word.strip() != "noAttribute"]
                if words:
                    split, _, name = words[0].rpartition("/")
                    known["/".join(filter(None, (folder, split.rpartition("/")[2], name)))] = "_".join(words[1:])
    if not known:
        return catalog
    filled = [told or known.get(clip, "") for clip, told in zip(clips, attributes, strict=True)]
    return with_columns(catalog, {"attributes": filled})


def scan_labelled(source: Path, ground_truth: Path | None) -> Catalog:
    """Catalog clips, with labels from a ground-truth folder, else from what lies in or right below the root.

    Raises UserError: as ``scan`` and ``with_ground_truth``.
    """
    catalog = _with_attribute_files(scan(source))
    if ground_truth is not None:
        return with_ground_truth(catalog, ground_truth)
    found = [catalog.root / _LABELS, *sorted(catalog.root.glob(f"*/{_LABELS}"))]
    if any(catalog.root.glob(_PATTERNS[1])):
        found.append(catalog.root)
    for place in found:
        if place.is_dir():
            catalog = with_ground_truth(catalog, place, must_match=False)
    return catalog


def with_labels_of(catalog: Catalog, known: Catalog) -> Catalog:
    """Fill unknown labels and domains of test clips from a catalog that knows more."""
    columns = ("clip", "label", "domain")
    before: Mapping[str, dict[str, object]] = {row["clip"]: row for row in known.table.select(columns).to_pylist()}
    rows = catalog.table.select(columns).to_pylist()
    for row in rows:
        more = before.get(row["clip"], row)
        row["label"] = more["label"] if row["label"] is None else row["label"]
        row["domain"] = more["domain"] if row["domain"] == "unknown" else row["domain"]
    return with_columns(catalog, {name: [row[name] for row in rows] for name in columns[1:]})
