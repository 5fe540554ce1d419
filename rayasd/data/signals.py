"""Recordings that libsndfile does not read, as WAV files: numbers (.npy, .mat, .csv), and what ffmpeg decodes."""

import csv
import errno
import io
import os
import re
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from rayasd.data.tables import decoded
from rayasd.errors import one_line

_SEPARATORS = ",;\t| "
_MOST_SECONDS, _MOST_BYTES = 600, 4_000_000_000  # limits of one call of ffmpeg: its time, its output


def as_wave(path: Path, sample_rate: int, column: str) -> io.BytesIO:
    """Return the numbers of a file, (frames,), (frames, channels) or (channels, frames), as a WAV file of floats.

    ``column``: of a .csv, a column's name or its number from 0; of a .mat, a variable's name, or how it ends; empty:
    the only one there is.

    Raises ValueError: it holds no such numbers; the message says which there are.
    """
    read = {".npy": _of_numpy, ".mat": _of_matlab, ".csv": _of_csv}[path.suffix.lower()]
    try:
        samples = np.atleast_1d(np.squeeze(read(path, column)))
    except (OSError, ValueError, MemoryError):
        raise
    except Exception as error:  # scipy's own, zlib's, struct's
        raise ValueError(str(error)) from None
    if samples.ndim > 2 or samples.dtype.kind not in "iufb":
        raise ValueError(f"an array of {samples.dtype}, {samples.shape}, is no recording")
    samples = samples.T if samples.ndim == 2 and samples.shape[0] < samples.shape[1] else samples
    wave = io.BytesIO()
    soundfile.write(wave, samples.astype(np.float64), sample_rate, format="WAV", subtype="DOUBLE")
    wave.seek(0)
    return wave


@lru_cache(maxsize=1)
def by_ffmpeg(path: Path, size: int, mtime_ns: int) -> IO[bytes]:
    """Decode the first audio stream of a file to 16-bit WAV, in a temporary file that is gone when it is closed.

    The last one is kept, because pieces of a recording follow one another; ``size`` and ``mtime_ns`` tell its content.

    Raises ValueError: ffmpeg is not installed, cannot decode it, takes too long, or writes too much; OSError: a disk is
    full or fails.
    """
    wave = tempfile.TemporaryFile()  # noqa: SIM115 - the caller's
    command = ["ffmpeg", "-nostdin", "-v", "error", "-xerror", "-protocol_whitelist", "file", "-i", f"file:{path}",
               "-map", "0:a:0", "-c:a", "pcm_s16le", "-fs", str(_MOST_BYTES), "-f", "wav", "pipe:1"]  # fmt: skip
    try:
        done = subprocess.run(command, stdout=wave, stderr=subprocess.PIPE, timeout=_MOST_SECONDS)
    except FileNotFoundError:
        raise ValueError("it needs ffmpeg, which is not installed: install it, or convert it to WAV") from None
    except subprocess.TimeoutExpired:
        raise ValueError(f"ffmpeg needs more than {_MOST_SECONDS} s for it: cut it, or convert it to WAV") from None
    said = re.sub(r"\[[^]]* @ \w+\] *", "", done.stderr.decode(errors="replace")).strip()
    for code in (errno.ENOSPC, errno.EIO):
        if os.strerror(code) in said:
            raise OSError(code, f"{os.strerror(code)} (ffmpeg)")
    if done.returncode:
        raise ValueError(one_line(said.partition("\n")[0]) or f"ffmpeg ends with {done.returncode}")
    if wave.seek(0, io.SEEK_END) > 0.99 * _MOST_BYTES:
        raise ValueError(f"it is longer than {_MOST_BYTES} bytes of WAV: cut it")
    return wave


def _of_numpy(path: Path, column: str) -> NDArray[Any]:
    return np.asarray(np.load(path, allow_pickle=False))


def _of_matlab(path: Path, column: str) -> NDArray[Any]:
    from scipy.io import loadmat

    try:
        found = {name: value for name, value in loadmat(path).items() if not name.startswith("__")}
    except NotImplementedError:
        raise ValueError("a MATLAB 7.3 file: save it with -v7") from None
    long = {name: v for name, v in found.items() if v.dtype.kind in "iuf" and v.size > 1}
    names = [name for name in long if name == column] or [name for name in long if name.endswith(column)]
    return np.asarray(long[_only(names, list(long), "variable")])


def _of_csv(path: Path, column: str) -> NDArray[Any]:
    text = decoded(path.read_bytes())
    head, _, rest = text.partition("\n")
    separator = max(_SEPARATORS, key=head.count)
    first = [cell.strip() for cell in next(csv.reader([head], delimiter=separator), [])]
    has_names = not all(map(_is_number, first))
    names = first if has_names else [str(number) for number in range(len(first))]
    wanted = [n for n in names if n == column] or [n for n in names if not column or n.lower() == column.lower()]
    wanted = wanted or [names[int(column)]] if column.isdecimal() and int(column) < len(names) else wanted
    at = names.index(_only(wanted, names, "column"))
    table = rest if has_names else text
    return np.loadtxt(io.StringIO(table), delimiter=separator, usecols=at, ndmin=1) if table.strip() else np.empty(0)


def _only(found: list[str], known: list[str], kind: str) -> str:
    if len(found) != 1:
        raise ValueError(
            f"which {kind}? data.signal_column (index: --column) names one of {', '.join(known) or 'none'}"
        )
    return found[0]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
