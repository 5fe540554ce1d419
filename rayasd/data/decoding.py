"""One machine's clips decoded into its memory map, by as many processes as pay.

Processes, not threads: a clip of 10 s takes libsndfile 0.1 ms, and threads would spend more on the interpreter's lock.
"""

import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from multiprocessing import current_process
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from xxhash import xxh3_128

from rayasd.config import DataConfig
from rayasd.data.audio import FLOATS, float_peak, num_frames, read_facts, sample_blocks
from rayasd.data.samples import scale_of
from rayasd.errors import BadClipError, Interrupted, StorageError
from rayasd.files import gone, mark_as_cache, need_space, replacing, write_at
from rayasd.host import freed_memory_kept, worker_pool
from rayasd.parquet import write_parquet

DECODED_COLUMNS = pa.schema(
    [
        ("offset", pa.int64()),  # first sample in the machine's memory map
        ("frames", pa.int64()),
        # sums over the int16 samples: exact statistics of any set of clips
        ("sum", pa.int64()),
        ("sum_squares", pa.int64()),
        ("digest", pa.string()),  # xxh3 (128 bits) of the decoded samples
        ("cache", pa.string()),  # name of the machine's cache files, without suffix
        ("scale", pa.float64()),  # divisor of the machine's float samples
    ]
)

_INDEX = pa.schema([pa.field("clip", pa.string()), *DECODED_COLUMNS])

MapOver = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]
_CHUNK = 64  # clips of one call to a process
_FEW = 1500  # clips that one process decodes before others would have started


