"""Files over HTTP: resumed where they broke off, never longer than announced, checked by md5."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPException, HTTPMessage, HTTPResponse, InvalidURL
from pathlib import Path
from threading import Event
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit, urlunsplit
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
)

from rayasd import __version__
from rayasd.errors import UserError, one_line

RETRY_PAUSE = 2.0
"""Seconds before the second try; each further pause is twice as long."""
MAX_TRIES = 5
"""Failures in a row, without a byte more than before, after which a file is given up for now."""
TIMEOUT = 60.0
"""Seconds without a byte after which a connection counts as broken."""

_CHUNK = 1 << 20
_LONGEST_JSON = 16 << 20
_WORTH_ANOTHER_TRY = (408, 425, 429)  # and 500 and above

OnProgress = Callable[[str, str, int, int], None]
"""Called with a file's name, what is done with it (downloading, unpacking, done), bytes done and bytes in all."""


class StoppedError(Exception):
    """Somebody asked to stop: what is there so far stays, to be resumed."""


class _BrokenOffError(Exception):
    """The server or the network failed in a way that may pass."""


class _RangeRefusedError(_BrokenOffError):
    """The server has nothing where an earlier try ended: that was no part of this file."""

    def __init__(self, content_range: str) -> None:
        super().__init__("the server refused to go on")
        total = content_range.rpartition("/")[2]
        self.size = int(total) if total.isdecimal() else None
        """Bytes that the file has, if the server says so."""


@dataclass(frozen=True)
class RemoteFile:
    """A file that a server offers."""

    name: str
    url: str
    size: int
    """Bytes."""
    md5: str
    """Hexadecimal."""


def checked_base(url: str) -> str:
    """Return scheme, host and path of a server's address, without a slash at the end.

    Raises:
        UserError: it is no http or https address of a host, or has a user name or a query.

    """
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        known = False
    if not known or "@" in parts.netloc or parts.query or parts.fragment:
        raise UserError(f"--url-base {url}: expected an address like https://zenodo.org or http://mirror:8000/zenodo")
    return urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/"), "", ""))


def read_json(url: str, stopped: Event) -> Any:
    """Read a JSON document.

    Raises:
        UserError: the server refuses, cannot be reached or sends something else.

    """
    tries = _Tries(url, stopped)
    while True:
        try:
            with _open(url) as response:
                text = b"".join(_chunks(response, _LONGEST_JSON))
                if len(text) < int(response.headers.get("Content-Length", 0)):
                    raise _BrokenOffError("the connection broke off")
            return json.loads(text)
        except _BrokenOffError as error:
            tries.failed(error)
        except ValueError:
            raise UserError(f"{url} is not JSON: is this the address of Zenodo or of a mirror of it?") from None


def download(file: RemoteFile, target: Path, *, stopped: Event, on_progress: OnProgress) -> None:
    """Bring a file to ``target``, by way of ``target`` + .part, where an earlier try is continued.

    Raises:
        UserError: the server refuses, stays away, or sends something that is not the file, which is then removed.
        StoppedError: ``stopped`` was set.

    """
    part = target.with_name(f"{target.name}.part")
    if size_of(part) > file.size:
        part.unlink()
    tries = _Tries(file.url, stopped, done=size_of(part))
    while size_of(part) != file.size:
        try:
            _continue(file, part, stopped, on_progress)
        except _BrokenOffError as error:
            if isinstance(error, _RangeRefusedError):
                part.unlink()
                if error.size not in (None, file.size):
                    raise _wrong_size(file, part, f"{error.size} bytes") from None
            tries.failed(error, done=size_of(part))
    if not is_whole(file, part):
        part.unlink()
        raise UserError(
            f"{file.url}: its md5 is not {file.md5} as the record says: removed; run the same command again, and if "
            "this repeats, the server's copy is damaged: give a mirror with --url-base"
        )
    with part.open("rb") as written:
        os.fsync(written.fileno())
    os.replace(part, target)


def is_whole(file: RemoteFile, path: Path) -> bool:
    """Whether ``path`` holds the file, by size and md5."""
    if not path.is_file() or size_of(path) != file.size:
        return False
    with path.open("rb") as content:
        digest = hashlib.file_digest(content, lambda: hashlib.md5(usedforsecurity=False))
    return digest.hexdigest() == file.md5


