"""One machine's model: clips in, scores and decisions out."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rayasd.config import Config
from rayasd.data.audio import NO_MEMORY, TooLongError, num_frames, read_facts, read_samples, sample_blocks
from rayasd.data.naming import matching
from rayasd.data.samples import at_level
from rayasd.errors import BadClipError, UserError
from rayasd.evaluation.scores import Leaf
from rayasd.exposure.device import choose_compute
from rayasd.exposure.embedding import embed_windows
from rayasd.exposure.network import Control, Network
from rayasd.host import usable_cpus
from rayasd.inlier.bank import Bank
from rayasd.inlier.detectors import most_neighbours, single_detector
from rayasd.scoring.parts import Origin, Parts
from rayasd.scoring.sections import SectionModel

_LONG = 1.5  # times a training clip: a longer recording is scored in pieces


Tables = dict[tuple[Origin, int], pa.Table]  # embedded windows of the clips at hand, by origin and epochs


@dataclass(frozen=True)
class ClipScore:
    """Score and decision of a clip, or of one piece of a long recording."""

    clip: str
    start: float
    """Seconds from the recording's start; like ``end`` and ``worst``."""
    end: float
    section: str | None = None
    by_product_head: bool = False
    """The section was not given: it is the nearest one."""
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
    worst: float | None = None
    """Start of the window that scores highest; None where a clip's windows are pooled before the detector."""
    reason: str | None = None
    """Why there is no score."""


@dataclass(frozen=True)
class Piece:
    """A clip, or a part of a long recording, as samples."""

    clip: str
    start: int
    end: int
    samples: NDArray[np.int16]
    is_part: bool = False  # whether it is a part of a long recording


