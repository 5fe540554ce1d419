"""DCASE Task 2 data sets from Zenodo: archives are downloaded, unpacked and laid out, each once.

Below the root: ``dev_data/<machine>/…``, ``eval_data/<machine>/…`` and ``ground_truth_data/*.csv``, as ``scan`` reads
them; ``fetched.json``, a list of the unpacked archives; ``archives/``, unfinished downloads and archives to keep.
"""

import os
import re
import shutil
import stat
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from rayasd.data.download import OnFileProgress, download, is_whole, size_of
from rayasd.data.zenodo import Archive
from rayasd.errors import UserError, one_line
from rayasd.files import need_space, now, read_record, storage_error, write_json
from rayasd.wording import counted

_MAKE_ROOM = "make room and run the same command again, or choose another --out"
_UNPACKED_FACTOR = 1.5  # bytes of clips per byte of archive, at most: 1.3 is usual
_NAME = re.compile(r"[\w .,+=@~()-]{1,200}", re.ASCII)
_DAMAGED = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, NotImplementedError, RuntimeError)


class BadArchiveError(Exception):
    """An archive that is damaged, or that would write where it must not."""


class DataRoot:
    """A root folder: what has been unpacked in it. Only one process may work on a root."""

    def __init__(self, dataset: str, root: Path) -> None:
        self.dataset, self.root = dataset, root
        self._archives, self._unpacking = root / "archives", root / ".unpacking"
        recorded = read_record(root / "fetched.json")
        if recorded.get("dataset", dataset) != dataset:
            raise UserError(f"{root} holds {recorded['dataset']}: choose another --out for {dataset}")
        done = recorded.get("archives")
        self._done: dict[str, Any] = done if isinstance(done, dict) else {}

    def has(self, archive: Archive) -> bool:
        """Whether this version of the archive has been unpacked and its files still exist."""
        done = self._done.get(archive.file.name)
        if not isinstance(done, dict) or done.get("md5") != archive.file.md5 or not isinstance(done.get("files"), dict):
            return False
        return all(
            isinstance(count, int) and len([*(self.root / place).glob("*")]) >= count
            for place, count in done["files"].items()
        )

    def bytes_to_download(self, archive: Archive) -> int:
        """Return the bytes of an archive that are not here yet."""
        target = self._archives / archive.file.name
        here = size_of(target) or size_of(target.with_name(f"{target.name}.part"))
        return max(0, archive.file.size - here)

    def fetch(self, archives: Sequence[Archive], *, keep_archives: bool, on_progress: OnFileProgress) -> None:
        """Download and unpack archives; one that fails does not stop the others.

        Raises UserError: not enough space, or (at the end) an archive could not be fetched.
        """
        shutil.rmtree(self._unpacking, ignore_errors=True)  # left by a call that was killed
        if archives:
            packed = sum(map(self.bytes_to_download, archives))
            unpacked = int(_UNPACKED_FACTOR * sum(archive.file.size for archive in archives))
            need_space(self.root, packed + unpacked, f"{self.dataset} (archives and clips)", _MAKE_ROOM)
        problems = []
        for archive in archives:
            try:
                self._fetch(archive, keep_archives, on_progress)
            except UserError as error:
                problems.append(error)
            except OSError as error:
                raise storage_error(error, self.root) or error from None
        if self._archives.is_dir() and not any(self._archives.iterdir()):
            self._archives.rmdir()
        if problems:
            more = f" ({counted(len(problems) - 1, 'more archive')} failed too)" if len(problems) > 1 else ""
            raise UserError(f"{problems[0]}{more}")

    def _fetch(self, archive: Archive, keep_archive: bool, on_progress: OnFileProgress) -> None:
        file = archive.file
        target = self._archives / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        if not is_whole(file, target):
            download(file, target, on_progress)
        try:
            places = unpack(target, self._unpacking, archive)
        except BadArchiveError as error:
            target.unlink()
            raise UserError(f"{file.url}: {error}: removed, and nothing of it was kept") from None
        else:
            os.sync()
            for place in places:
                (self.root / place).parent.mkdir(parents=True, exist_ok=True)
                os.replace(self._unpacking / place, self.root / place)
        finally:
            shutil.rmtree(self._unpacking, ignore_errors=True)
        folders = Counter(place.parent.as_posix() for place in places)
        self._done[file.name] = {
            "zenodo_record": archive.record, "md5": file.md5, "bytes": file.size, "unpacked": now(),
            "files": dict(sorted(folders.items())),
        }  # fmt: skip
        write_json(self.root / "fetched.json", {"dataset": self.dataset, "archives": dict(sorted(self._done.items()))})
        if not keep_archive:
            target.unlink()


def unpack(path: Path, into: Path, archive: Archive) -> list[PurePosixPath]:
    """Unpack the members that belong to a data set; returns their paths below ``into``.

    Raises BadArchiveError: damaged, nothing belongs to the data set, or a member is not a plain file inside the folder;
    UserError: not enough space for the sizes that it declares.
    """
    try:
        with zipfile.ZipFile(path) as opened:
            members = [(info, _checked(info, archive)) for info in opened.infolist() if not info.is_dir()]
            wanted = [(info, place) for info, place in members if place is not None]
            if not wanted:
                raise BadArchiveError("it holds nothing that belongs here")
            need_space(into.parent, sum(info.file_size for info, _ in wanted), f"{path.name}, unpacked,", _MAKE_ROOM)
            for info, place in wanted:
                (into / place).parent.mkdir(parents=True, exist_ok=True)
                with opened.open(info) as packed, (into / place).open("xb") as out:
                    shutil.copyfileobj(packed, out)  # never more than the declared size
    except _DAMAGED as error:
        raise BadArchiveError(f"it is damaged ({one_line(error)})") from error
    except (FileExistsError, NotADirectoryError) as error:
        raise BadArchiveError(f"it holds the same path twice ({error.filename})") from None
    return [place for _, place in wanted]


def _checked(info: zipfile.ZipInfo, archive: Archive) -> PurePosixPath | None:
    """Return where a member belongs, None if it is not wanted."""
    path = PurePosixPath(info.filename)
    if path.is_absolute() or ".." in path.parts or "\\" in info.filename:
        raise BadArchiveError(f"its member {info.filename!r} leads out of the folder")
    place = archive.place_of(path)
    if place is None:
        return None
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
        raise BadArchiveError(f"its member {info.filename!r} is a link or a device")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # zipfile bounds no others
        raise BadArchiveError(f"its member {info.filename!r} is packed by method {info.compress_type}")
    if not all(map(_NAME.fullmatch, place.parts)):
        raise BadArchiveError(f"its member {info.filename!r} has a name that no clip has")
    return place
