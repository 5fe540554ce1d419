"""Pseudo-attributes: clusters of normal clips, for machines whose recordings tell no operating conditions."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import AgglomerativeClustering, KMeans

from rayasd.arrays import Indices
from rayasd.config import Config, EmbeddingConfig
from rayasd.data.catalog import replaced
from rayasd.errors import UserError
from rayasd.exposure.clips import MachineClips
from rayasd.exposure.device import Compute
from rayasd.exposure.embedding import embed_clips
from rayasd.exposure.feature_cache import FeatureCache
from rayasd.exposure.network import Control
from rayasd.files import write_csv
from rayasd.unit import Progress, Report, silent
from rayasd.windows import window_starts

FILE = "clusters.csv"
_WINDOWS = 10
"""Windows of a clip whose features are averaged: its own number, since embedding.num_windows decides no training."""
_FEWEST = 5  # clips of a cluster; smaller ones join the nearest (as in published systems of 2025)


def with_pseudo_attributes(
    clips: MachineClips, config: Config, compute: Compute, cache: Path, report: Report = silent
) -> MachineClips:
    """Give a machine without attributes clusters of its training clips as attributes: ``cluster-0`` and so on.

    Each section's training clips, held-out ones too, are clustered by the mean features of their windows under the
    encoder ``exposure.clusters_by``, each feature standardised. Test clips get none: nothing is learned from them. A
    machine whose training clips have attributes stays as it is. ``report`` gets a sign of life for each clip.

    Raises UserError: an encoder that cannot be made.
    """
    table, count = clips.table, config.exposure.clusters
    train = np.flatnonzero(np.isin(clips.split, ["train", "validation"]))
    attributes = table["attributes"].to_pylist()
    if not count or clips.per_batch is not None or len({attributes[clip] for clip in train}) > 1:
        return clips
    found = np.full(table.num_rows, "", dtype=object)
    section = np.array(table["section"].to_pylist(), dtype=object)
    features = _features(clips, train, config, compute, cache, report)
    for name in sorted(set(section[train])):
        members = section[train] == name
        places = _clustered(features[members], count, config.exposure.clusters_method)
        found[train[members]] = [f"cluster-{place}" for place in places]
    return replace(clips, table=replaced(table, {"attributes": found.tolist()}), clustered=True)


def write_clusters(folder: Path, machines: Sequence[MachineClips]) -> None:
    """Write which cluster each training clip is in (CSV); nothing where no machine has clusters."""
    rows = [
        (row["clip"], row["machine"], row["section"], row["attributes"])
        for clips in machines
        if clips.clustered
        for row in clips.table.to_pylist()
        if row["attributes"]
    ]
    if rows:
        write_csv(folder / FILE, [("clip", "machine", "section", "cluster"), *rows])


def _features(
    clips: MachineClips, chosen: Indices, config: Config, compute: Compute, cache: Path, report: Report
) -> NDArray[np.float32]:
    """Return the mean features of each clip's windows, (n, dim)."""
    network = replace(config.network, encoder=config.exposure.clusters_by, train="frozen")
    config = replace(config, network=network, embedding=EmbeddingConfig())  # whose settings decide no training
    encoder = compute.place(Control(config)).eval()
    known = FeatureCache(cache, clips, config, compute, encoder.extractor.scaling, (1, _WINDOWS))
    means = []
    for clip in chosen:
        report(Progress(0, 0))
        starts = window_starts(int(clips.waveforms.frames[clip]), config.window_length, _WINDOWS)[None]
        embedded = partial(embed_clips, encoder, compute, clips, np.array([clip]), starts, config)
        column = known.windows(np.array([clip]), embedded)["embedding"].combine_chunks()
        means.append(column.flatten().to_numpy().reshape(_WINDOWS, -1).mean(axis=0))
    known.save()
    features = np.stack(means)
    if not np.isfinite(features).all():
        raise UserError(f"exposure.clusters_by = {config.exposure.clusters_by}: gives NaN or infinity for {clips.name}")
    return features


def _clustered(features: NDArray[np.float32], count: int, method: str) -> list[int]:
    """Cluster n clips; returns the number of each one's cluster, counted in the order of their first clips."""
    deviation = features.std(axis=0)
    X = ((features - features.mean(axis=0)) / np.where(deviation > 0, deviation, 1.0)).astype(np.float64)
    count = max(1, min(count, len(X) // _FEWEST))
    if count == 1:
        return [0] * len(X)
    if method == "ward":
        places = AgglomerativeClustering(count, linkage="ward").fit_predict(X)
    else:
        places = KMeans(count, n_init=10, random_state=0).fit_predict(X)
    while len(sizes := Counter(places.tolist())) > 1 and min(sizes.values()) < _FEWEST:
        smallest = min(sizes, key=lambda place: (sizes[place], place))
        centres = {place: X[places == place].mean(axis=0) for place in sizes}
        nearest = min(
            (place for place in sizes if place != smallest),
            key=lambda place: float(np.linalg.norm(centres[place] - centres[smallest])),
        )
        places[places == smallest] = nearest
    order = {place: number for number, place in enumerate(dict.fromkeys(places.tolist()))}
    return [order[place] for place in places.tolist()]