def decode_machine(
    root: Path, table: pa.Table, config: DataConfig, index: Path, over: MapOver, on_progress: Callable[[int], object]
) -> None:
    """Write a machine's samples (``index`` with suffix .i16), and then where each clip lies (``index``, Parquet).

    Clips that cannot be used are named in the index, with the reason. ``over`` maps, as ``processes`` does.

    Raises StorageError: there is no room, no permission, or no folder of clips any more.
    """
    clips = list(zip(table["clip"].to_pylist(), table["size"].to_pylist(), strict=True))
    rows: list[dict[str, Any]] = []
    try:
        index.parent.mkdir(parents=True, exist_ok=True)
        found = [length for part in over(partial(_lengths, root, config), _chunks(clips)) for length in part]
        lengths = {clip: length for (clip, _), (length, _) in zip(clips, found, strict=True)}
        floats = {clip for (clip, _), (_, of_floats) in zip(clips, found, strict=True) if of_floats}
        config = scaled(root, table, config, over, floats)
        bad = {clip: reason for clip, reason in lengths.items() if isinstance(reason, str)}
        planned = [(clip, frames) for clip, frames in lengths.items() if isinstance(frames, int)]
        offsets = np.cumsum([0, *(frames for _, frames in planned)], dtype=np.int64).tolist()
        need_space(index.parent, 2 * offsets[-1], "the waveform cache", "choose another place with --cache DIR")
        mark_as_cache(index.parent)
        places = [(clip, offset, frames) for (clip, frames), offset in zip(planned, offsets, strict=False)]
        with replacing(index.with_suffix(".i16")) as path:
            if offsets[-1]:
                with path.open("r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, 2 * offsets[-1])  # a full disk raises now
            for part, facts in zip(_chunks(places), over(partial(_decode, path, root, config), _chunks(places)),
                                   strict=True):  # fmt: skip
                for (clip, offset, _), fact in zip(part, facts, strict=True):
                    if isinstance(fact, str):
                        bad[clip] = fact
                    else:
                        values = (clip, offset, *fact, index.stem, config.scale)
                        rows.append(dict(zip(_INDEX.names, values, strict=True)))
                on_progress(len(rows) + len(bad))
            for clip in bad:
                if not (root / clip).parent.is_dir():
                    raise gone((root / clip).parent)  # not the clips' fault, which would be left out for it
        schema = _INDEX.with_metadata({"bad_clips": json.dumps(list(bad.items()))})
        write_parquet(pa.Table.from_pylist(rows, schema), index)  # last of all: a map without it does not count
    except OSError as error:
        raise StorageError(
            f"cannot write the cache {index.parent}: {error.strerror or error}; choose another --cache DIR"
        ) from None


@contextmanager
def processes(num_clips: int, num_processes: int) -> Iterator[MapOver]:
    """Give a ``map`` over processes, or the plain one where they would not pay or must not be (in a daemon)."""
    num_processes = min(num_processes, 1 + num_clips // _FEW)
    if num_processes == 1 or current_process().daemon:
        with freed_memory_kept():
            yield map
        return
    with worker_pool(num_processes) as pool:
        try:
            yield pool.map
        except BrokenProcessPool:
            raise Interrupted("a process that decoded clips was killed, perhaps for want of memory") from None


def _chunks(items: Sequence[Any]) -> list[Sequence[Any]]:
    return [items[begin : begin + _CHUNK] for begin in range(0, len(items), _CHUNK)]


def scaled(
    root: Path, table: pa.Table, config: DataConfig, over: MapOver = map, floats: Collection[str] | None = None
) -> DataConfig:
    """Settle ``data.scale`` for a machine's clips: as given, else by its training clips.

    ``floats``: the clips of floats, where they are known.
    """
    if config.scale:
        return config
    train = table.filter(pc.field("split") == "train")["clip"].to_pylist()
    to_read = train if floats is None else [clip for clip in train if clip in floats]
    found = [peak for part in over(partial(_peaks, root, config), _chunks(to_read)) for peak in part]
    return replace(config, scale=scale_of(found) if 2 * len(found) > len(train) else 1.0)


def _peaks(root: Path, config: DataConfig, clips: Sequence[str]) -> list[float]:
    return [peak for clip in clips if (peak := float_peak(root / clip, config)) is not None]


class Content:
    """Describes decoded samples by ``DECODED_COLUMNS``, block by block."""

    def __init__(self) -> None:
        self.frames, self._total, self._squares, self._digest = 0, 0, 0, xxh3_128()

    def add(self, samples: NDArray[np.int16]) -> None:
        """Take the next samples (n,)."""
        for begin in range(0, len(samples), 1 << 20):  # sums of such a block stay below 2^53: exact in float64
            wide = samples[begin : begin + (1 << 20)].astype(np.float64)
            self._total += int(wide.sum())
            self._squares += int(np.square(wide, out=wide).sum())
        self.frames += len(samples)
        self._digest.update(np.ascontiguousarray(samples).data)

    @property
    def facts(self) -> tuple[int, int, int, str]:
        """Frames, sum, sum of squares and digest."""
        return self.frames, self._total, self._squares, self._digest.hexdigest()


def _lengths(root: Path, config: DataConfig, clips: Sequence[tuple[str, int]]) -> list[tuple[int | str, bool]]:
    """Return of each clip (with its size in bytes when listed) how many samples it decodes to, or why it does not.

    The second value of each is whether it holds floats.
    """
    lengths: list[tuple[int | str, bool]] = []
    for clip, listed in clips:
        try:
            facts = read_facts(root / clip, config)
            if facts.size != listed:
                raise BadClipError(f"had {listed} bytes when listed, now {facts.size}: is it still being written?")
            lengths.append((num_frames(facts, config), facts.subtype in FLOATS))
        except BadClipError as error:
            lengths.append((str(error), False))
    return lengths


def _decode(
    path: Path, root: Path, config: DataConfig, places: Sequence[tuple[str, int, int]]
) -> list[tuple[int, int, int, str] | str]:
    """Decode clips to their places (offset and length in samples) in a file; of each: its ``Content``, or why not."""
    facts: list[tuple[int, int, int, str] | str] = []
    with path.open("r+b", buffering=0) as file:
        for clip, offset, frames in places:
            try:
                held = Content()
                for samples in sample_blocks(root / clip, config):
                    if held.frames + len(samples) > frames:  # its place would not hold it
                        break
                    content = np.ascontiguousarray(samples).data.cast("B")
                    write_at(file.fileno(), content, 2 * (offset + held.frames))
                    held.add(samples)
                if held.frames != frames:
                    raise BadClipError("changed while it was read: is it still being written?")
                facts.append(held.facts)
            except BadClipError as error:
                facts.append(str(error))
        os.fdatasync(file.fileno())  # while others decode
    return facts
