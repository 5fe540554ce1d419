"""DCASE Task 2 file names: what each says about its clip.

Years 2021–2025 name a clip ``section_SS_{source|target}_{train|test}_{normal|anomaly}_NNNN[_attributes]``; evaluation
test clips leave out the label (2021: ``section_SS_source_test_NNNN``), later the domain too (``section_SS_NNNN``).
2020 has ``{normal|anomaly}_id_NN_NNNNNNNN`` and, in its evaluation test sets, ``id_NN_NNNNNNNN``.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from rayasd.errors import unknown
from rayasd.printing import CONTROL, printable

SPLIT_FOLDERS = {
    "train": "train", "test": "test", "source_test": "test", "target_test": "test", "test_rename": "test",
    "supplemental": "supplemental",
}  # fmt: skip
"""Folder of a machine type -> split of the clips in it; of DCASE 2025's ``supplemental``, names tell it."""

SPLITS = ("train", "test", "noise", "clean")
"""Noise: noise alone; clean: the machine without noise; neither is a training or a test clip."""

LABELS = {"normal": 0, "anomaly": 1}

_LONGEST_SHOWN = 600

_SINCE_2021 = re.compile(
    r"section_(?P<section>\d{2,4})"
    r"(?:_(?P<domain>source|target)_(?P<split>train|test)(?:_(?P<label>normal|anomaly))?)?"
    r"_(?P<number>\d+)(?:_(?P<attributes>.*))?"
)
_2020 = re.compile(r"(?:(?P<label>normal|anomaly)_)?id_(?P<section>\d{2,4})_(?P<number>\d+)")


@dataclass(frozen=True)
class ClipName:
    """Facts about a clip from its name and folder."""

    section: str  # product or machine ID, two digits or more
    domain: str
    """source, target, or unknown where the name does not tell. 2020 has no domains: its clips count as source."""
    split: str  # one of ``SPLITS``; supplemental: neither clean nor noise by its name
    label: int | None  # 0 normal, 1 anomalous, None unknown; training clips are normal unless named otherwise
    attributes: str  # the rest of the name, as it is


def parse_clip_name(stem: str, folder: str) -> ClipName:
    """Read a clip's name (without its extension) in one of the ``SPLIT_FOLDERS``.

    Raises ValueError: the name follows no known scheme, or contradicts its folder; the message says which.
    """
    split = SPLIT_FOLDERS[folder]
    if split == "supplemental":
        kind = next((kind for kind in SPLITS[2:] if kind in stem.lower()), split)
        section = re.search(r"section_(\d{2,4})", stem)
        where = next((name for name in ("source", "target") if name in stem), "unknown")
        return ClipName(section[1] if section else "00", where, kind, None, "")
    if match := _SINCE_2021.fullmatch(stem):
        named_split, domain = match["split"], match["domain"] or "unknown"
        attributes = match["attributes"] or ""
    elif match := _2020.fullmatch(stem):
        named_split, domain, attributes = None, "source", ""
    else:
        raise ValueError("its name follows no DCASE scheme")
    if named_split not in (None, split):
        raise ValueError(f"named as a {named_split} clip but lies in {folder}/")
    folder_domain = folder.removesuffix("_test") if folder.endswith("_test") else None
    if folder_domain is not None and domain not in (folder_domain, "unknown"):
        raise ValueError(f"named as a {domain}-domain clip but lies in {folder}/")
    label = LABELS[match["label"]] if match["label"] else (0 if split == "train" else None)
    return ClipName(match["section"], folder_domain or domain, split, label, attributes)


def attribute_values(attributes: str) -> list[str]:
    """List the values in a clip's attributes: ``vel_4_loc_D`` is vel=4 and loc=D; an odd number of words, one value."""
    words = [word for word in attributes.split("_") if word and word != "noAttribute"]
    if len(words) % 2:
        return ["_".join(words)]
    return [f"{name}={value}" for name, value in zip(words[::2], words[1::2], strict=True)]


def scheme(stem: str) -> int | None:
    """Return the first year that named clips like this one: 2020, 2021, or None."""
    return 2021 if _SINCE_2021.fullmatch(stem) else 2020 if _2020.fullmatch(stem) else None


def section_name(text: str) -> str:
    """Spell a section as clips' names do: 0, 00, 0.0, id_00 and section_00 are all 00; other names stay as they are."""
    match = re.fullmatch(r"(?:(?:section|id)[_ -]?)?(\d+)(?:\.0+)?", text.strip(), re.IGNORECASE)
    return match[1].zfill(2) if match else text.strip()


def matching(kind: str, word: str, names: Sequence[str]) -> str:
    """Return the name that a word means: in any case, and a section in any spelling.

    Raises UserError: none of them, or several.
    """
    if word in names:
        return word
    alike = [name for name in names if name.casefold() == word.casefold()]
    if kind == "section" and not alike:
        alike = [name for name in names if section_name(name) == section_name(word)]
    if len(alike) != 1:
        raise unknown(kind, word, names)
    return alike[0]


def name_problem(name: str) -> str | None:
    """Return why a path cannot be shown in a table, a log or a terminal; None where it can."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return "has a name that is not UTF-8"
    if CONTROL.search(name):
        return "has a control character in its name"
    return None


def shown(name: str) -> str:
    """Write a path in one line: what is not UTF-8 and control characters escaped, the middle of a long one left out."""
    text = printable(os.fsencode(name).decode("utf-8", "backslashreplace"))
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:200]}…{text[-200:]}"
