"""One machine's model: clips in, scores and decisions out."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from rayasd.arrays import Features, Indices, Scores
from rayasd.config import Config, InlierConfig
from rayasd.data.audio import BadClipError, at_level, read_samples
from rayasd.errors import UserError
from rayasd.evaluation.decisions import Decision
from rayasd.evaluation.fused import evaluated
from rayasd.evaluation.scores import Leaf
from rayasd.exposure.device import choose_compute
from rayasd.exposure.embedding import embed_windows
from rayasd.exposure.network import Control, Network
from rayasd.host import usable_cpus
from rayasd.inlier.bank import Bank
from rayasd.inlier.clip_pooling import is_clip_level, level_of
from rayasd.inlier.detectors import anomaly_scores, most_neighbours, single_detector
from rayasd.inlier.features import features, features_of, own_products
from rayasd.inlier.pooling import pool
from rayasd.scoring.parts import Origin, Parts

_LONG = 1.5  # times a training clip: a longer recording is scored in pieces


_Tables = dict[tuple[Origin, int], pa.Table]
"""Embedded windows of the clips at hand, by origin and epochs."""


@dataclass(frozen=True)
class ClipScore:
    """What a model says of a clip, or of one piece of a long recording."""

    clip: str
    start: float
    """Seconds from the recording's start; like ``end`` and ``worst``."""
    end: float
    section: str | None = None
    by_product_head: bool = False
    """The section was not given, or is not known: it is the nearest one."""
    score: float | None = None
    """Higher is more anomalous; None if there is none, see ``reason``."""
    anomalous: bool | None = None
    """None without a threshold."""
    threshold: float | None = None
    no_threshold: str | None = None
    """Why there is none."""
    p_value: float | None = None
    """Chance of so high a score if the clip is normal; None without scores of normal clips."""
    calibration: str | None = None
    """How these came about: held-out, cross-fit, leave-one-out, trained-on (then more normal clips raise an alarm)."""
    percentile: float | None = None
    """Share of the normal clips (or groups) behind the threshold that score lower, in percent."""
    worst: float | None = None
    """Start of the window that scores highest; None where a clip's windows are pooled before the detector."""
    reason: str | None = None
    """Why there is no score."""


@dataclass(frozen=True)
class _Piece:
    clip: str
    start: int
    end: int
    samples: NDArray[np.int16]


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


class _SectionModel:
    """What scores a section, and its threshold."""

    def __init__(self, parts: Parts, section: str, bank_of: Callable[[Leaf, str], Bank]) -> None:
        self.tree, self._known = parts.trees[section], parts.training_of(section)
        normal = {name: evaluated(tree, parts.training_of(name)) for name, tree in parts.trees.items()}
        if reason := normal[section].reason:
            raise UserError(f"{parts.entry} cannot score section {section}: {reason}")
        self.members = {}
        for leaf in self._known:
            embedder = parts.embedders[leaf[:2]]
            product = own_products(embedder.products, section)
            self.members[leaf] = _Member(leaf, bank_of(leaf, section), embedder.config.inlier, product)
        calibrations = {name: scores.calibrating for name, scores in normal.items()}
        if section in parts.others:  # which are by this section's system, as in the run's decisions
            calibrations = {section: calibrations[section], "": parts.others[section]}
        self.decision = Decision.of(calibrations, section, embedder.config.evaluation)

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


