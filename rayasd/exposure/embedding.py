"""Embed every clip of one machine, window by window, into Parquet."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from rayasd.arrays import Indices
from rayasd.config import Config
from rayasd.data.catalog import read_catalog
from rayasd.errors import UserError
from rayasd.exposure.clips import MachineClips, gather, load_machine, standardise
from rayasd.exposure.device import Compute, choose_compute
from rayasd.exposure.feature_cache import FeatureCache
from rayasd.exposure.network import Control, Network, load_network, weights_by_epochs
from rayasd.files import replacing
from rayasd.parquet import CLASSES
from rayasd.unit import Progress, Report, UnitSpec, silent
from rayasd.windows import usual_frames, window_starts, windows_of

_COLLAPSED = 1e-6  # share of the largest value: rounding of float32 between equal embeddings


def embedding_schema(windows: pa.Schema) -> pa.Schema:
    """Return the schema of an embeddings file, one row per window, given that of ``embed_windows``.

    Beside the embedding it has a column for each output of the objective that detectors may read. The objective
    ``two-bce`` has machine_logit, and product_logits, one for each section with training clips. The file's metadata
    name the classes of the objective (``CLASSES``, JSON).
    """
    return pa.schema(
        [
            ("clip", pa.string()),
            ("group", pa.string()),  # clips that belong together have one name; null: the clip is alone
            ("section", pa.string()),
            ("domain", pa.string()),
            ("split", pa.string()),  # train, validation (held out of this unit's training), test, exposed, reserved
            ("label", pa.int8()),  # null = unknown when this was written
            ("window", pa.int32()),
            ("start", pa.float64()),  # seconds
            ("checkpoint", pa.int16()),  # epochs that the extractor had been trained for
            *windows,
        ]
    )


@torch.inference_mode()
def embed(spec: UnitSpec, report: Report = silent) -> None:
    """Write the embeddings of all clips of ``spec.unit.machine`` as ``part-0.parquet`` in ``spec.output``.

    Raises UserError: embeddings that are not finite, or are the same for every window.
    """
    config = spec.config
    compute = choose_compute(spec.device, config.network.arithmetic)
    clips = load_machine(read_catalog(spec.run.catalog, spec.data_root), spec.unit.machine, spec, report)
    usual = usual_frames(clips.table)
    num_windows = windows_of(config, usual)
    starts = np.stack([window_starts(int(n), config.window_length, num_windows) for n in clips.waveforms.frames])
    num_clips = clips.table.num_rows
    clips_per_batch = max(1, config.embedding.batch_size // num_windows)
    extractors = _extractors(spec)
    total = num_clips * len(extractors)
    report(Progress(0, total, note=compute.reason))
    share = num_windows * config.window_length / usual
    if share < 0.995:
        each = f"{num_windows} of {config.window_length / config.data.sample_rate:g} s"
        note = f"windows  {each} see {share:.0%} of a usual clip (embedding.windows_per_second)"
        report(Progress(0, total, note=note))
    with replacing(spec.run.table(spec.unit)) as path, _writing(path) as write:
        for number, (checkpoint, load) in enumerate(extractors.items()):
            extractor, ranges = compute.place(load()), list[NDArray[np.float32]]()
            shape = (clips_per_batch, num_windows)
            cache = FeatureCache(spec.cache, clips, config, compute, extractor.extractor.scaling, shape)
            for begin in range(0, num_clips, clips_per_batch):
                chosen = np.arange(begin, min(begin + clips_per_batch, num_clips))
                rows = np.repeat(chosen, num_windows)
                embedded = partial(embed_clips, extractor, compute, clips, chosen, starts[chosen], config)
                windows = cache.windows(chosen, embedded)
                embeddings = windows["embedding"].combine_chunks().flatten().to_numpy().reshape(len(rows), -1)
                ranges += [embeddings.min(axis=0), embeddings.max(axis=0)]
                table = clips.table.take(rows)
                columns = [
                    *(table[name] for name in ("clip", "group", "section", "domain")),
                    pa.array(clips.split[rows], pa.string()),
                    table["label"],
                    pa.array(np.tile(np.arange(num_windows, dtype=np.int32), len(chosen))),
                    pa.array(starts[chosen].ravel() / config.data.sample_rate),
                    pa.array(np.full(len(rows), checkpoint, np.int16)),
                    *windows.columns,
                ]
                schema = embedding_schema(windows.schema)
                if isinstance(extractor, Network):
                    schema = schema.with_metadata({CLASSES: json.dumps(extractor.objective.classes)})
                write(pa.Table.from_arrays(columns, schema=schema).combine_chunks())
                report(Progress(number * num_clips + int(chosen[-1]) + 1, total, len(chosen)))
            if why := _why_useless(ranges):
                raise UserError(f"{spec.unit}: {why} after {checkpoint} epochs: lower exposure.learning_rate "
                                f"(now {config.exposure.learning_rate:g}), or look at the clips")  # fmt: skip
            cache.save()


@contextmanager
def _writing(path: Path) -> Iterator[Callable[[pa.Table], None]]:
    """Give a function that writes tables to a Parquet file while the next one is computed; all have one schema."""
    with ExitStack() as opened, ThreadPoolExecutor(1) as pool:
        file: list[pq.ParquetWriter] = []
        pending: list[Future[object]] = []

        def write(table: pa.Table) -> None:
            if not file:
                writer = pq.ParquetWriter(path, table.schema, compression="zstd", write_page_checksum=True)
                file.append(opened.enter_context(writer))
            if pending:
                pending.pop().result()
            pending.append(pool.submit(file[0].write_table, table))

        yield write
        if pending:
            pending.pop().result()


def _why_useless(ranges: list[NDArray[np.float32]]) -> str | None:
    """Return why no detector can learn from embeddings, given the bounds of each dimension; None if it can."""
    if not np.isfinite(ranges).all():  # the minimum of NaN is NaN
        return "the extractor gives NaN or infinity"
    if np.ptp(ranges, axis=0).max() <= _COLLAPSED * np.abs(ranges).max():
        return "the extractor has collapsed: it gives the same embedding for every window"
    return None


def embed_clips(
    extractor: Network | Control, compute: Compute, clips: MachineClips, chosen: Indices, starts: NDArray[np.int64],
    config: Config,
) -> pa.Table:  # fmt: skip
    """Embed windows of clips, one clip after the other; ``starts`` (clips, windows) are their first samples.

    The network takes at most ``embedding.batch_size`` windows at once, also where a clip has more.
    """
    rows, scale, parts = np.repeat(chosen, starts.shape[1]), clips.scale(extractor.extractor.scaling), []
    for begin in range(0, starts.size, config.embedding.batch_size):
        part = slice(begin, begin + config.embedding.batch_size)
        samples = np.empty((len(rows[part]), config.window_length), np.int16)
        gather(clips, rows[part], starts.ravel()[part], config.window_length, samples)
        parts.append(embed_windows(extractor, compute, samples, scale, config))
    return pa.concat_tables(parts)


@torch.inference_mode()
def embed_windows(
    extractor: Network | Control,
    compute: Compute,
    samples: NDArray[np.int16],
    scale: tuple[float, float],
    config: Config,
) -> pa.Table:
    """Embed windows (n, samples): the column ``embedding`` and those of the objective, as in an embeddings file.

    ``samples``: of full scale 32768; ``scale``: mean and deviation that waveforms are standardised with, full scale 1.

    Raises UserError: the extractor gave something other than (n, dim) embeddings.
    """
    mean, deviation = (torch.tensor([[value]]) for value in scale)
    on_device = torch.from_numpy(samples).to(compute.device)
    with compute.autocast():
        output = extractor(standardise(on_device, mean, deviation))
    embedding, dim = output["embedding"], extractor.extractor.dim
    if embedding.shape != (len(samples), dim):
        raise UserError(
            f"network.encoder {config.network.encoder} gave embeddings of shape {tuple(embedding.shape)} for "
            f"{len(samples)} windows, not (windows, dim = {dim})"
        )
    return pa.table({name: _column(values, fixed=name == "embedding") for name, values in output.items()})


def _extractors(spec: UnitSpec) -> dict[int, Callable[[], Network | Control]]:
    """List what loads the unit's extractors, by the epochs that each was trained for."""
    config = spec.config
    if not config.network.is_trained:
        return {0: lambda: Control(config).eval()}
    folder = spec.run.output(spec.upstream("train"))
    return {epochs: partial(load_network, folder, config, path) for epochs, path in weights_by_epochs(folder).items()}


def _column(values: torch.Tensor, *, fixed: bool) -> pa.Array:
    """Turn a tensor (N,) into N numbers, one (N, k) into N lists, of a fixed length if so asked."""
    flat = pa.array(values.float().cpu().numpy().ravel())
    if values.dim() == 1:
        return flat
    if fixed:
        return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    offsets = np.arange(0, values.numel() + 1, values.shape[1], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), flat)
