"""Every random number comes from a key such as (seed, machine, purpose, epoch, step), never from order or host."""

import hashlib
import json

import numpy as np


def _entropy(key: tuple[int | str, ...]) -> bytes:
    return hashlib.sha256(json.dumps(key).encode()).digest()


def generator(*key: int | str) -> np.random.Generator:
    """NumPy generator of the stream that belongs to ``key`` alone."""
    return np.random.default_rng(int.from_bytes(_entropy(key), "little"))


def torch_seed(*key: int | str) -> int:
    """Seed (below 2**63) for ``torch.manual_seed`` that belongs to ``key`` alone."""
    return int.from_bytes(_entropy(key)[:8], "little") >> 1
