"""Manifest rows of any folder tree, by a pattern of its paths, or of any table of clips, by its columns."""

import fnmatch
import hashlib
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rayasd.config import DataConfig
from rayasd.data.audio import CUT, read_facts
from rayasd.data.folders import audio_files, folders, is_audio
from rayasd.data.groups import moments
from rayasd.data.manifest import COLUMNS, LABEL_WORDS, clip_path, manifest_row
from rayasd.data.naming import name_problem, section_name, shown
from rayasd.data.tables import read_table, words
from rayasd.errors import BadClipError, UserError, unknown

Row = dict[str, str]
FOUND = (*COLUMNS[1:], "group", "attributes")
"""Fields that a pattern's placeholders or a table's columns may give, besides the path."""
_SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test", "eval": "test",
           "evaluation": "test", "noise": "noise", "clean": "clean"}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Meaning of the words in paths or columns."""

    machine: str | None = None  # default for clips whose path or row has no word; likewise ``label``
    label: str | None = None
    normal: Sequence[str] = ()
    """Words, or patterns with *, for normal clips; likewise ``anomaly``, where the word is kept as an attribute."""
    anomaly: Sequence[str] = ()
    splits: Mapping[str, str] = field(default_factory=dict)  # more words for train and test
    test_fraction: float = 0.2  # share of normal clips without a split that is held out for the test
    seed: int = 0
    partial: bool = False  # pass over rows of a table whose files do not exist

    def label_of(self, word: str, place: str) -> tuple[str, str]:
        """Return normal, anomaly or unknown, and the kind of fault (empty: none is named)."""
        own = [(pattern, "normal") for pattern in self.normal] + [(pattern, "anomaly") for pattern in self.anomaly]
        for pattern, label in sorted(own, key=lambda each: (each[0] == "*", "*" in each[0])):
            if fnmatch.fnmatchcase(word.lower(), pattern.strip().lower()):
                kind = word if label == "anomaly" and word.lower() not in LABEL_WORDS else ""
                return label, kind
        key = word.lower().removesuffix(".0")
        if key not in LABEL_WORDS:
            raise UserError(f"{place}: label {word!r} is unknown: --normal WORDS and --anomaly WORDS (or '*')")
        return {None: "unknown", 0: "normal", 1: "anomaly"}[LABEL_WORDS[key]], ""

    def split_of(self, word: str, place: str) -> str:
        """Return one of ``SPLITS``."""
        known = _SPLITS | {key.lower(): value for key, value in self.splits.items()}
        if word.lower() not in known:
            raise UserError(f"{place}: split {word!r} is neither train nor test: --split {word}=test")
        return known[word.lower()]


def index_tree(root: Path, pattern: str, rules: Rules) -> tuple[list[Row], list[Path]]:
    """Make manifest rows from the paths below ``root`` that match ``pattern``.

    ``pattern`` is a relative path in which ``{machine}``, ``{section}``, ``{domain}``, ``{split}``, ``{label}``,
    ``{group}`` and ``{attributes}`` match the folder or part of a name that has it, ``*`` anything within one level and
    ``**`` any number of levels; an audio suffix matches in any case. What is not told is filled in: section 00, domain
    source. Anomalous clips go to the test; so does a share of the normal ones without a split, drawn by a hash of their
    group or path, so that more clips move none that are there. Clips of a group stay together; without ``{group}``,
    those that differ in microphone, channel or segment alone are one.

    Returns rows with paths below ``root``, and audio files that do not match. Raises UserError: no such folder, a
    pattern that does not tell machine or label, words that no rule knows, or nothing that matches.
    """
    expression = _pattern_expression(pattern)
    if rules.label is None and not {"label", "split"} & set(expression.groupindex):
        raise UserError(f"pattern {pattern!r} does not tell {{label}}: add it, or --label normal (anomaly, unknown)")
    rows, left = [], []
    for path in _files(root, pattern):
        name = path.relative_to(root).as_posix()
        if match := expression.fullmatch(name):
            rows.append(_row(name, match.groupdict(), rules, shown(str(path))))
        else:
            left.append(path)
    if not rows:
        found = (
            f"the first path there is {shown(left[0].relative_to(root).as_posix())}" if left else "no such files there"
        )
        raise UserError(f"nothing below {root} matches --pattern {pattern!r}: {found}")
    _hold_out_normals(rows, rules)
    return rows, left


def index_table(root: Path, path: Path, columns: Mapping[str, str], rules: Rules) -> tuple[list[Row], list[Path]]:
    """Make manifest rows from a table of clips below ``root``.

    ``columns``: path, machine, section … -> a column of the table, or text with columns in braces:
    ``sound_files/{Filename}``. What is not named is the column of this name, if there is one.

    Returns as ``index_tree``. Raises UserError: a column or a file that does not exist, or what ``index_tree`` refuses.
    """
    if not root.is_dir():
        raise UserError(f"no such folder: {root}")
    records, named, _ = read_table(path)
    by_lower = {name.lower(): name for name in named}
    if strange := [key for key in columns if key not in ("path", *FOUND)]:
        raise unknown("column of a manifest", strange[0], ("path", *FOUND))
    templates = {key: f"{{{by_lower[key]}}}" for key in ("path", *FOUND) if key in by_lower}
    for key, value in columns.items():
        text = value if "{" in value else f"{{{value}}}"
        for column in re.findall(r"\{([^}]*)\}", text):
            if column.lower() not in by_lower:
                raise unknown(f"column of {path.name}", column, named)
        templates[key] = text
    if "path" not in templates:
        raise UserError(f"{path}: which column has the paths? --columns path=…, there are {', '.join(named)}")
    if rules.label is None and not {"label", "split"} & set(templates):
        raise UserError(f"{path}: no column tells the label: --columns label=…, or --label normal")
    rows = []
    for number, record in enumerate(records, 1):
        place = f"{path.name}, row {number}"
        lower = {name.lower(): words(value) for name, value in record.items() if isinstance(name, str)}
        found = {
            key: re.sub(r"\{([^}]*)\}", lambda match: lower[match[1].lower()], text)  # noqa: B023 - used at once
            for key, text in templates.items()
        }
        name = clip_path(found.pop("path"), root, place)
        if not (root / name).is_file():
            if rules.partial:
                continue
            raise UserError(f"{place}: there is no {root / name}; --partial passes over such rows")
        rows.append(_row(name, found, rules, place))
    listed = {row["path"] for row in rows}
    _hold_out_normals(rows, rules)
    return rows, [each for each in audio_files(root) if each.relative_to(root).as_posix() not in listed]


def cut(root: Path, rows: Sequence[Row], seconds: float, config: DataConfig) -> list[Row]:
    """Cut recordings into pieces of so many seconds, which stay in one group; what is left at the end goes.

    Raises UserError: a recording cannot be read.
    """
    pieces = []
    for row in rows:
        try:
            total = read_facts(root / row["path"], config).seconds
        except BadClipError as error:
            raise UserError(f"{row['path']} {error}") from None
        for number in range(int(total / seconds + 1e-6)):
            begin = f"{number * seconds:g},{(number + 1) * seconds:g}"
            pieces.append({**row, "path": f"{row['path']}{CUT}{begin}", "group": row.get("group") or row["path"]})
        if total < seconds:
            pieces.append(row)
    return pieces


def _files(root: Path, pattern: str) -> list[Path]:
    """List audio files, or those of another suffix that the pattern ends with."""
    if not root.is_dir():
        raise UserError(f"no such folder: {root}")
    suffix = Path(pattern).suffix.lower()
    if not suffix[1:].isalnum() or is_audio(f"x{suffix}"):
        return audio_files(root)
    entries = (entry for _, listed in folders(root) for entry in listed)
    return sorted(Path(e.path) for e in entries if e.name.lower().endswith(suffix) and not e.name.startswith("."))


def _row(name: str, found: Mapping[str, str], rules: Rules, place: str) -> Row:
    if problem := name_problem(name):
        raise UserError(f"{place} {problem}: rename it")
    machine = found.get("machine") or rules.machine
    if not machine:
        raise UserError(f"{place}: no machine: --machine NAME names that of all clips")
    split = rules.split_of(found["split"], place) if found.get("split") else ""
    word = found.get("label") or rules.label or ("normal" if split == "train" else "unknown")
    label, kind = rules.label_of(word, place)
    attributes = "_".join(filter(None, (found.get("attributes", ""), kind)))
    row = {
        "path": name, "machine": machine, "section": section_name(found.get("section") or "00"),
        "domain": (found.get("domain") or "source").lower(), "split": split or ("" if label == "normal" else "test"),
        "label": label, "group": found.get("group", ""), "attributes": attributes,
    }  # fmt: skip
    manifest_row({**row, "split": row["split"] or "train"}, place)  # never write what is refused when read
    return row


def _pattern_expression(pattern: str) -> re.Pattern[str]:
    expression = ""
    for part in re.split(r"(\{\w+\}|\*\*/?|\*)", pattern):
        if part.startswith("{"):
            name = part[1:-1]
            if name not in FOUND:
                raise UserError(f"pattern {pattern!r}: {part} is not one of {', '.join(FOUND)}")
            expression += f"(?P<{name}>[^/]+?)"
        else:
            expression += {"*": "[^/]*", "**": ".*", "**/": "(?:.*/)?"}.get(part, re.escape(part))
    if (suffix := re.escape(Path(pattern).suffix)) and expression.endswith(suffix):
        expression = f"{expression.removesuffix(suffix)}(?i:{suffix})"
    try:
        return re.compile(expression)
    except re.error as error:
        raise UserError(f"pattern {pattern!r}: {error}") from None


def _hold_out_normals(rows: Sequence[Row], rules: Rules) -> None:
    sections: dict[tuple[str, ...], dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    if not any(row["group"] for row in rows):
        groups = {clip: rest for rest, alike in moments(row["path"] for row in rows).items() for clip in alike}
        for row in rows:
            row["group"] = groups.get(row["path"], "")
    for row in rows:
        if not row["split"]:
            sections[row["machine"], row["section"], row["domain"]][row["group"] or row["path"]].append(row)
    for members in sections.values():
        place = {name: _place(rules.seed, name) for name in members}
        tested = {name for name, at in place.items() if at < rules.test_fraction}
        if rules.test_fraction > 0 and len(place) > 1:  # a section has one of each at least
            tested = tested or {min(place, key=lambda name: place[name])}
            tested -= {max(place, key=lambda name: place[name])}
        for name, of_group in members.items():
            for row in of_group:
                row["split"] = "test" if name in tested else "train"


def _place(seed: int, name: str) -> float:
    """Return a number from 0 to 1 that depends on these alone."""
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:8]) / 2**64