def size_of(path: Path) -> int:
    """Bytes of a file, 0 where there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


class _Tries:
    """Counts failures in a row: each is followed by a pause, the last by an error."""

    def __init__(self, url: str, stopped: Event, done: int = 0) -> None:
        self._url, self._stopped, self._furthest, self._count = url, stopped, done, 0

    def failed(self, reason: Exception, done: int = 0) -> None:
        """Wait before the next try. Only bytes that no earlier try has reached start the count again."""
        self._count = 1 if done > self._furthest else self._count + 1
        self._furthest = max(self._furthest, done)
        if self._count >= MAX_TRIES:
            raise UserError(
                f"{self._url}: {reason}; tried {MAX_TRIES} times: run the same command again later, it goes on from "
                "here, or give a mirror with --url-base"
            )
        if self._stopped.wait(RETRY_PAUSE * 2 ** (self._count - 1)):
            raise StoppedError


def _continue(file: RemoteFile, part: Path, stopped: Event, on_progress: OnProgress) -> None:
    """Fetch what is missing of a file, or all of it where the server knows no ranges."""
    done = size_of(part)
    with _open(file.url, done) as response:
        if response.status == 206 and not _range_begins(response, done):
            part.unlink(missing_ok=True)
            raise _BrokenOffError("the server sent another range than asked for")
        if response.status != 206:
            done = 0
        announced = response.headers.get("Content-Length")
        if announced is not None and announced != str(file.size - done):
            raise _wrong_size(file, part, f"{announced} bytes" + (f" after the first {done}" if done else ""))
        with part.open("ab" if done else "wb") as out:
            for chunk in _chunks(response, file.size - done):
                out.write(chunk)
                out.flush()  # whatever ends this process, what has come is not asked for again
                done += len(chunk)
                on_progress(file.name, "downloading", done, file.size)
                if stopped.is_set():
                    raise StoppedError
        if done < file.size:
            raise _BrokenOffError(f"the connection broke off after {done} of {file.size} bytes")
        if announced is None and any(_chunks(response, 1)):
            raise _wrong_size(file, part, "more")


def _wrong_size(file: RemoteFile, part: Path, offered: str) -> UserError:
    part.unlink(missing_ok=True)
    return UserError(
        f"{file.url}: the record says {file.size} bytes, the server offers {offered}: removed; run the same command "
        "again later or give a mirror with --url-base"
    )


def _chunks(response: HTTPResponse, most: int) -> Iterator[bytes]:
    """Bytes of a response as they arrive, no more than ``most``."""
    while most:
        try:
            chunk = response.read1(min(_CHUNK, most))
        except (OSError, HTTPException) as error:
            raise _BrokenOffError(_reason(error)) from error
        if not chunk:
            return
        most -= len(chunk)
        yield chunk


def _range_begins(response: HTTPResponse, first: int) -> bool:
    return str(response.headers.get("Content-Range", "")).strip().startswith(f"bytes {first}-")


def _open(url: str, first: int = 0) -> HTTPResponse:
    """Ask for a URL, from byte ``first`` on if that is not 0."""
    _check_scheme(url)
    headers = {"User-Agent": f"rayasd/{__version__}", "Accept": "*/*", "Accept-Encoding": "identity"}
    if first:
        headers["Range"] = f"bytes={first}-"
    opener = OpenerDirector()
    for handler in (ProxyHandler, HTTPHandler, HTTPSHandler, _Redirects, HTTPDefaultErrorHandler, HTTPErrorProcessor):
        opener.add_handler(handler())
    try:
        return opener.open(Request(url, headers=headers), timeout=TIMEOUT)
    except HTTPError as error:
        error.close()
        said = f"HTTP {error.code} {one_line(error.reason)}"
        if error.code == 416 and first:
            raise _RangeRefusedError(error.headers.get("Content-Range", "")) from error
        if error.code >= 500 or error.code in _WORTH_ANOTHER_TRY:
            raise _BrokenOffError(said) from error
        raise UserError(f"{url}: {said}: not there, or not for everybody; --url-base names a mirror") from None
    except InvalidURL:
        raise UserError(f"{url!r} is not an address") from None
    except (OSError, HTTPException) as error:
        raise _BrokenOffError(_reason(error)) from error


def _reason(error: Exception) -> str:
    cause = error.reason if isinstance(error, URLError) else error
    return one_line(cause) or type(cause).__name__


def _check_scheme(url: str) -> None:
    if not url.startswith(("http://", "https://")):
        raise UserError(f"{url!r} is not an http or https address")


class _Redirects(HTTPRedirectHandler):
    """Follows redirections to http and https, and reads nothing of the page that says so."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        _check_scheme(newurl)
        fp.close()
        return super().redirect_request(req, fp, code, msg, headers, newurl)
