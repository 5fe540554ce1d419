"""Scores of the normal clips that detectors are fitted to, by detectors that have not seen them."""

from collections.abc import Sequence

import pyarrow.compute as pc
from threadpoolctl import threadpool_limits

from rayasd.arrays import Scores
from rayasd.errors import UserError
from rayasd.evaluation.scores import Leaf
from rayasd.inlier.bank import Bank
from rayasd.inlier.detectors import DetectorSpec, most_neighbours
from rayasd.inlier.features import own_products
from rayasd.scoring.parts import Embedder


def normal_scores(specs: Sequence[DetectorSpec], leaf: Leaf, section: str, embedder: Embedder) -> dict[str, Scores]:
    """Score a section's normal clips, in the order of the embedder's bank, as a detect unit does.

    ``leaf`` gives checkpoint and pooling; the detectors are in the place of its own.

    Returns for each detector's name (clips,). Raises UserError: a detector cannot be fitted, to all clips or without a
    part of them.
    """
    from rayasd.inlier.scoring import Section  # imports scikit-learn

    inlier, rows = embedder.config.inlier, pc.field("checkpoint") == leaf.checkpoint
    rows = rows & (pc.field("section") == section) if inlier.per == "section" else rows
    bank = Bank(embedder.bank.filter(rows), inlier, most_neighbours(specs))
    some = bank.table.slice(0, bank.num_windows)
    of_section = Section(section, bank, some, inlier, own_products(embedder.products, section), embedder.config.learns)
    with threadpool_limits(1):
        found = {spec.name: of_section.pooled(spec, leaf.pooling)[1] for spec in specs}
    for name, scores in found.items():
        if isinstance(scores, str):
            raise UserError(f"{name} of {leaf.variant}: {scores}")
    return found  # type: ignore[return-value]