class MachineModel:
    """Scores clips of one machine; see ``rayasd.scoring.load``."""

    def __init__(self, parts: Parts, device: str = "auto") -> None:
        self.parts, self._device = parts, device
        self._computes = {o: choose_compute(device, e.config.network.arithmetic) for o, e in parts.embedders.items()}
        self._extractors: dict[tuple[Origin, int], Network | Control] = {}
        self._banks: dict[tuple[str | int, ...], Bank] = {}
        self._sections: dict[str, _SectionModel] = {}
        self._config = next(iter(parts.embedders.values())).config  # data and evaluation are the same for all

    def changed(self, change: Callable[[Config], Config]) -> "MachineModel":
        """Return the same model with other settings for reading clips or making decisions."""
        embedders = {o: replace(e, config=change(e.config)) for o, e in self.parts.embedders.items()}
        return MachineModel(replace(self.parts, embedders=embedders), self._device)

    @property
    def sections(self) -> list[str]:
        """Sections that it can score."""
        return sorted(self.parts.trees)

    def score(self, clips: Iterable[str | Path], section: str | None = None) -> Iterator[ClipScore]:
        """Score clips, in their order, as they are computed.

        A recording of more than one and a half times a training clip's length is scored in pieces of that length, the
        last one flush with its end. A clip that cannot be read gives a ``reason`` and no score.

        Args:
            clips: files.
            section: which product of the machine they are of; where it is not given or not known, each clip goes to
                the section that the first product head finds nearest.

        Raises:
            UserError: the section is not known, and there is no product head (a control).

        """
        windows = [embedder.config.embedding for embedder in self.parts.embedders.values()]
        at_once = max(1, min(each.batch_size // each.num_windows for each in windows))
        with ThreadPoolExecutor(usable_cpus()) as readers:
            names = map(str, clips)
            while batch := list(islice(names, at_once)):
                read = readers.map(self._pieces, batch)
                pieces = [piece for found in read for piece in found]
                scores = iter(self._score([piece for piece in pieces if isinstance(piece, _Piece)], section))
                yield from (next(scores) if isinstance(piece, _Piece) else piece for piece in pieces)

    def _pieces(self, clip: str) -> list[_Piece | ClipScore]:
        data = self._config.data
        try:
            samples = read_samples(Path(clip), data)
        except BadClipError as error:
            return [ClipScore(clip, 0.0, 0.0, reason=str(error))]
        spans = _spans(len(samples), round(self.parts.clip_seconds * data.sample_rate))
        if len(spans) == 1:
            return [_Piece(clip, 0, len(samples), samples)]
        return [_Piece(clip, start, end, at_level(samples[start:end], data)) for start, end in spans]

    def _score(self, pieces: Sequence[_Piece], section: str | None) -> list[ClipScore]:
        if not pieces:
            return []
        known = section in self.parts.trees
        tables: _Tables = {}
        sections = [str(section)] * len(pieces) if known else self._nearest(pieces, section, tables)
        found: dict[int, ClipScore] = {}
        for name in sorted(set(sections)):
            model = self._section(name)
            chosen = np.array([number for number, own in enumerate(sections) if own == name])
            windows = {}
            for leaf in model.members:
                table = self._embedded(pieces, leaf[:2], leaf.checkpoint, tables)
                windows[leaf] = table.take(np.arange(len(table)).reshape(len(pieces), -1)[chosen].ravel())
            clips, of_windows = model.scores(windows, len(chosen))
            worst = [None] * len(chosen) if of_windows is None else of_windows.argmax(axis=1).tolist()
            for number, score, window in zip(chosen.tolist(), clips, worst, strict=True):
                found[number] = self._said(pieces[number], name, not known, model, float(score), window)
        return [found[number] for number in range(len(pieces))]

    def _said(
        self,
        piece: _Piece,
        section: str,
        nearest: bool,
        model: _SectionModel,
        score: float,
        worst: int | None,
    ) -> ClipScore:
        rate, by = self._config.data.sample_rate, model.decision
        below = 100.0 * float(np.searchsorted(by.normal, score)) / len(by.normal) if len(by.normal) else None
        starts = self.parts.embedders[next(iter(model.members))[:2]].starts(len(piece.samples))
        return ClipScore(
            clip=piece.clip, start=piece.start / rate, end=piece.end / rate, section=section, by_product_head=nearest,
            score=score, anomalous=None if by.threshold is None else score > by.threshold,
            threshold=by.threshold, no_threshold=by.reason, calibration=by.calibration, percentile=below,
            p_value=float(by.p_values(np.array([score]))[0]) if len(by.normal) else None,
            worst=None if worst is None else float(piece.start + starts[worst]) / rate,
        )  # fmt: skip

    def _nearest(self, pieces: Sequence[_Piece], section: str | None, tables: _Tables) -> list[str]:
        """Name the section with the highest mean product logit of each clip's windows."""
        heads = [origin for origin, embedder in self.parts.embedders.items() if embedder.products]
        classes = self.parts.embedders[heads[0]].products if heads else ()
        sections = [name.partition("/")[0] for name in classes]  # clusters divide them, if there are any
        products = [k for k, name in enumerate(sections) if name in self.parts.trees]
        if not products:
            asked = "no section is given" if section is None else f"section {section} is not known"
            raise UserError(f"{asked}, and this model has no product head: there are {', '.join(self.sections)}")
        last = max(leaf.checkpoint for of in self.parts.leaves.values() for leaf in of if leaf[:2] == heads[0])
        logits = self._embedded(pieces, heads[0], last, tables)["product_logits"].combine_chunks()
        per_window = logits.flatten().to_numpy().reshape(len(logits), -1)
        of_clip: dict[str, list[NDArray[np.float32]]] = {}
        for piece, rows in zip(pieces, np.split(per_window, len(pieces)), strict=True):
            of_clip.setdefault(piece.clip, []).append(rows)
        means = {clip: np.concatenate(rows).mean(axis=0)[products] for clip, rows in of_clip.items()}
        return [sections[products[int(means[piece.clip].argmax())]] for piece in pieces]

    def _embedded(self, pieces: Sequence[_Piece], origin: Origin, checkpoint: int, tables: _Tables) -> pa.Table:
        key = origin, checkpoint
        if key not in tables:
            embedder, compute = self.parts.embedders[origin], self._computes[origin]
            if key not in self._extractors:
                self._extractors[key] = compute.place(embedder.extractor(checkpoint))
            extractor, config = self._extractors[key], embedder.config
            scale = embedder.scale if extractor.extractor.scaling == "machine" else (0.0, 1.0)
            windows = np.concatenate([embedder.windows(piece.samples) for piece in pieces])
            size = config.embedding.batch_size
            tables[key] = pa.concat_tables(
                embed_windows(extractor, compute, windows[begin : begin + size], scale, config)
                for begin in range(0, len(windows), size)
            )
        return tables[key]

    def _bank(self, leaf: Leaf, section: str) -> Bank:
        """Windows that a leaf's detector is fitted to, shared with the other detectors of this bank."""
        embedder = self.parts.embedders[leaf[:2]]
        inlier, rows = embedder.config.inlier, pc.field("checkpoint") == leaf.checkpoint
        if inlier.per == "section":
            rows &= pc.field("section") == section
        key = (*leaf[:3], section if inlier.per == "section" else "")
        if key not in self._banks:
            names = {other.detector for of in self.parts.leaves.values() for other in of if other[:3] == leaf[:3]}
            most = most_neighbours(single_detector(name, inlier) for name in names)
            self._banks[key] = Bank(embedder.bank.filter(rows), replace(inlier, calibration_folds=0), most)
        return self._banks[key]

    def _section(self, name: str) -> _SectionModel:
        if name not in self._sections:
            self._sections[name] = _SectionModel(self.parts, name, self._bank)
        return self._sections[name]


def _spans(frames: int, length: int) -> list[tuple[int, int]]:
    """First sample and end of each piece of a recording: the whole, or pieces of ``length``."""
    if frames <= _LONG * length:
        return [(0, frames)]
    starts = [*range(0, frames - length, length), frames - length]
    return [(start, start + length) for start in starts]
