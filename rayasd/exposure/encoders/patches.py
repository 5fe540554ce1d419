"""Shared parts of pretrained encoders: Kaldi's mel bands at 16 kHz, hidden states to average, patches as a grid."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchaudio.compliance import kaldi

from rayasd.config import Config
from rayasd.errors import UserError
from rayasd.exposure.encoders import Encoder

_FRAME, _SHIFT = 400, 160  # samples: 25 and 10 ms


class KaldiFbank(nn.Module):
    """Log-mel energies as Kaldi computes them: waveforms (N, samples) at 16 kHz to (N, frames, 128), in float32.

    ``window``: of a frame, as torchaudio's ``compliance.kaldi.fbank`` names it; ``gain``: of the waveforms. Energies
    are filled up with zeros to ``frames`` frames, then ``mean`` is taken from them and they are divided by twice
    ``deviation``, which the encoder was trained with: by default, those of AST and AudioMAE over AudioSet.
    """

    def __init__(
        self, frames: int | None = None, *, window: str = "hanning", gain: float = 1.0, mean: float = -4.2677393,
        deviation: float = 4.5689974,
    ) -> None:  # fmt: skip
        super().__init__()
        self.frames = frames
        self.window, self.gain, self.mean, self.deviation = window, gain, mean, deviation

    def forward(self, waveforms: Tensor) -> Tensor:
        options = {"num_mel_bins": 128, "sample_frequency": 16000, "window_type": self.window}
        with torch.autocast(waveforms.device.type, enabled=False):
            bands = [kaldi.fbank(waveform.unsqueeze(0) * self.gain, **options) for waveform in waveforms.float()]
            energies = torch.stack(bands)
            missing = 0 if self.frames is None else self.frames - energies.shape[1]
            return (F.pad(energies, (0, 0, 0, missing)) - self.mean) / (2 * self.deviation)


class Pretrained(Encoder):
    """An encoder of 16 kHz waveforms at full scale 1.

    ``layers``: hidden states to average, from 1 to the number of layers; by default the last, as the model returns it.
    """

    scaling = "none"
    sample_rate: ClassVar[int | None] = 16000
    gives_grid = True
    model: Any
    layers: list[int]

    def choose_layers(self, layers: Sequence[int] | None, count: int) -> None:
        """Choose among the layers of a model, of which there are ``count``. Raises UserError: one is not there."""
        chosen = [count] if layers is None else layers
        if not isinstance(chosen, list | tuple) or not chosen or not all(n in range(1, count + 1) for n in chosen):
            raise UserError(f"layers = {layers}: a list of numbers from 1 to {count}")
        self.layers = list(chosen)

    def mean_of(self, states: Sequence[Tensor]) -> Tensor:
        """Average the hidden states after the chosen layers; ``states[0]`` is after the first."""
        chosen = [states[number - 1] for number in self.layers]
        return chosen[0] if len(chosen) == 1 else torch.stack(chosen).mean(dim=0)


def patches_in_time(config: Config, patch: int, stride: int, most: int | None = None) -> int:
    """Count the patches of ``patch`` frames, one each ``stride`` frames, that lie within a window of sound.

    Raises UserError: the window is too short for one, or has more than the ``most`` frames that the encoder takes.
    """
    frames = max(0, 1 + (config.window_length - _FRAME) // _SHIFT)
    if frames < patch or (most is not None and frames > most):
        shortest = (_FRAME + (patch - 1) * _SHIFT) / 16000
        longest = f" and {(_FRAME + (most - 1) * _SHIFT) / 16000:g}" if most is not None else ""
        least = f"between {shortest:g}{longest}" if longest else f"at least {shortest:g}"
        raise UserError(f"front_end.window_seconds = {config.front_end.window_seconds:g}: must be {least} seconds")
    return (frames - patch) // stride + 1
