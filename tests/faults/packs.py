"""A small packed model, made of numbers alone."""

import numpy as np
import pyarrow as pa
import torch

from rayasd import presets
from rayasd.evaluation.scores import Leaf
from rayasd.exposure.embedding import embedding_schema
from rayasd.scoring.parts import Embedder, Parts

SETTINGS = ["network.encoder=statistics", "network.train=frozen", "network.embedding_dim=4", "front_end.n_mels=2"]
SCHEMA = embedding_schema(pa.schema([("embedding", pa.list_(pa.float32(), 4))]))


def small_pack() -> Parts:
    """Return the parts of a model of one section with eight windows."""
    config = presets.load("demo", SETTINGS)
    rng = np.random.default_rng(0)
    rows = [
        {"clip": f"fan/train/{n}.wav", "section": "00", "domain": "source", "split": "train", "label": 0, "window": 0,
         "start": 0.0, "checkpoint": 0, "embedding": rng.standard_normal(4).astype(np.float32)}
        for n in range(8)
    ]  # fmt: skip
    embedder = Embedder(
        config=config, classes=("00",), weights={0: {"weight": torch.zeros(2)}}, scale=(0.0, 1.0),
        bank=pa.Table.from_pylist(rows, SCHEMA),
    )  # fmt: skip
    leaf = Leaf("both", 0, 0, "knn-1", "mean")
    training = {"section": ["00"] * 8, "leaf": [0] * 8, "clip": [row["clip"] for row in rows], "score": rng.random(8),
                "group": [f"{n}" for n in range(8)], "calibration": ["leave-one-out"] * 8}  # fmt: skip
    return Parts(machine="fan", entry="both", clip_seconds=1.0, embedders={leaf[:2]: embedder}, trees={"00": leaf},
                 training=pa.table(training), provenance={})  # fmt: skip
