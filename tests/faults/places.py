"""Places that fail: small disks that can be filled, made read-only and taken away. They take root."""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


class Place:
    """A mounted folder."""

    def __init__(self, folder: Path, *options: str, source: Path | None = None) -> None:
        """Mount a tmpfs, or with ``source`` another folder, which outlives the mount."""
        self.folder, self._source = folder, source
        folder.mkdir(parents=True, exist_ok=True)
        self.mount(*options)

    def mount(self, *options: str) -> None:
        what = ["-t", "tmpfs", "none"] if self._source is None else ["--bind", str(self._source)]
        more = ["-o", ",".join(options)] if options else []
        subprocess.run(["mount", *more, *what, str(self.folder)], check=True)

    def remount(self, options: str) -> bool:
        """Change how it is mounted; tells whether that could be done: not while a file is open for writing."""
        command = ["mount", "-o", f"remount,{options}", str(self.folder)]
        return subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode == 0

    def detach(self) -> None:
        """Take it away from under whoever uses it, as when a server goes."""
        subprocess.run(["umount", "-l", str(self.folder)], check=True)

    def fill(self, leave: int) -> Path:
        """Take all but so many bytes of what is free; returns the file that does."""
        filler = self.folder / "filler"
        free = shutil.disk_usage(self.folder).free
        with filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, free - leave))
        return filler


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[type[Place]]:
    """Let a test mount places; they are gone when it ends."""
    trial = tmp_path / "trial"
    trial.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "none", str(trial)], check=False).returncode:
        pytest.skip("only root may mount, and not in every container")
    subprocess.run(["umount", str(trial)], check=True)
    yield Place
    for line in reversed(Path("/proc/mounts").read_text().splitlines()):
        if (point := line.split()[1]).startswith(f"{tmp_path}/"):
            subprocess.run(["umount", "-l", point], check=True)


@contextmanager
def without_roots_powers() -> Iterator[None]:
    """Let permissions hold for this thread although it is root's (Linux capabilities of version 3)."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    before = (ctypes.c_uint32 * 6)()  # twice: effective, permitted, inheritable
    assert libc.capget(header, before) == 0, os.strerror(ctypes.get_errno())
    less = type(before)(*before)
    less[0] &= ~(1 << 1 | 1 << 2)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert libc.capset(header, less) == 0, os.strerror(ctypes.get_errno())
    try:
        yield
    finally:
        assert libc.capset(header, before) == 0, os.strerror(ctypes.get_errno())


def flip(path: Path, place: float = 0.5) -> None:
    """Flip a bit of a file, at a part of its length."""
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 0x10
    status = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
