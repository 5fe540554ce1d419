"""The folder in which a job's launchers meet: what each of them tells the others."""

import os
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayasd.cluster.folder import is_ours
from rayasd.errors import UserError
from rayasd.files import Below, no_links, read_record, write_json

_GONE_SECONDS = 600.0  # without a sign of life of the head, which comes every 5 s while a command runs


@dataclass(frozen=True)
class Meeting:
    """The folder in which a job's launchers meet; nobody else can read it."""

    root: Path

    token = Below("token")  # the job's secret
    head = Below("head.json")  # where the head's Ray listens
    complete = Below("complete.json")  # file that exists once the nodes have come together
    end = Below("end.json")  # exit code of the command
    _trouble = Below("trouble.json")

    def node(self, rank: int) -> Path:
        """State of a launcher."""
        return self.root / f"node-{rank}.json"

    def report(self, trouble: str) -> None:
        """Tell all launchers what went wrong on this node, unless another node was first: its message is kept."""
        own = self.root / f".trouble.{secrets.token_hex(4)}"
        with suppress(OSError):
            write_json(own, {"trouble": trouble})
            os.link(own, self._trouble)  # whole or not at all, and only if there is none
        with suppress(OSError):
            own.unlink()

    def trouble(self) -> str | None:
        """Return what went wrong on some node, if anything did."""
        return read(self._trouble).get("trouble")

    def missing(self, size: int, alive: set[str]) -> list[str]:
        """Describe each rank whose Ray is missing; ``alive``: addresses of the nodes that Ray has."""
        said = []
        for rank in range(1, size):
            record = read(self.node(rank))
            if not record:
                said.append(f"no word from rank {rank}")
            elif failed := record.get("failed"):
                said.append(str(failed))
            elif record.get("address") not in alive:
                said.append(f"the launcher on {record['host']} came, but not its Ray")
        return said

    def failed(self, size: int) -> int:
        """Count the workers whose Ray did not start."""
        return sum("failed" in read(self.node(rank)) for rank in range(1, size))


def abandoned(root: Path, hours: float) -> Iterator[Path]:
    """Yield this user's meetings below ``root`` whose jobs were killed: a head at work dates its file all the time."""
    youngest = time.time() - max(3600 * hours, _GONE_SECONDS)
    for folder in sorted(root.glob("launch-*")):
        with suppress(OSError):  # it ends while we look, or is another user's
            files = list(folder.iterdir())
            private = is_ours(folder) and folder.lstat().st_mode & 0o777 == 0o700
            ours = private and {"token", "head.json"} & {path.name for path in files}
            if ours and all(path.lstat().st_mtime < youngest for path in (folder, *files)):
                yield folder


def leave_mark(folder: Path, mark: str, host: str) -> None:
    """Leave this host's mark of a job in its folder of temporary files.

    ``mark`` is random, and the same on all nodes of the job.

    Raises UserError: another host has left its mark there.
    """
    with open(folder / f"mark-{mark}-{host}", "ab", opener=no_links):
        pass
    hosts = sorted(path.name.removeprefix(f"mark-{mark}-") for path in folder.glob(f"mark-{mark}-*"))
    if len(hosts) > 1:
        raise UserError(
            f"RAYASD_TMP is shared by {' and '.join(hosts)}: {folder.parent} must be a folder that each node has for "
            "itself; give another (RAYASD_TMP, --temp-dir)"
        )


def read(path: Path) -> Mapping[str, Any]:
    """Read a JSON record; empty where there is none yet."""
    with suppress(OSError):  # a shared file system may fail for a moment: asked again soon
        return read_record(path)
    return {}
