"""DCASE Task 2 on Zenodo: the records of each data set, and the archives that they list."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from rayasd.data.download import RemoteFile, read_json
from rayasd.data.naming import SPLIT_FOLDERS
from rayasd.errors import UserError

ZENODO = "https://zenodo.org"

RECORDS: dict[str, dict[str, tuple[int, ...]]] = {
    "dcase2020": {"dev": (3678171,), "eval": (3727685, 3841772)},
    "dcase2021": {"dev": (4562016,), "eval": (4660992, 4884786), "ground-truth": (5257674,)},
    "dcase2022": {"dev": (6355122,), "eval": (6462969, 6586456)},
    "dcase2023": {"dev": (7882613,), "eval": (7830345, 7860847)},
    "dcase2024": {"dev": (10902294,), "eval": (11259435, 11363076)},
    "dcase2025": {"dev": (15097779,), "eval": (15392814, 15519362)},
    "dcase2026": {"dev": (19336329,), "eval": (20151556, 20437238)},
}
"""Data set -> part -> Zenodo records, as the organisers' baselines name them; eval: training, then test clips."""

_CLIPS = re.compile(
    r"(?P<set>dev|eval)(?:_data)?_(?:(?P<before>train|test)_)?(?P<machine>[A-Za-z0-9]+)"
    r"(?:_(?P<after>train|test)(?:_r(?P<revision>\d{1,3}))?)?\.zip"
)
_ANY_ZIP = re.compile(r"[A-Za-z0-9][\w.+-]*\.zip", re.ASCII)
_GROUND_TRUTH = re.compile(r"ground_truth_[A-Za-z0-9]+_section_\d+(?:_(?:source|target))?_test\.csv")
_MD5 = re.compile(r"md5:([0-9a-f]{32})")


@dataclass(frozen=True)
class Archive:
    """A zip file of a record: clips of one machine, or the ground truth."""

    file: RemoteFile
    record: int
    part: str
    machine: str | None  # None: all machines
    split: str | None = None  # train or test; None: both
    revision: int = 0  # revision of an archive: among archives of the same clips, the highest counts

    def place_of(self, path: PurePosixPath) -> PurePosixPath | None:
        """Return a member's path below the root; None unless it is a clip, a table of attributes or ground truth."""
        parts = path.parts
        if any(part.startswith((".", "__MACOSX")) for part in parts):
            return None
        if self.machine is None:
            return PurePosixPath("ground_truth_data", path.name) if _GROUND_TRUTH.fullmatch(path.name) else None
        if self.machine in parts[:-1]:
            parts = parts[parts.index(self.machine) + 1 :]
        elif parts[0] not in SPLIT_FOLDERS or len(parts) < 2:
            return None
        return PurePosixPath(f"{self.part}_data", self.machine, *parts)


def list_archives(dataset: str, parts: Collection[str]) -> list[Archive]:
    """Ask Zenodo which archives the parts of a data set, both as in ``RECORDS``, have.

    Raises UserError: a server that does not answer, or an answer that makes no sense.
    """
    newest: dict[tuple[object, ...], Archive] = {}
    for part in parts:
        for record in RECORDS[dataset][part]:
            for archive in _archives_of(record, part):
                same = (part, archive.machine, archive.split if archive.machine else archive.file.name)
                if same not in newest or newest[same].revision < archive.revision:
                    newest[same] = archive
    return list(newest.values())


def _archives_of(record: int, part: str) -> list[Archive]:
    url = f"{ZENODO}/api/records/{record}"
    listed = read_json(url)
    files = listed.get("files") if isinstance(listed, dict) else None
    if not isinstance(files, list):
        raise UserError(f"{url} lists no files: does a proxy answer instead of Zenodo?")
    found: list[Archive] = []
    for entry in files:
        name = str(entry.get("key", "")).rpartition("/")[2] if isinstance(entry, dict) else ""
        match = _CLIPS.fullmatch(name)
        if part == "ground-truth" and _ANY_ZIP.fullmatch(name):
            found.append(Archive(_remote_file(entry, name, url), record, part, None))
        elif match and match["set"] == part:
            split, revision = match["before"] or match["after"], int(match["revision"] or 0)
            found.append(Archive(_remote_file(entry, name, url), record, part, match["machine"], split, revision))
    if not found:
        raise UserError(f"{url} has no zip archive with a name that part {part} uses")
    return found


def _remote_file(entry: dict[str, Any], name: str, url: str) -> RemoteFile:
    links, size = entry.get("links"), entry.get("size")
    link = links.get("self") if isinstance(links, dict) else None
    md5 = _MD5.fullmatch(str(entry.get("checksum")))
    if not isinstance(link, str) or type(size) is not int or size <= 0 or md5 is None:
        raise UserError(f"{url} does not give a link, a size and an md5 checksum of {name}")
    return RemoteFile(name, link, size, md5[1])
