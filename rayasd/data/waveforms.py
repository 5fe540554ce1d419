"""The waveform cache: each machine's clips decoded once into an int16 memory map that every unit on a host shares.

A cache file's name carries the sha256 of its clips' paths, sizes, modification times and splits and of the decoding
rules, so that a changed clip or rule makes another file and an old one is never read by mistake.
"""

import errno
import fcntl
import json
import os
import re
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from xxhash import xxh3_128_hexdigest

from rayasd.config import DataConfig
from rayasd.data.audio import sample_blocks
from rayasd.data.catalog import Catalog
from rayasd.data.decoding import DECODED_COLUMNS, decode_machine, processes
from rayasd.data.groups import with_groups
from rayasd.data.oddities import Oddity
from rayasd.errors import BadClipError, UserError
from rayasd.files import digest, no_links, read_record, write_json
from rayasd.host import usable_cpus
from rayasd.parquet import read_parquet

OnProgress = Callable[[int, int], None]
_TOLD_LATER = re.compile(r"(^|/)section_\d+_\d+\.[^/]*$")
"""Test clips whose domain and attributes, like their labels, the organisers tell after the challenge."""
_VERSION = 4  # version of the cache's files and of the rules for refusing clips


@dataclass(frozen=True)
class Waveforms:
    """Decoded samples of one machine's clips."""

    samples: NDArray[np.int16]  # memory map, all clips one after the other
    offsets: NDArray[np.int64]  # first sample of each clip, (clips,); ``frames``: samples of each
    frames: NDArray[np.int64]

    def window(self, clip: int, start: int, length: int, out: NDArray[np.int16]) -> None:
        """Copy ``length`` samples of a clip from ``start`` into ``out``; a clip that ends before repeats itself."""
        offset, frames = self.offsets[clip], self.frames[clip]
        if start + length <= frames:
            out[:] = self.samples[offset + start : offset + start + length]
        else:
            out[:] = self.samples[offset + (start + np.arange(length)) % frames]


def decode(
    catalog: Catalog, config: DataConfig, cache: Path, *, num_processes: int | None = None,
    on_progress: OnProgress = lambda done, total: None,
) -> Catalog:  # fmt: skip
    """Make sure that every machine's memory map exists, and add what decoding tells to the catalog.

    Returns the catalog with ``DECODED_COLUMNS``; clips left out by ``data.on_bad_clip = "skip"`` are among its
    oddities. Raises UserError: a clip that cannot be used (under ``on_bad_clip = "fail"``), or too little space for the
    cache.
    """
    catalog = with_groups(catalog, config.groups)
    unnamed = [odd for odd in catalog.oddities if odd.unusable]
    _fail_unless_skipping(unnamed, config, catalog.root)
    tables, oddities, done = [], list(catalog.oddities), 0
    with processes(catalog.table.num_rows, num_processes or usable_cpus()) as over:
        for machine in catalog.machines:
            table = catalog.of(machine)
            index = cache / f"{machine}-{_cache_key(catalog.root, table, config)}.parquet"
            decoded = _index(index)
            if decoded is None or _mended(catalog.root, decoded.schema, config):

                def report(n: int, before: int = done) -> None:
                    on_progress(before + n, catalog.table.num_rows)

                decode_machine(catalog.root, table, config, index, over, report)
                decoded = read_parquet(index)
            bad = [Oddity(clip, why, True) for clip, why in _bad_clips(decoded.schema)]
            _fail_unless_skipping(bad, config, catalog.root)
            oddities += bad
            kept = table.filter(pc.is_in(table["clip"], decoded["clip"]))
            for column in DECODED_COLUMNS.names:
                kept = kept.append_column(column, decoded[column])
            tables.append(kept)
            done += table.num_rows
    merged = pa.concat_tables(tables).combine_chunks()
    if merged.num_rows == 0:
        raise UserError(f"no clip in {catalog.root} can be used: rayasd data check {catalog.root} lists the reasons")
    return replace(catalog, table=merged.replace_schema_metadata(), oddities=tuple(oddities))


def open_waveforms(
    catalog: Catalog, machine: str, config: DataConfig, cache: Path, alive: Callable[[], object] = lambda: None
) -> Waveforms:
    """Map a machine's decoded samples, in the order of its rows in the (decoded) catalog.

    On a host whose cache lacks them, or holds other samples than it should, they are decoded there first; ``alive`` is
    called now and then meanwhile.

    Raises UserError: the clips are no longer those of the catalog.
    """
    table = catalog.of(machine)
    index = cache / f"{table['cache'][0].as_py()}.parquet"
    decoded = _whole(index, alive)
    if decoded is None:
        index.parent.mkdir(parents=True, exist_ok=True)
        with open(index.with_suffix(".lock"), "w", opener=no_links) as lock:
            while not _locked(lock):  # many units start at once on a fresh host: one decodes, the others wait
                alive()
                time.sleep(0.5)
            if _whole(index, alive) is None:
                with processes(table.num_rows, usable_cpus()) as over:
                    decode_machine(catalog.root, table, config, index, over, lambda n: alive())
        decoded = read_parquet(index)
    if not all(decoded[name].equals(table[name]) for name in ("clip", "digest")):
        raise UserError(f"the clips of {machine} in {catalog.root} have changed since the sweep was set up")
    with suppress(OSError):  # a cache of somebody else's, or read-only
        os.utime(index)  # its last use, for rayasd gc --unused-for
    return _mapped(index, decoded)  # offsets are this host's own


