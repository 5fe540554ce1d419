"""One machine's model: clips in, scores and decisions out."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from torch import Tensor

from rayasd.arrays import Scores
from rayasd.config import Config
from rayasd.data.audio import BadClipError, at_level, read_samples
from rayasd.errors import UserError
from rayasd.evaluation.decisions import Decision
from rayasd.evaluation.scores import Calibration, System
from rayasd.exposure.device import choose_compute
from rayasd.exposure.embedding import embed_windows, window_starts
from rayasd.exposure.network import Control, Network, restored
from rayasd.host import usable_cpus
from rayasd.inlier.clip_pooling import is_clip_level, level_of
from rayasd.inlier.detectors import anomaly_scores, fit_detector, most_neighbours, single_detector
from rayasd.inlier.features import features, features_of, own_products, samples
from rayasd.inlier.neighbours import NeighbourSearch
from rayasd.inlier.pooling import pool
from rayasd.pretrained import unpacked

CALIBRATIONS = pa.schema(
    [("section", pa.string()), ("score", pa.float64()), ("group", pa.string()), ("calibration", pa.string())]
)
_LONG = 1.5  # times a training clip: a longer recording is scored in pieces


@dataclass(frozen=True)
class Parts:
    """All that a machine's model is made of: plain values, tensors and tables."""

    machine: str
    config: Config
    """The variant's resolved configuration."""
    classes: tuple[str, ...]
    """What the network tells apart; none for a control."""
    weights: Mapping[int, Mapping[str, Tensor]]
    """Weights of networks by the epochs that they were trained for; none for a control."""
    scale: tuple[float, float]
    """Mean and deviation of the training samples, full scale 1."""
    clip_seconds: float
    """Length of a training clip."""
    systems: Mapping[str, System]
    """What scores each section."""
    bank: pa.Table
    """Normal windows that detectors are fitted to, as in an embeddings file."""
    training: pa.Table
    """Scores of normal clips by which decisions are made, columns of ``CALIBRATIONS``."""
    provenance: Mapping[str, Any]
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Files of pretrained weights by the relative paths that ``config`` has; none where it names them in place."""

    @property
    def products(self) -> tuple[str, ...]:
        """Sections of the product head, in its order; none of a network without one."""
        return self.classes if "product_logits" in self.bank.column_names else ()

    def extractor(self, epochs: int) -> Network | Control:
        """Make the network that was trained for so many epochs, or the control; on the CPU, in evaluation mode."""
        with unpacked(self.config, self.files) as config:
            if not self.weights:
                return Control(config).eval()
            return restored(config, self.classes, dict(self.weights[epochs]))

    def systems_of(self, sections: Iterable[str]) -> str:
        """Name the detectors and poolings that score these sections."""
        chosen = [self.systems[section] for section in sections]
        return "; ".join(sorted({f"{system.detector}, {system.pooling}" for system in chosen}))


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
    """Share of the section's normal training clips that score lower, in percent."""
    worst: float | None = None
    """Start of the window that scores highest; None where a clip's windows are pooled before the detector."""
    reason: str | None = None
    """Why there is no score."""


@dataclass(frozen=True)
class _Piece:
    clip: str
    start: int
    end: int
    windows: NDArray[np.int16]
    """(windows, samples)"""
    starts: NDArray[np.int64]
    """First sample of each."""


