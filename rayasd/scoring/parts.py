"""Parts of a machine's model, from a run or from a packed file."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from torch import Tensor

from rayasd.config import Config
from rayasd.evaluation.fused import evaluated, leaves
from rayasd.evaluation.scores import Calibration, Leaf, SectionScores, Tree
from rayasd.exposure.network import Control, Network, restored
from rayasd.pretrained import unpacked
from rayasd.windows import window_starts

Origin = tuple[str, int]  # variant and seed of what has embedded the windows that a detector sees

TRAINING = pa.schema(
    [
        ("section", pa.string()),
        ("leaf", pa.int32()),  # place in the leaves of the section's tree
        ("clip", pa.string()),
        ("score", pa.float64()),
        ("group", pa.string()),  # as in a scores file; like the next
        ("calibration", pa.string()),
    ]
)


def training_table(section: str, leaf: int, *facts: Any) -> pa.Table:
    """Lay out a leaf's training scores as ``TRAINING``: ``facts`` are its columns from the clips on."""
    count = len(facts[0])
    columns = [[section] * count, [leaf] * count, *facts]
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, TRAINING, strict=True)], schema=TRAINING)


@dataclass(frozen=True)
class Embedder:
    """One variant's network of one seed, and what it has made of a machine's normal clips."""

    config: Config  # the variant's resolved configuration
    classes: tuple[str, ...]  # classes of the network; none for a control
    weights: Mapping[int, Mapping[str, Tensor]]
    """Weights of networks by the epochs that they were trained for; none for a control."""
    scale: tuple[float, float]  # mean and deviation of the training samples, full scale 1
    bank: pa.Table  # normal windows that detectors are fitted to or that were held out, as in an embeddings file
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Files of pretrained weights by the relative paths that ``config`` has; none where it names them in place."""

    @property
    def products(self) -> tuple[str, ...]:
        """Sections of the product head, in its order; none of a network without one."""
        return self.classes if "product_logits" in self.bank.column_names else ()

    def extractor(self, epochs: int) -> Network | Control:
        """Make the network with the weights after these epochs, or the control; on the CPU, in evaluation mode."""
        with unpacked(self.config, self.files) as config:
            if not self.weights:
                return Control(config).eval()
            return restored(config, self.classes, dict(self.weights[epochs]))

    def normal(self, checkpoint: int, section: str) -> pa.Table:
        """Take from the bank what a section's detectors are fitted to: its own windows or the machine's."""
        rows = pc.field("checkpoint") == checkpoint
        if self.config.inlier.per == "section":
            rows &= pc.field("section") == section
        return self.bank.filter(rows)

    def starts(self, frames: int) -> NDArray[np.int64]:
        """First samples of a clip's windows."""
        return window_starts(frames, self.config.window_length, self.config.embedding.num_windows)

    def windows(self, samples: NDArray[np.int16]) -> NDArray[np.int16]:
        """Cut a clip into windows (windows, samples); one that is too short goes round."""
        place = self.starts(len(samples))[:, None] + np.arange(self.config.window_length)
        return samples[place % len(samples)]


@dataclass(frozen=True)
class Parts:
    """All that a machine's model is made of: plain values, tensors and tables."""

    machine: str
    entry: str  # entry of the run's leaderboard
    clip_seconds: float  # length of a training clip
    embedders: Mapping[Origin, Embedder]
    trees: Mapping[str, Tree]  # systems that score each section, of single detectors
    training: pa.Table  # scores of normal clips by detectors that had not seen them, laid out as ``TRAINING``
    provenance: Mapping[str, Any]
    others: Mapping[str, Calibration] = field(default_factory=dict)
    """Where sections have systems of their own: the other sections' normal clips by each section's."""

    @cached_property
    def leaves(self) -> dict[str, list[Leaf]]:
        """Single systems that score each section."""
        return {section: leaves(tree) for section, tree in self.trees.items()}

    @property
    def named(self) -> list[str]:
        """Settings that may name code, which runs when the model scores."""
        return [
            *(text for each in self.embedders.values() for text in each.config.named[:2]),
            *(text for of in self.leaves.values() for leaf in of for text in (leaf.detector, leaf.pooling)),
        ]

    @cached_property
    def normal(self) -> dict[str, SectionScores]:
        """Scores of each section's normal clips by its tree, which all sections' thresholds may need."""
        return {section: evaluated(tree, self.training_of(section)) for section, tree in self.trees.items()}

    def training_of(self, section: str) -> dict[Leaf, SectionScores]:
        """Training scores of a section's leaves, without any test clips."""
        found, none = {}, np.empty(0, object)
        of_section = self.training.filter(pc.field("section") == section)
        for number, leaf in enumerate(self.leaves[section]):
            rows = of_section.filter(pc.field("leaf") == number)
            clips = np.array(rows["clip"].to_pylist(), dtype=object)
            groups, calibration = (np.array(rows[name].to_pylist(), dtype=object) for name in ("group", "calibration"))
            scores = rows["score"].to_numpy()
            found[leaf] = SectionScores(none, none, np.empty(0), None, none, clips, scores, groups, calibration, leaf)
        return found

    def systems_of(self, sections: Iterable[str]) -> str:
        """Name the entry, and the detectors and poolings or the number of members that score these sections."""
        chosen = [self.leaves[section] for section in sections]
        said = (f"{of[0].detector}, {of[0].pooling}" if len(of) == 1 else f"{len(of)} members" for of in chosen)
        return "; ".join([self.entry, *sorted(set(said))])