def _index(index: Path) -> pa.Table | None:
    """Read a machine's index; None where it is missing or damaged, or its map is not as long as it says."""
    if not index.exists():
        return None
    try:
        decoded = read_parquet(index)
        _bad_clips(decoded.schema)
    except (UserError, ValueError, KeyError, TypeError):
        return None
    if not {"clip", *DECODED_COLUMNS.names} <= set(decoded.column_names):
        return None
    last = pc.max(pc.add(decoded["offset"], decoded["frames"])).as_py() or 0
    path = index.with_suffix(".i16")
    return decoded if path.exists() and path.stat().st_size >= 2 * last else None


def _whole(index: Path, alive: Callable[[], object] = lambda: None) -> pa.Table | None:
    """Read a machine's index; None where it, or a sample of its map, is not as it was written.

    Each host reads the whole map once, and again when the file has changed, not once for each unit.
    """
    decoded = _index(index)
    if decoded is None or not decoded.num_rows:
        return decoded
    note, state = index.with_suffix(f".{socket.gethostname()}.checked"), _state(index)
    if read_record(note) == state:
        return decoded
    found = _mapped(index, decoded)
    places = zip(found.offsets.tolist(), found.frames.tolist(), decoded["digest"].to_pylist(), strict=True)
    same = True
    for offset, frames, expected in places:
        alive()  # a large map on a slow disk takes long
        same = same and xxh3_128_hexdigest(found.samples[offset : offset + frames].data) == expected
    if same:
        with suppress(OSError):  # a cache that only others may write: it is read each time
            write_json(note, state)
    return decoded if same else None


def _state(index: Path) -> dict[str, int]:
    """Return what tells that a map is the file that was checked; its index gets a new time at each use."""
    status, of_index = index.with_suffix(".i16").stat(), index.stat()
    names = ("st_dev", "st_ino", "st_size", "st_mtime_ns", "st_ctime_ns")
    return {name: getattr(status, name) for name in names} | {"index": of_index.st_ino, "index_size": of_index.st_size}


def _mapped(index: Path, decoded: pa.Table) -> Waveforms:
    samples = np.memmap(index.with_suffix(".i16"), dtype="<i2", mode="r")
    return Waveforms(samples, decoded["offset"].to_numpy(), decoded["frames"].to_numpy())


def _locked(file: IO[str]) -> bool:
    """Lock a file, unless somebody else has."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN)  # without locks, each decodes for itself
    return True


def scaling(table: pa.Table) -> tuple[float, float]:
    """Mean and standard deviation of a table's samples on the scale where int16 full scale is 1.

    Where all samples are the same, the deviation is 1: they are centred and not scaled.
    """
    count, total, squares = (sum(table[name].to_pylist()) for name in ("frames", "sum", "sum_squares"))
    mean = total / count
    if count * squares == total**2:
        return mean / 32768.0, 1.0
    return mean / 32768.0, max(squares / count - mean**2, 1e-12) ** 0.5 / 32768.0


def data_fingerprint(catalog: Catalog) -> dict[str, str]:
    """Sha256 per machine of what the clips are and hold, wherever they lie; without test labels, which come later."""
    prints = {}
    for machine in catalog.machines:
        table = catalog.of(machine)
        columns = ["clip", "section", "domain", "attributes", "split", "digest"]
        columns += ["group"] if table["group"].null_count < table.num_rows else []
        rows = table.select(columns).to_pylist()
        for row in rows:
            if row["split"] == "test" and _TOLD_LATER.search(row["clip"]):
                row.update(domain="unknown", attributes="")
        prints[machine] = digest([[row[name] for row in rows] for name in columns])
    return prints


def _bad_clips(schema: pa.Schema) -> list[tuple[str, str]]:
    """Read from a machine's index which clips could not be used, and why."""
    return json.loads(schema.metadata[b"bad_clips"])


def _mended(root: Path, index: pa.Schema, config: DataConfig) -> bool:
    """Whether a clip can be used that could not when this index was written: permissions do not show in its time."""
    for clip, _ in _bad_clips(index):
        try:
            deque(sample_blocks(root / clip, config), maxlen=0)
        except BadClipError:
            continue
        return True
    return False


def _cache_key(root: Path, table: pa.Table, config: DataConfig) -> str:
    rules = {k: v for k, v in asdict(config).items() if k not in ("on_bad_clip", "groups")}
    decisive = ["clip", "size", "mtime_ns"]
    decisive += [] if config.scale else ["split"]  # the scale of floats is that of the training clips
    files = [table[name].to_pylist() for name in decisive]
    return digest([_VERSION, str(root), rules, files])[:24]


def _fail_unless_skipping(bad: Sequence[Oddity], config: DataConfig, root: Path) -> None:
    if bad and config.on_bad_clip == "fail":
        more = f" (and {len(bad) - 1} more: rayasd data check {root})" if len(bad) > 1 else ""
        raise UserError(f"{bad[0].path} {bad[0].problem}{more}; --on-bad-clip skip leaves such clips out")
