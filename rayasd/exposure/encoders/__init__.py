"""Encoders: what turns the waveform of a window into features. Each is a class; a setting names it."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from rayasd.config import Config
from rayasd.errors import UserError
from rayasd.registry import error_line, find


class Encoder(nn.Module):
    """Waveforms (N, samples) to features (N, dim), or to a grid (N, T, F, dim) whose mean is taken.

    A subclass takes the ``Config`` first and its own parameters by name, and sets ``dim``. A control is an encoder
    without weights. Any other ``torch.nn.Module`` that is made from a ``Config`` will do as well, with features of
    ``network.embedding_dim`` values.
    """

    scaling: Literal["machine", "none"] = "machine"
    """Waveforms that it wants: standardised with the machine's training mean and deviation, or at full scale 1."""
    sample_rate: ClassVar[int | None] = None
    """In Hz; None: any."""
    gives_grid: ClassVar[bool] = False
    """Whether it gives grids, which the neck 'attentive' needs."""
    ends_in_float32: bool = False
    """Whether its last layers compute in float32 under autocast; if not, all of it does where no neck follows."""
    dim: int
    """Features of a window. An encoder with branches has ``widths`` too, the features of each, in order."""


ENCODERS = {
    "mel-timm": "rayasd.exposure.encoders.mel.MelTimm",
    "stft-resnet": "rayasd.exposure.encoders.spectral.StftResNet",
    "fft": "rayasd.exposure.encoders.spectral.FftNetwork",
    "branches": "rayasd.exposure.encoders.Branches",
    "beats": "rayasd.exposure.encoders.beats.Beats",
    "ast": "rayasd.exposure.encoders.huggingface.Ast",
    "wav2vec2": "rayasd.exposure.encoders.huggingface.Wav2Vec2",
    "audiomae": "rayasd.exposure.encoders.audiomae.AudioMae",
    "dasheng": "rayasd.exposure.encoders.dasheng.Dasheng",
    "statistics": "rayasd.exposure.encoders.controls.Statistics",
    "max-statistics": "rayasd.exposure.encoders.controls.MaxStatistics",
    "level": "rayasd.exposure.encoders.controls.Level",
}
"""Import paths by name."""


def make_encoder(config: Config, text: str | None = None) -> nn.Module:
    """Make the encoder that ``network.encoder``, or ``text``, names.

    Raises UserError: there is none of this name, it cannot be made, or it needs another sample rate.
    """
    name = text or config.network.encoder
    try:
        encoder = find("network.encoder", name, ENCODERS)(config)
    except UserError as error:
        told = any(table in str(error) for table in ("network.", "front_end."))  # it names the setting
        raise UserError(str(error) if told else f"network.encoder {name}: {error}") from None
    except Exception as error:  # whatever a constructor raises
        raise UserError(f"network.encoder {name}: {error_line(error)}") from None
    if not isinstance(encoder, nn.Module):
        raise UserError(f"network.encoder {name}: must be a torch.nn.Module")
    needed = getattr(encoder, "sample_rate", None)
    if needed not in (None, config.data.sample_rate):
        raise UserError(f"network.encoder {name} needs data.sample_rate = {needed}, not {config.data.sample_rate}")
    return encoder


def features_of_windows(encoder: nn.Module, waveforms: Tensor) -> Tensor:
    """Encode waveforms (N, samples) as features (N, dim) in float32; of a grid, the mean."""
    features: Tensor = encoder(waveforms)
    # in bfloat16, embeddings would have 8 bits: their distances would tie
    with torch.autocast(waveforms.device.type, enabled=False):
        return features.float() if features.dim() != 4 else features.float().mean(dim=(1, 2))


class Branches(Encoder):
    """Features of several encoders, one after the other.

    ``encoders``: texts as ``network.encoder`` takes them: ``branches(encoders=['stft-resnet', 'fft'])``.

    Raises UserError: no encoders, or encoders that want waveforms scaled differently.
    """

    def __init__(self, config: Config, *, encoders: Sequence[str]) -> None:
        super().__init__()
        if not encoders or isinstance(encoders, str):
            raise UserError("network.encoder branches: name encoders, for example encoders=['stft-resnet', 'fft']")
        self.parts = nn.ModuleList(make_encoder(config, text) for text in encoders)
        scalings = {getattr(part, "scaling", "machine") for part in self.parts}
        if len(scalings) > 1:
            raise UserError(
                f"network.encoder branches: {', '.join(encoders)} want waveforms scaled differently; combine encoders "
                "that are alike in this"
            )
        self.scaling = "none" if scalings == {"none"} else "machine"
        self.ends_in_float32 = all(getattr(part, "ends_in_float32", False) for part in self.parts)
        self.widths = tuple(getattr(part, "dim", config.network.embedding_dim) for part in self.parts)
        self.dim = sum(self.widths)

    def forward(self, waveforms: Tensor) -> Tensor:
        return torch.cat([features_of_windows(part, waveforms) for part in self.parts], dim=1)
