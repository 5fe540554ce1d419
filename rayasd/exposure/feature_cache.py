"""The feature cache: what a frozen encoder gives for a clip is computed once for all seeds, variants and runs.

The files lie beside the decoded waveforms. A file's name carries the sha256 of all that decides the features of given
samples, weights included; within it, clips go by the digests of their samples. Units and hosts may write one file at
the same time: clips that one adds and another does not keep are computed again. It may be deleted at any time.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rayasd.arrays import Indices
from rayasd.config import Config
from rayasd.errors import UserError
from rayasd.exposure.clips import MachineClips
from rayasd.exposure.device import Compute
from rayasd.exposure.encoders import ENCODERS
from rayasd.files import digest
from rayasd.host import package_versions
from rayasd.parquet import read_parquet, write_parquet
from rayasd.pretrained import base_paths, encoder_names, fingerprint, relocated
from rayasd.stages import EMBED

_LIBRARIES = ("torch", "torchaudio", "timm", "transformers", "speechbrain")


class FeatureCache:
    """Features of a machine's clips under one encoder; of an encoder that is trained, nothing is kept.

    ``shape``: clips of a forward pass, which decide the rounding, and evenly spaced windows of a clip.
    """

    def __init__(
        self, folder: Path, clips: MachineClips, config: Config, compute: Compute, scaling: str, shape: tuple[int, int]
    ) -> None:
        self._digests: list[str] = clips.table["digest"].to_pylist()
        self._windows = shape[1]
        self._known: dict[str, NDArray[np.float32]] = {}
        self._new: NDArray[np.float32] | None = None  # (clips, values) at once: small ones leave holes in the heap
        self._path: Path | None = None
        # the code of somebody else's encoder may change, and nothing here would tell
        if config.network.is_trained or not set(encoder_names(config.network.encoder)) <= ENCODERS.keys():
            return
        at_once = min(config.embedding.batch_size, shape[0] * shape[1])
        facts = [*_decisive(config), clips.scale(scaling), shape, at_once, compute.device.type, str(compute.dtype)]
        self._path = folder / f"{clips.name}-{digest(facts)[:24]}.features"
        with suppress(UserError, OSError, KeyError, ValueError):  # missing or damaged: computed anew
            kept = read_parquet(self._path)
            self._known = dict(zip(kept["digest"].to_pylist(), _by_clip(kept["features"]), strict=True))

    def windows(self, chosen: Indices, embed: Callable[[], pa.Table]) -> pa.Table:
        """Return the embedded windows of a batch of clips, as ``embed`` gives them."""
        if self._path is None:
            return embed()
        names = [self._digests[clip] for clip in chosen]
        if not all(name in self._known for name in names):
            found = _by_clip(embed()["embedding"], len(names))
            if self._new is None:
                self._new = np.empty((len(self._digests), found.shape[1]), np.float32)
            self._new[chosen] = found
            for name, clip in zip(names, chosen, strict=True):
                self._known.setdefault(name, self._new[clip])
        values = np.concatenate([self._known[name] for name in names])
        size = len(values) // (len(names) * self._windows)
        return pa.table({"embedding": pa.FixedSizeListArray.from_arrays(values, size)})

    def save(self) -> None:
        """Keep what is new, or note the use (for ``rayasd gc --unused-for``); nothing where that cannot be done."""
        if self._path is None:
            return
        with suppress(OSError):  # a cache that is full, or that only others may write
            if self._new is not None:
                values = np.stack(list(self._known.values()))
                features = pa.FixedSizeListArray.from_arrays(values.ravel(), values.shape[1])
                write_parquet(pa.table({"digest": list(self._known), "features": features}), self._path)
            else:
                os.utime(self._path)


def _by_clip(features: pa.ChunkedArray, num_clips: int | None = None) -> NDArray[np.float32]:
    """Return a column of lists as an array with a row for each list, or for each of so many clips."""
    rows: NDArray[np.float32] = features.combine_chunks().flatten().to_numpy()
    return rows.reshape(num_clips or len(features), -1)


def _decisive(config: Config) -> list[Any]:
    """List what decides the features besides samples, machine and device; files of weights go by their content."""
    network = relocated(config, {path: fingerprint(path) for path in base_paths(config)}).network
    data = replace(config.data, on_bad_clip="fail")  # this setting decides no sample
    libraries = [*package_versions(_LIBRARIES).values()]
    return [EMBED.version, asdict(data), asdict(config.front_end), asdict(network), libraries]