class _SectionModel:
    """A fitted detector with its threshold."""

    def __init__(self, parts: Parts, section: str) -> None:
        inlier, self.system = parts.config.inlier, parts.systems[section]
        spec = single_detector(self.system.detector, inlier)
        self._sees = features_of(spec, inlier.features)
        rows = pc.field("checkpoint") == self.system.checkpoint
        if inlier.per == "section":
            rows &= pc.field("section") == section
        self._metric, self._level = inlier.metric, level_of(self.system.pooling)
        normal = samples(parts.bank.filter(rows), self._sees, self._metric, self._level)
        self._neighbours = NeighbourSearch(normal.X, most_neighbours([spec]), normal.groups)
        self._detector = spec.build()
        with threadpool_limits(1):  # as units do: another number of threads adds up in another order
            fit_detector(
                self._detector, normal.X, domains=normal.domains, neighbours=self._neighbours,
                product=own_products(parts.products, section),
            )  # fmt: skip
        self.decision = Decision.of(_calibrations(parts.training), section, parts.config.evaluation)

    def scores(self, windows: pa.Table, num_clips: int) -> tuple[Scores, Scores | None]:
        """Score the embedded windows of clips: clips (n,), and windows (n, windows) unless the detector sees clips."""
        with threadpool_limits(1):
            X = features(windows, self._sees, self._metric, self._level, len(windows) // num_clips)
            scores = anomaly_scores(self._detector, X)
        self._neighbours.forget()
        if is_clip_level(self.system.pooling):
            return scores, None
        of_windows = scores.reshape(num_clips, -1)
        return pool(self.system.pooling, of_windows), of_windows


class MachineModel:
    """Scores clips of one machine; see ``rayasd.scoring.load``."""

    def __init__(self, parts: Parts, device: str = "auto") -> None:
        self.parts = parts
        self._compute = choose_compute(device, parts.config.network.arithmetic)
        self._extractors: dict[int, Network | Control] = {}
        self._sections: dict[str, _SectionModel] = {}

    @property
    def sections(self) -> list[str]:
        """Sections that it can score."""
        return sorted(self.parts.systems)

    def score(self, clips: Iterable[str | Path], section: str | None = None) -> Iterator[ClipScore]:
        """Score clips, in their order, as they are computed.

        A recording of more than one and a half times a training clip's length is scored in pieces of that length, the
        last one flush with its end. A clip that cannot be read gives a ``reason`` and no score.

        Args:
            clips: files.
            section: which product of the machine they are of; where it is not given or not known, each clip goes to
                the section that the product head finds nearest.

        Raises:
            UserError: the section is not known, and there is no product head (a control).

        """
        config = self.parts.config
        at_once = max(1, config.embedding.batch_size // config.embedding.num_windows)
        with ThreadPoolExecutor(usable_cpus()) as readers:
            names = map(str, clips)
            while batch := list(islice(names, at_once)):
                read = readers.map(self._pieces, batch)
                pieces = [piece for found in read for piece in found]
                scores = iter(self._score([piece for piece in pieces if isinstance(piece, _Piece)], section))
                yield from (next(scores) if isinstance(piece, _Piece) else piece for piece in pieces)

    def _pieces(self, clip: str) -> list[_Piece | ClipScore]:
        try:
            samples = read_samples(Path(clip), self.parts.config.data)
        except BadClipError as error:
            return [ClipScore(clip, 0.0, 0.0, reason=str(error))]
        rate, windows = self.parts.config.data.sample_rate, self.parts.config.embedding.num_windows
        length = self.parts.config.window_length
        pieces: list[_Piece | ClipScore] = []
        spans = _spans(len(samples), round(self.parts.clip_seconds * rate))
        for start, end in spans:
            piece = samples if len(spans) == 1 else at_level(samples[start:end], self.parts.config.data)
            first = window_starts(end - start, length, windows)
            place = (first[:, None] + np.arange(length)) % (end - start)
            pieces.append(_Piece(clip, start, end, piece[place], start + first))
        return pieces

    def _score(self, pieces: Sequence[_Piece], section: str | None) -> list[ClipScore]:
        if not pieces:
            return []
        known = section in self.parts.systems
        tables: dict[int, pa.Table] = {}
        sections = [str(section)] * len(pieces) if known else self._nearest(pieces, section, tables)
        found: dict[int, ClipScore] = {}
        for name in sorted(set(sections)):
            model = self._section(name)
            members = [number for number, own in enumerate(sections) if own == name]
            table = self._embedded(pieces, model.system.checkpoint, tables)
            per_piece = len(pieces[0].windows)
            rows = (np.array(members)[:, None] * per_piece + np.arange(per_piece)).ravel()
            pooled, windows = model.scores(table.take(rows), len(members))
            worst = [None] * len(members) if windows is None else windows.argmax(axis=1).tolist()
            for number, score, window in zip(members, pooled, worst, strict=True):
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
        rate, by = self.parts.config.data.sample_rate, model.decision
        below = 100.0 * float(np.searchsorted(by.normal, score)) / len(by.normal) if len(by.normal) else None
        return ClipScore(
            clip=piece.clip, start=piece.start / rate, end=piece.end / rate, section=section, by_product_head=nearest,
            score=score, anomalous=None if by.threshold is None else score > by.threshold,
            threshold=by.threshold, no_threshold=by.reason, calibration=by.calibration, percentile=below,
            p_value=float(by.p_values(np.array([score]))[0]) if len(by.normal) else None,
            worst=None if worst is None else float(piece.starts[worst]) / rate,
        )  # fmt: skip

    def _nearest(self, pieces: Sequence[_Piece], section: str | None, tables: dict[int, pa.Table]) -> list[str]:
        """Name the section with the highest mean product logit of each clip's windows."""
        sections = [name.partition("/")[0] for name in self.parts.products]  # clusters divide them, if there are any
        products = [k for k, name in enumerate(sections) if name in self.parts.systems]
        if not products:
            asked = "no section is given" if section is None else f"section {section} is not known"
            raise UserError(f"{asked}, and this model has no product head: there are {', '.join(self.sections)}")
        checkpoint = max(system.checkpoint for system in self.parts.systems.values())
        logits = self._embedded(pieces, checkpoint, tables)["product_logits"].combine_chunks()
        per_window = logits.flatten().to_numpy().reshape(len(logits), -1)
        of_clip: dict[str, list[NDArray[np.float32]]] = {}
        for piece, rows in zip(pieces, np.split(per_window, len(pieces)), strict=True):
            of_clip.setdefault(piece.clip, []).append(rows)
        means = {clip: np.concatenate(rows).mean(axis=0)[products] for clip, rows in of_clip.items()}
        return [sections[products[int(means[piece.clip].argmax())]] for piece in pieces]

    def _embedded(self, pieces: Sequence[_Piece], checkpoint: int, tables: dict[int, pa.Table]) -> pa.Table:
        if checkpoint not in tables:
            windows = np.concatenate([piece.windows for piece in pieces])
            size = self.parts.config.embedding.batch_size
            extractor = self._extractor(checkpoint)
            scale = self.parts.scale if extractor.extractor.scaling == "machine" else (0.0, 1.0)
            tables[checkpoint] = pa.concat_tables(
                embed_windows(extractor, self._compute, windows[begin : begin + size], scale, self.parts.config)
                for begin in range(0, len(windows), size)
            )
        return tables[checkpoint]

    def _extractor(self, checkpoint: int) -> Network | Control:
        if checkpoint not in self._extractors:
            self._extractors[checkpoint] = self._compute.place(self.parts.extractor(checkpoint))
        return self._extractors[checkpoint]

    def _section(self, name: str) -> _SectionModel:
        if name not in self._sections:
            self._sections[name] = _SectionModel(self.parts, name)
        return self._sections[name]


def _calibrations(training: pa.Table) -> dict[str, Calibration]:
    """Sort scores of normal clips by section."""
    found = {}
    for section in pc.unique(training["section"]).to_pylist():
        rows = training.filter(pc.field("section") == section)
        groups = np.array(rows["group"].to_pylist(), dtype=object)
        found[section] = Calibration(rows["score"].to_numpy(), groups, rows["calibration"][0].as_py())
    return found


def _spans(frames: int, length: int) -> list[tuple[int, int]]:
    """First sample and end of each piece of a recording: the whole, or pieces of ``length``."""
    if frames <= _LONG * length:
        return [(0, frames)]
    starts = [*range(0, frames - length, length), frames - length]
    return [(start, start + length) for start in starts]
