"""Maps of embeddings: a bounded sample of a machine's clips, each the mean of its windows, projected to a plane."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rayasd.parquet import read_parquet
from rayasd.randomness import generator
from rayasd.unit import RunDirectory, Unit

MAX_POINTS = 500  # clips of one map

Coordinates = NDArray[np.float64]  # (clips, 2)
Group = tuple[str, str, int | None]  # section, domain, label


@dataclass(frozen=True)
class EmbeddingMap:
    """Positions of a machine's clips under one variant."""

    machine: str
    variant: str
    note: str  # how much of the variance the plane shows
    places: Coordinates
    groups: tuple[Group, ...]  # one entry for each clip
    sections: tuple[str, ...]  # all sections of the machine, sorted


def draw_sample(clips: pa.Table, machine: str) -> pa.Table:
    """Draw at most ``MAX_POINTS`` of a machine's rows of the catalog, even over section, domain, split and label."""
    names = ("section", "domain", "split", "label")
    clips = clips.filter(pc.field("split").isin(["train", "test"]))
    groups: dict[tuple[object, ...], list[int]] = {}
    for place, key in enumerate(zip(*(clips[name].to_pylist() for name in names), strict=True)):
        groups.setdefault(key, []).append(place)
    sizes = np.array([len(group) for group in groups.values()])
    share = int(sizes.max())
    while share > 1 and np.minimum(sizes, share).sum() > MAX_POINTS:
        share -= 1
    drawn: list[int] = []
    for key, group in sorted(groups.items(), key=str):
        order = generator("map", machine, *map(str, key)).permutation(len(group))[:share]
        drawn += [group[i] for i in order]
    return clips.take(sorted(drawn[:MAX_POINTS]))


def read_map(paths: RunDirectory, embed: Unit, checkpoint: int | None, sample: pa.Table) -> EmbeddingMap | None:
    """Project the sampled clips of a unit's embeddings by PCA; None if they are too few.

    ``checkpoint``: epochs trained; None: the last. ``sample``: rows of the catalog.
    """
    from sklearn.decomposition import PCA  # a second to import

    table, windows = _embedded(paths.table(embed), checkpoint, pc.field("clip").isin(sample["clip"]))
    rows = sample.filter(pc.is_in(sample["clip"], table["clip"])).to_pylist()
    if len(rows) < 3:
        return None
    position = {row["clip"]: place for place, row in enumerate(rows)}
    owner = np.array([position[clip] for clip in table["clip"].to_pylist()])
    means = np.zeros((len(rows), windows.shape[1]))
    np.add.at(means, owner, windows)
    means /= np.bincount(owner, minlength=len(rows))[:, None]
    if not np.isfinite(means).all() or means.shape[1] < 2:
        return None
    groups = tuple((row["section"], row["domain"], row["label"]) for row in rows)
    sections = tuple(sorted(pc.unique(sample["section"]).to_pylist()))
    model = PCA(2, svd_solver="covariance_eigh").fit(means)
    note = f"{100 * float(model.explained_variance_ratio_.sum()):.0f} % of the variance"
    return EmbeddingMap(embed.machine, embed.variant, note, model.transform(means), groups, sections)


def unusual_windows(
    paths: RunDirectory, embed: Unit, checkpoint: int | None, clips: Collection[str], seconds: float
) -> dict[str, tuple[float, float]]:
    """Find the window of each clip whose embedding is farthest from the nearest one of the normal training clips.

    Returns beginning and end in seconds, by clip; none where a clip is one window.
    """
    from sklearn.neighbors import NearestNeighbors  # a second to import

    wanted = pc.field("clip").isin(list(clips)) | (pc.field("split") == "train")
    table, vectors = _embedded(paths.table(embed), checkpoint, wanted, "start")
    shown = pc.is_in(table["clip"], pa.array(list(clips), pa.string())).to_numpy(zero_copy_only=False)
    if shown.all() or not shown.any():
        return {}
    distances = NearestNeighbors(n_neighbors=1).fit(vectors[~shown]).kneighbors(vectors[shown])[0][:, 0]
    windows: dict[str, list[tuple[float, float]]] = {}
    of_shown = table.filter(pa.array(shown))
    for clip, start, far in zip(of_shown["clip"].to_pylist(), of_shown["start"].to_pylist(), distances, strict=True):
        windows.setdefault(clip, []).append((float(far), start))
    return {clip: (max(of)[1], max(of)[1] + seconds) for clip, of in windows.items() if len(of) > 1}


def _embedded(
    path: Path, checkpoint: int | None, wanted: pc.Expression, *columns: str
) -> tuple[pa.Table, NDArray[np.float32]]:
    """Read windows under one checkpoint (None: the last one) and their embeddings, (windows, dimensions)."""
    if checkpoint is not None:
        wanted &= pc.field("checkpoint") == checkpoint
    table = read_parquet(path, columns=["clip", "checkpoint", "embedding", *columns], filters=wanted)
    table = table.filter(pc.equal(table["checkpoint"], pc.max(table["checkpoint"]))).combine_chunks()
    values = pc.list_flatten(table["embedding"]).to_numpy(zero_copy_only=False)
    return table, values.reshape(-1, table.schema.field("embedding").type.list_size)
