"""Noise alone, mixed into training clips."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rayasd.arrays import Indices
from rayasd.exposure.clips import MachineClips
from rayasd.randomness import generator

_SNR_DB = (0.0, 20.0)


class Noise:
    """Clips of noise alone, of all machines, and the probability that a training clip gets one of them."""

    def __init__(self, machines: Sequence[MachineClips], probability: float) -> None:
        by_name = {machine.name: machine for machine in machines}  # a machine's exposed anomalies have its name
        self.clips = [(m.waveforms, int(clip)) for m in by_name.values() for clip in np.flatnonzero(m.split == "noise")]
        self.probability = probability if self.clips else 0.0

    def mixed(self, waveforms: Tensor, num_clips: int, rows: Indices, key: tuple[int | str, ...]) -> Tensor:
        """Mix noise into the clips ``rows`` of a batch of ``num_clips``.

        It is drawn for the whole batch from ``key``, so that all ranks draw the same.

        Takes and returns waveforms (len(rows), samples).
        """
        if not self.probability:
            return waveforms
        rng = generator(*key, "noise")
        gets = rng.random(num_clips) < self.probability
        which, place = rng.integers(len(self.clips), size=num_clips), rng.random(num_clips)
        snr = rng.uniform(*_SNR_DB, num_clips)
        length = waveforms.shape[1]
        noise = np.zeros((len(rows), length), np.float32)
        window = np.empty(length, np.int16)
        for row, clip in enumerate(rows):
            if gets[clip]:
                source, number = self.clips[which[clip]]
                slack = max(0, int(source.frames[number]) - length)
                source.window(number, round(place[clip] * slack), length, window)
                centred = window - window.mean(dtype=np.float64)
                noise[row] = centred / max(float(centred.std()), 1.0) * 10 ** (-snr[clip] / 20)
        level = waveforms.square().mean(dim=1, keepdim=True).sqrt()
        return waveforms + level * torch.from_numpy(noise).to(waveforms.device)
