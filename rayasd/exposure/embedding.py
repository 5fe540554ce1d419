"""Embed every clip of one machine, window by window, into Parquet."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from rayasd.config import Config
from rayasd.data.catalog import read_catalog
from rayasd.errors import UserError
from rayasd.exposure.clips import gather, load_machine, standardise
from rayasd.exposure.device import Compute, choose_compute
from rayasd.exposure.network import WEIGHTS, Output, kept_weights, load_extractor, make_control
from rayasd.files import replacing
from rayasd.unit import Progress, Report, UnitSpec, silent

_COLLAPSED = 1e-6  # of the largest value: what float32 leaves of equal embeddings


def embedding_schema(dim: int) -> pa.Schema:
    """Return the schema of an embeddings file: one row a window."""
    return pa.schema(
        [
            ("clip", pa.string()),
            ("section", pa.string()),
            ("domain", pa.string()),
            ("split", pa.string()),  # train, validation (held out of this unit's training), test, exposed, reserved
            ("label", pa.int8()),  # null = unknown when this was written
            ("window", pa.int16()),
            ("start", pa.float64()),  # seconds
            ("checkpoint", pa.int16()),  # epochs that the extractor had been trained for
            ("embedding", pa.list_(pa.float32(), dim)),
            ("machine_logit", pa.float32()),  # null for the statistics control
            ("product_logits", pa.list_(pa.float32())),  # one a section with training clips; null likewise
        ]
    )


def window_starts(frames: int, length: int, num_windows: int) -> NDArray[np.int64]:
    """First samples of evenly spaced windows, the last flush with the clip's end; all 0 for a clip of one window."""
    return np.linspace(0, max(frames - length, 0), num_windows).round().astype(np.int64)


@torch.inference_mode()
def embed(spec: UnitSpec, report: Report = silent) -> None:
    """Write the embeddings of all clips of ``spec.unit.machine`` as ``part-0.parquet`` in ``spec.output``.

    Raises:
        UserError: embeddings that are not finite, or are the same for every window.

    """
    config = spec.config
    compute = choose_compute(spec.device, config.network.precision)
    clips = load_machine(read_catalog(spec.run.catalog, spec.data_root), spec.unit.machine, spec, report)
    length = config.window_length
    num_windows = config.embedding.num_windows
    starts = np.stack([window_starts(int(n), length, num_windows) for n in clips.waveforms.frames])
    schema = embedding_schema(config.network.embedding_dim)
    num_clips = clips.table.num_rows
    clips_a_batch = max(1, config.embedding.batch_size // num_windows)
    extractors = _extractors(spec)
    total = num_clips * len(extractors)
    report(Progress(0, total, note=compute.reason))
    with (
        replacing(spec.run.table(spec.unit)) as path,
        pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True) as writer,
        ThreadPoolExecutor(1) as pool,
    ):
        written: Future[object] = pool.submit(int)  # nothing yet
        for number, (checkpoint, load) in enumerate(extractors.items()):
            extractor, span = compute.place(load()), Span()
            for begin in range(0, num_clips, clips_a_batch):
                chosen = np.arange(begin, min(begin + clips_a_batch, num_clips))
                rows = np.repeat(chosen, num_windows)
                samples = np.empty((len(rows), length), np.int16)
                gather(clips, rows, starts[chosen].ravel(), length, samples)
                windows = embed_windows(extractor, compute, samples, (clips.mean, clips.deviation), config)
                span.add(windows["embedding"])
                table = clips.table.take(rows)
                columns = [
                    table["clip"],
                    table["section"],
                    table["domain"],
                    pa.array(clips.split[rows], pa.string()),
                    table["label"],
                    pa.array(np.tile(np.arange(num_windows, dtype=np.int16), len(chosen))),
                    pa.array(starts[chosen].ravel() / config.data.sample_rate),
                    pa.array(np.full(len(rows), checkpoint, np.int16)),
                    *windows.columns,
                ]
                written.result()
                rows_of_batch = pa.Table.from_arrays([_whole(c) for c in columns], schema=schema)
                written = pool.submit(writer.write_table, rows_of_batch)  # while the next batch computes
                report(Progress(number * num_clips + int(chosen[-1]) + 1, total, len(chosen)))
            if why := span.problem:
                raise UserError(f"{spec.unit}: {why} after {checkpoint} epochs: lower exposure.learning_rate "
                                f"(now {config.exposure.learning_rate:g}), or look at the clips")  # fmt: skip
        written.result()


