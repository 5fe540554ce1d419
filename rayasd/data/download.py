"""Files over HTTP: resumed where a connection broke, never longer than announced, checked by md5."""

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from rayasd import __version__
from rayasd.errors import UserError, one_line

RETRY_PAUSE = 2.0  # seconds before the second attempt; each further pause is twice as long
MAX_ATTEMPTS = 5  # failures in a row, without progress, after which a file is given up

_TIMEOUT = 60.0  # seconds without a byte
_CHUNK = 1 << 16
_TEMPORARY = (408, 425, 429)  # HTTP status; and 500 and above

OnFileProgress = Callable[[str, int, int], None]  # called with a file's name, bytes done and bytes in all


class _TemporaryError(Exception):
    """The server or the network failed; another attempt may work."""


@dataclass(frozen=True)
class RemoteFile:
    """A file that a server offers."""

    name: str
    url: str
    size: int  # bytes
    md5: str  # hexadecimal


def read_json(url: str) -> Any:
    """Read a JSON document. Raises UserError: the server refuses, cannot be reached or sends something else."""
    for attempt in range(MAX_ATTEMPTS):
        try:
            with _response(url) as response:
                return response.json()
        except _TemporaryError as error:
            _pause(url, error, attempt + 1)
    raise AssertionError  # the last pause raises


def download(file: RemoteFile, target: Path, on_progress: OnFileProgress) -> None:
    """Download a file by way of ``target`` + .part, which a later call continues.

    Raises UserError: the server refuses, does not answer, or sends another file, which is then removed.
    """
    part = target.with_name(f"{target.name}.part")
    if size_of(part) > file.size:
        part.unlink()
    failures, furthest = 0, size_of(part)
    while size_of(part) < file.size:
        try:
            _continue(file, part, on_progress)
        except _TemporaryError as error:
            failures = 1 if size_of(part) > furthest else failures + 1
            furthest = max(furthest, size_of(part))
            _pause(file.url, error, failures)
    if not is_whole(file, part):
        part.unlink()
        raise UserError(
            f"{file.url}: its md5 is not {file.md5} of its record: removed; run the same command again, and if "
            "this repeats, the server's copy is damaged"
        )
    with part.open("rb") as written:
        os.fsync(written.fileno())
    os.replace(part, target)


def is_whole(file: RemoteFile, path: Path) -> bool:
    """Whether ``path`` holds the file, by size and md5."""
    if size_of(path) != file.size:
        return False
    with path.open("rb") as content:
        digest = hashlib.file_digest(content, lambda: hashlib.md5(usedforsecurity=False))
    return digest.hexdigest() == file.md5


def size_of(path: Path) -> int:
    """Return the bytes of a file, 0 if there is none."""
    return path.stat().st_size if path.exists() else 0


def _continue(file: RemoteFile, part: Path, on_progress: OnFileProgress) -> None:
    """Fetch what is missing of a file, or all of it from a server without ranges."""
    done = size_of(part)
    with _response(file.url, done) as response:
        continued = response.status_code == 206
        if response.status_code == 416 or (
            continued and not response.headers.get("Content-Range", "").startswith(f"bytes {done}-")
        ):
            part.unlink()
            raise _TemporaryError("the server did not send the range that was asked for")
        done = done if continued else 0
        with part.open("ab" if continued else "wb") as out:
            for chunk in response.iter_content(_CHUNK):
                done += len(chunk)
                if done > file.size:
                    part.unlink()
                    raise UserError(f"{file.url}: longer than the {file.size} bytes of its record: removed")
                out.write(chunk)
                out.flush()  # a killed process does not ask for it again
                on_progress(file.name, done, file.size)
    if done < file.size:
        raise _TemporaryError(f"the connection ended after {done} of {file.size} bytes")


@contextmanager
def _response(url: str, first: int = 0) -> Iterator[requests.Response]:
    """Ask for a URL, from byte ``first`` on."""
    headers = {"User-Agent": f"rayasd/{__version__}", "Accept-Encoding": "identity"}
    if first:
        headers["Range"] = f"bytes={first}-"
    try:
        with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as response:
            status = f"HTTP {response.status_code} {response.reason}"
            if response.status_code >= 500 or response.status_code in _TEMPORARY:
                raise _TemporaryError(status)
            if response.status_code not in (200, 206, 416):
                raise UserError(f"{url}: {status}: does not exist, or needs a login")
            yield response
    except requests.RequestException as error:
        if isinstance(error, ValueError):  # no JSON, no address, or a redirection to what is not HTTP
            raise UserError(f"{url}: {one_line(error)}: does a proxy answer instead of Zenodo?") from None
        cause: BaseException = error
        while cause.__context__ is not None:  # the wrappers' texts name it last, behind 200 characters
            cause = cause.__context__
        raise _TemporaryError(one_line(cause) or one_line(error)) from error


def _pause(url: str, error: _TemporaryError, failures: int) -> None:
    if failures >= MAX_ATTEMPTS:
        raise UserError(
            f"{url}: {error}; tried {MAX_ATTEMPTS} times: run the same command again later, it continues from here"
        )
    time.sleep(RETRY_PAUSE * 2 ** (failures - 1))