class MachineModel:
    """Scores clips of one machine; see ``rayasd.scoring.load``."""

    def __init__(self, parts: Parts, device: str = "auto") -> None:
        self.parts, self._device = parts, device
        self._computes = {o: choose_compute(device, e.config.network.arithmetic) for o, e in parts.embedders.items()}
        self._extractors: dict[tuple[Origin, int], Network | Control] = {}
        self._banks: dict[tuple[str | int, ...], Bank] = {}
        self._sections: dict[str, SectionModel] = {}
        self._nearest_of = "", ""  # the last long recording, and its section
        self._config = next(iter(parts.embedders.values())).config  # data and evaluation are the same for all

    def changed(self, change: Callable[[Config], Config]) -> "MachineModel":
        """Return the same model with other settings for reading clips."""
        embedders = {o: replace(e, config=change(e.config)) for o, e in self.parts.embedders.items()}
        return MachineModel(replace(self.parts, embedders=embedders), self._device)

    @property
    def sections(self) -> list[str]:
        """Sections that it can score."""
        return sorted(self.parts.trees)

    @property
    def reads_signals(self) -> bool:
        """Whether files of numbers (.npy, .mat, .csv) are clips."""
        return bool(self._config.data.signal_rate)

    def named(self, section: str | None) -> str | None:
        """Return the section that a word in any spelling means; None (or auto) is the only one, where there is one.

        Raises UserError: there is none of this name.
        """
        if section in (None, "auto"):
            return self.sections[0] if len(self.sections) == 1 else None
        return matching("section", str(section), self.sections)

    def score(self, clips: Iterable[str | Path], section: str | None = None) -> Iterator[ClipScore]:
        """Score clips, in their order, as they are computed.

        A recording of more than one and a half times a training clip's length is scored in pieces of that length, the
        last one flush with its end, as they are read, in memory that does not grow with it. A clip that cannot be read
        gives a ``reason`` and no score, after its pieces where that turns out at its end.

        Args:
            clips: files.
            section: which product of the machine they are of, as ``named`` takes it; where there are several and none
                is given, each clip goes to the section that the first product head finds nearest (a long recording
                is read twice for that).

        Raises UserError: there is no such section, or none is given and there is no product head (a control).
        """
        section = self.named(section)
        for pieces in self.batches(clips):
            scores = iter(self._score([piece for piece in pieces if isinstance(piece, Piece)], section))
            yield from (next(scores) if isinstance(piece, Piece) else piece for piece in pieces)

    def fitted(self, section: str | None = None) -> dict[str, SectionModel]:
        """Fit what scores a section, or every one where none is given, before a clip asks for it.

        Raises UserError: as ``score``.
        """
        section = self.named(section)
        if section is None:
            self._products()
        return {name: self._section(name) for name in self.sections if section in (None, name)}

    def batches(self, clips: Iterable[str | Path]) -> Iterator[list[Piece | ClipScore]]:
        """Read clips, as many at once as are embedded at once; those that cannot be read are given with a reason."""
        with ThreadPoolExecutor(usable_cpus()) as readers:
            names = map(str, clips)
            while batch := list(islice(names, self._at_once)):
                ready: list[Piece | ClipScore] = []
                for clip, found in zip(batch, readers.map(self._whole, batch), strict=True):
                    if found is not None:
                        ready.append(found)
                        continue
                    if ready:
                        yield ready
                        ready = []
                    yield from self._parts(clip)
                if ready:
                    yield ready

    @property
    def _at_once(self) -> int:
        windows = [embedder.config.embedding for embedder in self.parts.embedders.values()]
        return max(1, min(each.batch_size // each.num_windows for each in windows))

    @property
    def _clip_length(self) -> int:
        return round(self.parts.clip_seconds * self._config.data.sample_rate)

    def _whole(self, clip: str) -> Piece | ClipScore | None:
        """Read a clip; None of a long recording, which is read in parts."""
        try:
            samples = read_samples(Path(clip), self._config.data, _LONG * self._clip_length)
        except TooLongError:
            return None
        except (BadClipError, MemoryError) as error:
            return _unread(clip, error)
        return Piece(clip, 0, len(samples), samples)

    def _parts(self, clip: str) -> Iterator[list[Piece | ClipScore]]:
        """Read a long recording, as many pieces at once as are embedded at once."""

        def pieces() -> Iterator[Piece | ClipScore]:
            data = self._config.data
            try:
                spans = _spans(num_frames(read_facts(Path(clip), data), data), self._clip_length)
                blocks = sample_blocks(Path(clip), replace(data, level="keep"))
                held, first = next(blocks), 0
                for start, end in spans:
                    while first + len(held) < end:
                        if (block := next(blocks, None)) is None:
                            raise BadClipError("changed while it was read: is it still being written?")
                        held = np.concatenate([held, block])
                    held, first = held[start - first :], start
                    yield Piece(clip, start, end, at_level(held[: end - start], data), is_part=True)
                deque(blocks, maxlen=0)  # whose end tells whether the file is whole
            except (BadClipError, MemoryError) as error:
                yield _unread(clip, error)

        left = pieces()
        while batch := list(islice(left, self._at_once)):
            yield batch

    def _score(self, pieces: Sequence[Piece], section: str | None) -> list[ClipScore]:
        if not pieces:
            return []
        tables: Tables = {}
        sections = self._nearest(pieces, tables) if section is None else [section] * len(pieces)
        found: dict[int, ClipScore] = {}
        for name in sorted(set(sections)):
            model = self._section(name)
            chosen = np.array([number for number, own in enumerate(sections) if own == name])
            windows = {}
            for leaf in model.members:
                table = self.embedded(pieces, leaf[:2], leaf.checkpoint, tables)
                windows[leaf] = table.take(np.arange(len(table)).reshape(len(pieces), -1)[chosen].ravel())
            clips, of_windows = model.scores(windows, len(chosen))
            worst = [None] * len(chosen) if of_windows is None else of_windows.argmax(axis=1).tolist()
            for number, score, window in zip(chosen.tolist(), clips, worst, strict=True):
                found[number] = self._said(pieces[number], name, section is None, model, float(score), window)
        return [found[number] for number in range(len(pieces))]

    def _said(
        self, piece: Piece, section: str, nearest: bool, model: SectionModel, score: float, worst: int | None
    ) -> ClipScore:
        rate, by = self._config.data.sample_rate, model.decision
        starts = self.parts.embedders[next(iter(model.members))[:2]].starts(len(piece.samples))
        return ClipScore(
            clip=piece.clip, start=piece.start / rate, end=piece.end / rate, section=section, by_product_head=nearest,
            score=score, anomalous=None if by.threshold is None else score > by.threshold,
            threshold=by.threshold, no_threshold=by.reason, calibration=by.calibration,
            p_value=float(by.p_values(np.array([score]))[0]) if by.num_groups else None,
            worst=None if worst is None else float(piece.start + starts[worst]) / rate,
        )  # fmt: skip

    def _nearest(self, pieces: Sequence[Piece], tables: Tables) -> list[str]:
        """Name the section with the highest mean product logit of each clip's windows."""
        head, products = self._products()
        last = max(leaf.checkpoint for of in self.parts.leaves.values() for leaf in of if leaf[:2] == head)

        def means(pieces: Sequence[Piece], tables: Tables) -> NDArray[np.float32]:
            logits = self.embedded(pieces, head, last, tables)["product_logits"].combine_chunks()
            of_piece = logits.flatten().to_numpy().reshape(len(pieces), -1, len(logits[0]))
            return np.asarray(of_piece.mean(axis=1)[:, list(products)])

        names = list(products.values())
        if not pieces[0].is_part:
            return [names[place] for place in means(pieces, tables).argmax(axis=1)]
        clip = pieces[0].clip
        if self._nearest_of[0] != clip:
            batches = ([each for each in batch if isinstance(each, Piece)] for batch in self._parts(clip))
            total = np.sum([means(batch, {}).sum(axis=0) for batch in batches if batch], axis=0)
            self._nearest_of = clip, names[int(total.argmax())]
        return [self._nearest_of[1]] * len(pieces)

    def _products(self) -> tuple[Origin, dict[int, str]]:
        """Find the first network with a product head, and the sections of its logits, by their places."""
        heads = [origin for origin, embedder in self.parts.embedders.items() if embedder.products]
        classes = self.parts.embedders[heads[0]].products if heads else ()
        sections = [name.partition("/")[0] for name in classes]  # clusters divide them, if there are any
        products = {k: name for k, name in enumerate(sections) if name in self.parts.trees}
        if not products:
            raise UserError(f"no section is given, and the model cannot tell: --section {'|'.join(self.sections)}")
        return heads[0], products

    def embedded(self, pieces: Sequence[Piece], origin: Origin, checkpoint: int, tables: Tables) -> pa.Table:
        """Embed the windows of pieces, one piece after the other; ``tables`` keeps what is known of these pieces."""
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
        inlier = embedder.config.inlier
        key = (*leaf[:3], section if inlier.per == "section" else "")
        if key not in self._banks:
            names = {other.detector for of in self.parts.leaves.values() for other in of if other[:3] == leaf[:3]}
            most = most_neighbours(single_detector(name, inlier) for name in names)
            normal = embedder.normal(leaf.checkpoint, section)
            self._banks[key] = Bank(normal, replace(inlier, calibration_folds=0), most)
        return self._banks[key]

    def _section(self, name: str) -> SectionModel:
        if name not in self._sections:
            self._sections[name] = SectionModel(self.parts, name, self._bank)
        return self._sections[name]


def _unread(clip: str, error: Exception) -> ClipScore:
    return ClipScore(clip, 0.0, 0.0, reason=NO_MEMORY if isinstance(error, MemoryError) else str(error))


def _spans(frames: int, length: int) -> list[tuple[int, int]]:
    """First sample and end of each piece of a recording: the whole, or pieces of ``length``."""
    if frames <= _LONG * length:
        return [(0, frames)]
    starts = [*range(0, frames - length, length), frames - length]
    return [(start, start + length) for start in starts]