class Span:
    """Smallest and largest value of each dimension over the embeddings added."""

    def __init__(self) -> None:
        self.low: Any = np.inf
        self.high: Any = -np.inf

    def add(self, embeddings: pa.ChunkedArray) -> None:
        """Take in a column of n embeddings."""
        flat = embeddings.combine_chunks().flatten().to_numpy().reshape(len(embeddings), -1)
        self.low = np.minimum(self.low, flat.min(axis=0))  # NaN stays
        self.high = np.maximum(self.high, flat.max(axis=0))

    @property
    def problem(self) -> str | None:
        """Why no detector can learn from these embeddings; None if it can."""
        if not np.isfinite([self.low, self.high]).all():
            return "the extractor gives NaN or infinity"
        if (self.high - self.low).max() <= _COLLAPSED * np.abs([self.low, self.high]).max():
            return "the extractor has collapsed: it gives the same embedding for every window"
        return None


@torch.inference_mode()
def embed_windows(
    extractor: torch.nn.Module,
    compute: Compute,
    samples: NDArray[np.int16],
    scale: tuple[float, float],
    config: Config,
) -> pa.Table:
    """Embed windows (n, samples): columns embedding, machine_logit and product_logits, as in an embeddings file.

    Args:
        extractor: on the device of ``compute``, in evaluation mode.
        compute: device and arithmetic.
        samples: of full scale 32768.
        scale: mean and deviation of the machine's training samples, full scale 1.
        config: with ``network.embedding_dim``, D.

    Raises:
        UserError: the extractor gave something other than (n, D) embeddings.

    """
    mean, deviation = (torch.tensor([[value]]) for value in scale)
    on_device = torch.from_numpy(samples).to(compute.device)
    with compute.autocast():
        output = extractor(standardise(on_device, mean, deviation))
    embedding = output.embedding if isinstance(output, Output) else output
    if embedding.shape != (len(samples), config.network.embedding_dim):
        raise UserError(
            f"network.extractor {config.network.extractor} gave embeddings of shape {tuple(embedding.shape)} for "
            f"{len(samples)} windows, not (windows, network.embedding_dim = {config.network.embedding_dim})"
        )
    columns = [_lists(embedding, pa.list_(pa.float32(), embedding.shape[1])), *_logits(output, len(samples))]
    return pa.Table.from_arrays(columns, names=["embedding", "machine_logit", "product_logits"])


def _extractors(spec: UnitSpec) -> dict[int, Callable[[], torch.nn.Module]]:
    """List what loads the unit's extractors, by the epochs that each was trained for."""
    config, folder = spec.config, spec.run.output(spec.upstream("train"))
    if not config.network.is_trained:
        return {0: lambda: make_control(config).eval()}
    weights = {**kept_weights(folder), config.exposure.epochs: folder / WEIGHTS}
    return {epochs: partial(_load, folder, config, path) for epochs, path in weights.items()}


def _load(folder: Path, config: Config, weights: Path) -> torch.nn.Module:
    return load_extractor(folder, config, weights)[0]


def _logits(output: Output | torch.Tensor, num_rows: int) -> list[pa.Array]:
    """Machine logits and product logits of windows; null where the extractor has none."""
    if not isinstance(output, Output):
        return [pa.nulls(num_rows, pa.float32()), pa.nulls(num_rows, pa.list_(pa.float32()))]
    machine = pa.array(output.machine_logit.float().cpu().numpy())
    return [machine, _lists(output.product_logits, pa.list_(pa.float32()))]


def _lists(values: torch.Tensor, kind: pa.DataType) -> pa.Array:
    """Turn a tensor (N, D) into an Arrow array of N lists."""
    flat = pa.array(values.float().cpu().numpy().ravel())
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(flat, type=kind)
    offsets = np.arange(0, values.numel() + 1, values.shape[1], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), flat)


def _whole(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
