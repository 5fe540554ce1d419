"""DCASE Task 2 data sets brought from Zenodo: archives downloaded, unpacked and laid out, each once.

Below the root: ``dev_data/<machine>/…``, ``eval_data/<machine>/…`` and ``ground_truth_data/*.csv``, as ``scan`` accepts
them; ``fetched.json``, which says what has been unpacked; ``archives/``, what is being downloaded or was to be kept.
"""

import errno
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event, Lock, Thread
from typing import Any

from rayasd.data.downloading import OnProgress, download, is_whole, size_of
from rayasd.data.unpacking import FREE_SPACE_MARGIN, BadArchiveError, move_into_place, unpack
from rayasd.data.zenodo import Archive
from rayasd.errors import UserError
from rayasd.files import now, read_record, write_json
from rayasd.wording import size

_UNPACKED_FACTOR = 1.5  # bytes of clips a byte of archive, at most: 1.3 is usual
_SECONDS_TO_END = 2.0


@dataclass(frozen=True)
class Fetched:
    """What ``fetch`` did."""

    num_new: int
    """Archives that were unpacked."""
    num_there: int
    """Archives that had been unpacked by an earlier call."""


def fetch(
    dataset: str,
    archives: Sequence[Archive],
    root: Path,
    *,
    num_jobs: int,
    keep_archives: bool,
    on_progress: OnProgress,
) -> Fetched:
    """Bring archives that are not there yet and unpack them, ``num_jobs`` at once; only one call may work on a root.

    An archive that cannot be had does not stop the others.

    Raises:
        UserError: the root holds another data set, space is too little, or (at the end) some archive cannot be had.

    """
    place = _Place(dataset, root, keep_archives, on_progress)
    place.clean_up()
    missing = [archive for archive in archives if not place.has(archive)]
    _need_space(dataset, missing, place)
    problems = _in_threads(place.bring, missing, num_jobs, place.stopped)
    place.clean_up()
    if problems:
        more = f" ({len(problems) - 1} more archives failed, too)" if len(problems) > 1 else ""
        raise UserError(f"{problems[0]}{more}")
    return Fetched(len(missing), len(archives) - len(missing))


def missing_bytes(dataset: str, archives: Iterable[Archive], root: Path) -> int:
    """Bytes that ``fetch`` would download."""
    place = _Place(dataset, root, False, lambda *_: None)
    return sum(place.left_to_download(archive) for archive in archives if not place.has(archive))


class _Place:
    """A root folder: what has been unpacked in it, and how an archive gets there."""

    def __init__(self, dataset: str, root: Path, keep_archives: bool, on_progress: OnProgress) -> None:
        self.root, self.stopped = root, Event()
        self._archives, self._unpacking = root / "archives", root / ".unpacking"
        self._keep, self._on_progress = keep_archives, on_progress
        self._one_at_a_time = Lock()
        self._record = root / "fetched.json"
        recorded = read_record(self._record)
        if recorded.get("dataset", dataset) != dataset:
            raise UserError(f"{root} holds {recorded['dataset']}: choose another --out for {dataset}")
        done = recorded.get("archives")
        self._done: dict[str, Any] = done if isinstance(done, dict) else {}
        self._dataset = dataset

    def has(self, archive: Archive) -> bool:
        """Whether the archive has been unpacked, as it is today, and its files are still there."""
        done = self._done.get(archive.file.name)
        if not isinstance(done, dict) or done.get("md5") != archive.file.md5 or not isinstance(done.get("files"), dict):
            return False
        counts = done["files"].items()
        return all(isinstance(count, int) and _num_entries(self.root / place) >= count for place, count in counts)

    def left_to_download(self, archive: Archive) -> int:
        """Bytes of an archive that are still to come."""
        target = self._archives / archive.file.name
        if size_of(target) == archive.file.size:
            return 0
        return max(0, archive.file.size - size_of(target.with_name(f"{target.name}.part")))

    def bring(self, archive: Archive) -> None:
        """Download and unpack one archive, and note that it is there."""
        file = archive.file
        target = self._archives / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            if not is_whole(file, target):
                download(file, target, stopped=self.stopped, on_progress=self._on_progress)
            with self._one_at_a_time:  # each knows how much space the others left
                self._unpack(archive, target)
        except BadArchiveError as error:
            target.unlink()
            raise UserError(
                f"{file.url}: {error}: removed, and nothing of it was kept; give a mirror with --url-base"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise UserError(
                f"no space left in {self.root}: make room and run the same command again, it goes on from here"
            ) from None
        self._on_progress(file.name, "done", file.size, file.size)

    def _unpack(self, archive: Archive, target: Path) -> None:
        into = self._unpacking / archive.file.name
        into.mkdir(parents=True)
        try:
            files = unpack(target, into, archive.place_of, stopped=self.stopped, on_progress=self._on_progress)
            move_into_place(into, self.root)
        finally:
            shutil.rmtree(into, ignore_errors=True)
        self._done[archive.file.name] = {
            "zenodo_record": archive.record,
            "md5": archive.file.md5,
            "bytes": archive.file.size,
            "unpacked": now(),
            "files": dict(sorted(files.items())),
        }
        write_json(self._record, {"dataset": self._dataset, "archives": dict(sorted(self._done.items()))})
        if not self._keep:
            target.unlink()

    def clean_up(self) -> None:
        """Remove what a call that was killed left half unpacked, and the archives' folder when it is empty."""
        shutil.rmtree(self._unpacking, ignore_errors=True)
        if self._archives.is_dir() and not any(self._archives.iterdir()):
            self._archives.rmdir()


def _need_space(dataset: str, missing: Sequence[Archive], place: _Place) -> None:
    if not missing:
        return
    packed = sum(place.left_to_download(archive) for archive in missing)
    unpacked = int(_UNPACKED_FACTOR * sum(archive.file.size for archive in missing))
    free = shutil.disk_usage(place.root).free
    if packed + unpacked + FREE_SPACE_MARGIN > free:
        raise UserError(
            f"{dataset} needs about {size(packed + unpacked)} more in {place.root} (archives and clips), "
            f"{size(free)} are free: choose another --out, or fewer --machines or --parts"
        )


def _num_entries(folder: Path) -> int:
    return sum(1 for _ in folder.iterdir()) if folder.is_dir() else 0


def _in_threads(
    work: Callable[[Archive], None], archives: Sequence[Archive], num_threads: int, stopped: Event
) -> list[UserError]:
    """Work on archives in threads; returns what failed. Anything but a ``UserError`` stops all and is raised.

    Daemon threads: a process that is interrupted need not wait for a server that says nothing.
    """
    waiting: SimpleQueue[Archive] = SimpleQueue()
    ended: SimpleQueue[BaseException | None] = SimpleQueue()
    for archive in archives:
        waiting.put(archive)

    def run() -> None:
        while not stopped.is_set():
            try:
                archive = waiting.get_nowait()
            except Empty:
                return
            try:
                work(archive)
                ended.put(None)
            except BaseException as error:  # whoever waits is told, whatever it is
                ended.put(error)

    threads = [Thread(target=run, daemon=True) for _ in range(min(num_threads, len(archives)))]
    problems = []
    try:
        for thread in threads:
            thread.start()
        for _ in archives:
            error = ended.get()
            if isinstance(error, UserError):
                problems.append(error)
            elif error is not None:
                raise error
    finally:
        stopped.set()
        deadline = time.monotonic() + _SECONDS_TO_END
        for thread in threads:
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))
    return problems
