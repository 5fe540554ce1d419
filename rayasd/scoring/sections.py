"""Scoring of one section: its fitted detectors, the fusion of their scores, the decision, its normal clips' scores."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import pyarrow as pa
from threadpoolctl import threadpool_limits

from rayasd.arrays import Features, Indices, Scores
from rayasd.config import InlierConfig
from rayasd.errors import UserError
from rayasd.evaluation.decisions import Decision
from rayasd.evaluation.fused import evaluated
from rayasd.evaluation.scores import Leaf
from rayasd.inlier.bank import Bank
from rayasd.inlier.detectors import DetectorSpec, anomaly_scores, most_neighbours, single_detector
from rayasd.inlier.features import features, features_of, own_products
from rayasd.inlier.pooling import is_clip_level, level_of, pool
from rayasd.scoring.parts import Embedder, Parts


class _Member:
    """A fitted detector that reads one embedder's windows."""

    def __init__(self, leaf: Leaf, bank: Bank, inlier: InlierConfig, product: Indices) -> None:
        spec = single_detector(leaf.detector, inlier)
        self._pooling, self._level, self._metric = leaf.pooling, level_of(leaf.pooling), inlier.metric
        self._sees = features_of(spec, inlier.features)
        self._reads = (*leaf[:3], self._sees, self._level)
        self.bank = bank
        with threadpool_limits(1):  # as units do: another number of threads adds up in another order
            self._detector, _ = bank.fitted(spec, self._level, product)
        if isinstance(self._detector, str):
            raise UserError(f"{leaf.detector} of {leaf.variant} cannot be fitted: {self._detector}")

    def scores(self, windows: pa.Table, num_clips: int, seen: dict[object, Features]) -> tuple[Scores, Scores | None]:
        """Score the embedded windows of clips: clips (n,), and windows (n, windows) unless the detector sees clips.

        ``seen``: what members have seen of these windows; neighbours of one array are searched once.
        """
        if self._reads not in seen:
            num_windows = len(windows) // num_clips
            seen[self._reads] = features(windows, self._sees, self._metric, self._level, num_windows)
        with threadpool_limits(1):
            scores = anomaly_scores(self._detector, seen[self._reads])
        if is_clip_level(self._pooling):
            return scores, None
        of_windows = scores.reshape(num_clips, -1)
        return pool(self._pooling, of_windows), of_windows


class SectionModel:
    """A section's detectors and threshold."""

    def __init__(self, parts: Parts, section: str, bank_of: Callable[[Leaf, str], Bank]) -> None:
        self.tree, self._known = parts.trees[section], parts.training_of(section)
        if reason := parts.normal[section].reason:
            raise UserError(f"{parts.entry} cannot score section {section}: {reason}")
        self.members = {}
        for leaf in self._known:
            embedder = parts.embedders[leaf[:2]]
            product = own_products(embedder.products, section)
            self.members[leaf] = _Member(leaf, bank_of(leaf, section), embedder.config.inlier, product)
        calibrations = {name: scores.calibrating for name, scores in parts.normal.items()}
        if section in parts.others:  # which are by this section's system, as in the run's decisions
            calibrations = {section: calibrations[section], "": parts.others[section]}
        self.decision = Decision.of(calibrations, section, embedder.config.evaluation)
        self.calibration = calibrations[section]

    def scores(self, windows: Mapping[Leaf, pa.Table], num_clips: int) -> tuple[Scores, Scores | None]:
        """Score the embedded windows of clips, as a report scores test clips: clips (n,), windows (n, windows).

        There are no scores of windows where a member has none, or others have other windows.
        """
        seen: dict[object, Features] = {}
        found = {leaf: member.scores(windows[leaf], num_clips, seen) for leaf, member in self.members.items()}
        for member in self.members.values():
            member.bank.forget()
        clips = self._fused({leaf: of_clips for leaf, (of_clips, _) in found.items()})
        of_windows = {leaf: scores for leaf, (_, scores) in found.items() if scores is not None}
        alike = len(of_windows) == len(found) and len({scores.shape for scores in of_windows.values()}) == 1
        return clips, self._fused(of_windows) if alike else None

    def _fused(self, scores: Mapping[Leaf, Scores]) -> Scores:
        return evaluated(self.tree, {leaf: replace(self._known[leaf], scores=s) for leaf, s in scores.items()}).scores


def normal_scores(specs: Sequence[DetectorSpec], leaf: Leaf, section: str, embedder: Embedder) -> dict[str, Scores]:
    """Score a section's normal clips, in the order of the embedder's bank, as a detect unit does.

    ``leaf`` gives checkpoint and pooling; the detectors are in the place of its own.

    Returns for each detector's name (clips,). Raises UserError: a detector cannot be fitted, to all clips or without a
    part of them.
    """
    from rayasd.inlier.scoring import Section  # imports scikit-learn

    inlier = embedder.config.inlier
    bank = Bank(embedder.normal(leaf.checkpoint, section), inlier, most_neighbours(specs))
    some = bank.table.slice(0, bank.num_windows)
    of_section = Section(section, bank, some, inlier, own_products(embedder.products, section), embedder.config.learns)
    with threadpool_limits(1):
        found = {spec.name: of_section.pooled(spec, leaf.pooling)[1] for spec in specs}
    for name, scores in found.items():
        if isinstance(scores, str):
            raise UserError(f"{name} of {leaf.variant}: {scores}")
    return found  # type: ignore[return-value]
