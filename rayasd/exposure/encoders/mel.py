"""The paper's encoder: a mel spectrogram, then a timm model."""

from collections.abc import Sequence
from difflib import get_close_matches
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
import torchaudio
from torch import Tensor, nn

from rayasd.config import Config, FrontEndConfig
from rayasd.errors import UserError, one_line
from rayasd.exposure.encoders import Encoder
from rayasd.exposure.encoders.weights import TROUBLES, mark_as_base, read_weights, refuse_missing

_SAMPLES = 160_000  # whose spectra are computed at once


def _timm() -> ModuleType:
    import timm  # takes two seconds of processor time with torchvision; other encoders do without it

    return timm


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
            n_mels or config.n_mels, sample_rate, config.f_min, config.highest(sample_rate), config.n_fft // 2 + 1
        )

    def forward(self, waveforms: Tensor) -> Tensor:
        with torch.autocast(waveforms.device.type, enabled=False):
            # on a CPU a few rows at once, which its cache holds: twice as fast
            rows = max(1, _SAMPLES // waveforms.shape[1]) if waveforms.device.type == "cpu" else len(waveforms)
            return torch.cat([self._bands(part) for part in waveforms.float().split(rows)]).unsqueeze(1)

    def _bands(self, waveforms: Tensor) -> Tensor:
        spectrum = self.spectrogram(waveforms)
        squares = spectrum.real.square() + spectrum.imag.square()  # twice as fast as the complex magnitude on CPUs
        mel: Tensor = self.scale(squares.pow(self.power / 2))
        return (mel + 1e-6).log() if self.log else mel


class MelTimm(Encoder):
    """Mel spectrogram by ``front_end``, then the timm model ``network.backbone``, averaged over time and frequency.

    The spectrogram is the one channel of the input. Weights that were trained on three channels get the sum of their
    kernels over these, as timm does it: outputs are those for three equal channels. A model of fixed input size is made
    for the spectrogram's, filled up with zeros to multiples of 32; timm resamples its position embeddings.

    ``normalise``: ``"window"`` takes its mean from each spectrogram and divides it by its deviation; two numbers are a
    mean and a deviation to use; None leaves it as it is.

    Raises UserError: timm has no such model or cannot use it here, or ``network.pretrained`` lacks weights of it.
    """

    def __init__(self, config: Config, *, normalise: str | Sequence[float] | None = None) -> None:
        super().__init__()
        if not (normalise in (None, "window") or (isinstance(normalise, list | tuple) and len(normalise) == 2)):
            raise UserError(f"normalise = {normalise!r}: 'window', or a mean and a deviation")
        self.by_window = normalise == "window"
        self.shift, self.width = (0.0, 1.0) if isinstance(normalise, str | None) else map(float, normalise)
        self.front_end = MelSpectrogram(config.front_end, config.data.sample_rate)
        frames = config.window_length // config.front_end.hop_length + 1
        name, size = config.network.backbone, (config.front_end.n_mels, frames)
        self.size = (-(-size[0] // 32) * 32, -(-size[1] // 32) * 32) if has_fixed_size(name) else size
        self.backbone = _backbone(name, config.network.pretrained, self.size)
        self.dim = _num_features(self.backbone, name, self.size)

    def forward(self, waveforms: Tensor) -> Tensor:
        bands = self.front_end(waveforms)
        if self.by_window:
            deviation, mean = torch.std_mean(bands, dim=(2, 3), keepdim=True)
            bands = (bands - mean) / (deviation + 1e-6)
        elif (self.shift, self.width) != (0.0, 1.0):
            bands = (bands - self.shift) / self.width
        missing = (self.size[0] - bands.shape[2], self.size[1] - bands.shape[3])
        if any(missing):
            bands = F.pad(bands, (0, missing[1], 0, missing[0]))
        features: Tensor = self.backbone(bands.contiguous(memory_format=torch.channels_last))
        return features


def has_fixed_size(name: str) -> bool:
    """Whether a backbone takes inputs of one size alone. Raises UserError: timm has none of this name."""
    if not _timm().is_model(name.partition(".")[0]):
        near = get_close_matches(name, _timm().list_models(), n=3)
        raise UserError(f"network.backbone: timm has no model {name!r}" + (f": {', '.join(near)}?" if near else ""))
    try:
        return bool(_timm().get_pretrained_cfg(name).fixed_input_size)
    except RuntimeError as error:  # no such tag
        raise UserError(f"network.backbone: {one_line(error)}") from None


def _backbone(name: str, pretrained: str, size: tuple[int, int]) -> nn.Module:
    state = _weights(pretrained) if pretrained else {}
    overlay = {"state_dict": dict(state), "hf_hub_id": None, "url": ""}  # never a download
    fixed: dict[str, Any] = {"img_size": size} if has_fixed_size(name) else {}
    if fixed and _timm().models.model_entrypoint(name.partition(".")[0]).__module__.endswith("vision_transformer"):
        fixed["fc_norm"] = False  # most are published with the norm before the mean, not after it
    try:
        backbone: nn.Module = _timm().create_model(
            name,
            pretrained=bool(pretrained),
            pretrained_cfg_overlay=overlay if pretrained else None,
            in_chans=1,
            num_classes=0,
            global_pool="avg",
            **fixed,
        )
    except TROUBLES as error:
        loading = f"network.pretrained: cannot load {pretrained} into"
        what = loading if pretrained else "network.backbone: timm cannot make"
        raise UserError(f"{what} {name}: {one_line(error)}") from None
    if pretrained:
        # timm would leave what the file lacks as made, without a warning
        wanted = [key for key in backbone.state_dict() if not key.endswith("num_batches_tracked")]
        refuse_missing([key for key in wanted if key not in state], len(wanted), pretrained)
        mark_as_base(backbone)
        backbone.pretrained_cfg.pop("state_dict")  # type: ignore[operator,union-attr]  # timm keeps all weights there
    for module in backbone.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]  # autograd would copy what an activation in place overwrites
    return backbone


def _weights(path: str) -> dict[str, Tensor]:
    """Read a file of weights, and take them out of a checkpoint as ``timm.models.load_state_dict`` does."""
    content = read_weights(path)
    for key in ("state_dict_ema", "model_ema", "state_dict", "model"):
        if isinstance(content.get(key), dict):
            content = content[key]
            break
    found: dict[str, Tensor] = _timm().models.clean_state_dict(content)
    return found


def _num_features(backbone: nn.Module, name: str, size: tuple[int, int]) -> int:
    try:
        with torch.no_grad():
            features = backbone.eval()(torch.zeros(1, 1, *size))
    except TROUBLES as error:
        raise UserError(f"network.backbone: {name} cannot use spectrograms of {size[0]} x {size[1]}: {one_line(error)}"
                        ) from None  # fmt: skip
    backbone.train()
    return int(features.shape[1])
