"""Embed every clip of one machine, window by window, into Parquet."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from rayasd.data.catalog import read_catalog
from rayasd.exposure.clips import gather, load_machine, standardise
from rayasd.exposure.device import choose_compute
from rayasd.exposure.network import Statistics, load_extractor
from rayasd.files import replacing
from rayasd.unit import Progress, Report, UnitSpec, silent


def embedding_schema(dim: int) -> pa.Schema:
    """Return the schema of an embeddings file: one row a window."""
    return pa.schema(
        [
            ("clip", pa.string()),
            ("section", pa.string()),
            ("domain", pa.string()),
            ("split", pa.string()),  # train, validation (held out of this unit's training), test
            ("label", pa.int8()),  # null = unknown when this was written
            ("window", pa.int16()),
            ("start", pa.float64()),  # seconds
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
    """Write the embeddings of all clips of ``spec.unit.machine`` as ``part-0.parquet`` in ``spec.output``."""
    config = spec.config
    compute = choose_compute(spec.device, config.network.precision)
    clips = load_machine(read_catalog(spec.run.catalog, spec.data_root), spec.unit.machine, spec)
    length = round(config.front_end.window_seconds * config.data.sample_rate)
    statistics = Statistics(config).to(compute.device) if config.network.extractor == "statistics" else None
    if statistics is None:
        extractor, _ = load_extractor(spec.run.output(spec.upstream("train")), config)
        compute.place(extractor)
    num_windows = config.embedding.num_windows
    starts = np.stack([window_starts(int(n), length, num_windows) for n in clips.waveforms.frames])
    split = np.array(clips.table["split"].to_pylist(), dtype=object)
    split[clips.validation] = "validation"
    mean, deviation = torch.tensor([[clips.mean]]), torch.tensor([[clips.deviation]])
    schema = embedding_schema(config.network.embedding_dim)
    total = clips.table.num_rows
    clips_a_batch = max(1, config.embedding.batch_size // num_windows)
    report(Progress(0, total, note=compute.reason))
    with (
        replacing(spec.run.table(spec.unit)) as path,
        pq.ParquetWriter(path, schema, compression="zstd") as writer,
    ):
        for begin in range(0, total, clips_a_batch):
            chosen = np.arange(begin, min(begin + clips_a_batch, total))
            rows = np.repeat(chosen, num_windows)
            samples = np.empty((len(rows), length), np.int16)
            gather(clips, rows, starts[chosen].ravel(), length, samples)
            waveforms = standardise(samples, mean, deviation, compute.device)
            if statistics is not None:
                embedding, machine_logit, product_logits = statistics(waveforms), None, None
            else:
                with compute.autocast():
                    embedding, machine_logit, product_logits = extractor(waveforms)
            table = clips.table.take(rows)
            columns = [
                table["clip"],
                table["section"],
                table["domain"],
                pa.array(split[rows], pa.string()),
                table["label"],
                pa.array(np.tile(np.arange(num_windows, dtype=np.int16), len(chosen))),
                pa.array(starts[chosen].ravel() / config.data.sample_rate),
                _lists(embedding, pa.list_(pa.float32(), embedding.shape[1])),
                pa.nulls(len(rows), pa.float32()) if machine_logit is None else pa.array(machine_logit.cpu().numpy()),
                pa.nulls(len(rows), pa.list_(pa.float32()))
                if product_logits is None
                else _lists(product_logits, pa.list_(pa.float32())),
            ]
            writer.write_table(pa.Table.from_arrays([_whole(c) for c in columns], schema=schema))
            report(Progress(int(chosen[-1]) + 1, total, len(chosen)))


def _lists(values: torch.Tensor, kind: pa.DataType) -> pa.Array:
    """Turn a tensor (N, D) into an Arrow array of N lists."""
    flat = pa.array(values.float().cpu().numpy().ravel())
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(flat, type=kind)
    offsets = np.arange(0, values.numel() + 1, values.shape[1], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), flat)


def _whole(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
