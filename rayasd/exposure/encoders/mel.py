"""The paper's encoder: a mel spectrogram, then a timm model."""

import pickle
from difflib import get_close_matches
from pathlib import Path

import timm
import torch
import torchaudio
from safetensors import SafetensorError
from torch import Tensor, nn

from rayasd.config import Config, FrontEndConfig
from rayasd.errors import UserError, one_line
from rayasd.exposure.encoders import Encoder


class MelSpectrogram(nn.Module):
    """Waveforms (N, samples) to mel spectrograms (N, 1, mels, frames), in float32 whatever the autocast."""

    def __init__(self, config: FrontEndConfig, sample_rate: int, *, n_mels: int | None = None) -> None:
        super().__init__()
        self.log, self.power = config.log, config.power
        self.spectrogram = torchaudio.transforms.Spectrogram(
            n_fft=config.n_fft,
            hop_length=config.hop_length,
            power=None,
            normalized=config.normalized,
            center=True,
            pad_mode="reflect",
        )
        self.scale = torchaudio.transforms.MelScale(
            n_mels or config.n_mels, sample_rate, config.f_min, config.f_max, config.n_fft // 2 + 1
        )

    def forward(self, waveforms: Tensor) -> Tensor:
        """Compute the spectrograms."""
        with torch.autocast(waveforms.device.type, enabled=False):
            spectrum = self.spectrogram(waveforms.float())
            squares = spectrum.real.square() + spectrum.imag.square()  # twice as fast as the complex magnitude on CPUs
            mel = self.scale(squares.pow(self.power / 2)).unsqueeze(1)
            return (mel + 1e-6).log() if self.log else mel


class MelTimm(Encoder):
    """Mel spectrogram by ``front_end``, then the timm model ``network.backbone``, averaged over time and frequency."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.front_end = MelSpectrogram(config.front_end, config.data.sample_rate)
        self.backbone = _backbone(config.network.backbone, config.network.pretrained)
        self.dim = _num_features(self.backbone)

    @property
    def compilable(self) -> nn.Module:
        """The timm model."""
        return self.backbone

    def forward(self, waveforms: Tensor) -> Tensor:
        """Encode standardised waveforms (N, samples) as (N, dim)."""
        features: Tensor = self.backbone(self.front_end(waveforms).contiguous(memory_format=torch.channels_last))
        return features


def _backbone(name: str, pretrained: str) -> nn.Module:
    if pretrained and not Path(pretrained).is_file():
        raise UserError(f"network.pretrained: no such file: {pretrained}")
    check_backbone(name)
    overlay = {"file": pretrained, "hf_hub_id": None, "url": ""}  # never a download
    try:
        backbone: nn.Module = timm.create_model(
            name,
            pretrained=bool(pretrained),
            pretrained_cfg_overlay=overlay if pretrained else None,
            in_chans=1,
            num_classes=0,
            global_pool="avg",
        )
    except (RuntimeError, ValueError, KeyError, AttributeError, pickle.UnpicklingError, SafetensorError) as error:
        what = (
            f"network.pretrained: cannot load {pretrained} into" if pretrained else "network.backbone: timm cannot make"
        )
        raise UserError(f"{what} {name}: {one_line(error)}") from None
    if pretrained:
        _check_all_loaded(backbone, name, pretrained)
    for module in backbone.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]  # autograd would copy what an activation in place overwrites
    return backbone


def _check_all_loaded(backbone: nn.Module, name: str, pretrained: str) -> None:
    """Refuse a file that lacks weights of the backbone: timm would leave those random without a warning."""
    wanted, there = dict(backbone.named_parameters()), timm.models.load_state_dict(pretrained)
    missing = [key for key in wanted if key not in there]
    if missing:
        raise UserError(
            f"network.pretrained: cannot load {pretrained} into {name}: "
            f"it lacks {len(missing)} of {len(wanted)} weights, {missing[0]} first"
        )


def check_backbone(name: str) -> None:
    """Make sure that timm knows a backbone.

    Raises:
        UserError: it does not; names the nearest.

    """
    if not timm.is_model(name.partition(".")[0]):
        near = get_close_matches(name, timm.list_models(), n=3)
        raise UserError(f"network.backbone: timm has no model {name!r}" + (f": {', '.join(near)}?" if near else ""))


def _num_features(backbone: nn.Module) -> int:
    with torch.no_grad():
        training = backbone.training
        width = backbone.eval()(torch.zeros(1, 1, 64, 64)).shape[1]
        backbone.train(training)
    return int(width)
