"""Clips that hold one moment, found by their sound: other microphone, codec or level.

Levels of 20 ms over time find candidates. What confirms one is the generalised cross-correlation with phase transform
(Knapp & Carter, IEEE Trans. ASSP 1976): 0.01 between clips of one machine at two moments, whatever their rhythm, and
0.19 or more between two microphones of one moment of MIMII.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayasd.data.oddities import Oddity
from rayasd.wording import counted

_FRAMES = 500
_ALIKE, _SAME = 0.6, 0.1
_CANDIDATES = 3
_MOST_CLIPS = 200  # clips of a machine and split that are looked at, evenly spaced
_LAG_SECONDS, _LONGEST_SECONDS = 0.05, 4.0


def beginning(blocks: Iterable[NDArray[np.int16]], sample_rate: int) -> NDArray[np.int16]:
    """Join a clip's blocks as far as a clip is looked at here, 10 s."""
    held, most = np.empty(0, np.int16), _FRAMES * sample_rate // 50
    for block in blocks:
        held = np.concatenate([held, block])[:most]
        if len(held) == most:
            break
    return held


def envelope(samples: NDArray[np.int16], sample_rate: int) -> NDArray[np.float32]:
    """Return the changes of a clip's level in steps of 20 ms, (n,), 500 at most, of unit length."""
    step = sample_rate // 50
    count = min(len(samples) // step, _FRAMES)
    power = np.square(samples[: count * step].reshape(count, step), dtype=np.float64).mean(axis=1)
    changes = np.diff(np.log(power + 1e-3))
    return (changes / (np.linalg.norm(changes) or 1.0)).astype(np.float32)


def likeness(one: NDArray[np.int16], other: NDArray[np.int16], sample_rate: int) -> float:
    """Return the highest cross-correlation with phase transform of two clips' beginnings, 0 to 1, within 50 ms."""
    length = min(len(one), len(other), int(_LONGEST_SECONDS * sample_rate))
    lag = int(_LAG_SECONDS * sample_rate)
    cross = np.fft.rfft(one[:length].astype(float)) * np.fft.rfft(other[:length].astype(float)).conj()
    correlation = np.fft.irfft(cross / (np.abs(cross) + 1e-9), length)
    return float(np.abs(np.concatenate([correlation[:lag], correlation[-lag:]])).max())


def same_moments(
    rows: Sequence[Mapping[str, Any]], read: Callable[[Mapping[str, Any]], NDArray[np.int16]], sample_rate: int
) -> list[Oddity]:
    """Find clips of a moment that another training clip has, too; not the same samples, nor clips of one group.

    ``rows``: clip, machine, split, digest, group and ``envelope`` of each; ``read`` gives a row's samples.
    """

    def twin(row: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
        known = [
            other for other in others if len(other["envelope"]) == len(row["envelope"]) > 1
            and other["digest"] != row["digest"] and (other["group"] is None or other["group"] != row["group"])
        ]  # fmt: skip
        alike = np.stack([other["envelope"] for other in known]) @ row["envelope"] if known else np.empty(0)
        best = [known[i] for i in np.argsort(-alike)[:_CANDIDATES] if alike[i] > _ALIKE]
        return next((other for other in best if likeness(read(row), read(other), sample_rate) > _SAME), None)

    found = []
    for machine in sorted({row["machine"] for row in rows}):
        of_split = {s: [r for r in rows if (r["machine"], r["split"]) == (machine, s)] for s in ("test", "train")}
        for split, clips in of_split.items():
            looked_at = clips[:: -(-len(clips) // _MOST_CLIPS) or 1]
            pairs = [(row["clip"], other["clip"]) for row in looked_at if (other := twin(row, of_split["train"]))]
            if pairs:
                text = (
                    f"{counted(len(pairs), f'{split} clip')} of a moment that is in another training clip, too (other "
                    f"microphone, codec or level), {pairs[0][0]} and {pairs[0][1]} first: data.groups or {{group}} "
                    "keeps them together"
                )
                found.append(Oddity(machine, text))
    return found
