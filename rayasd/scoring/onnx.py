"""An extractor as ONNX, for runtimes without torch: waveforms, or mel spectrograms, to embedding and logits."""

import warnings
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rayasd.errors import UserError
from rayasd.exposure.network import Extractor, MelSpectrogram
from rayasd.files import replacing
from rayasd.scoring.model import Parts

OUTPUTS = ("embedding", "machine_logit", "product_logits")


class ConvolvedMelSpectrogram(nn.Module):
    """The same mel spectrograms by convolution with windowed sines and cosines: ONNX has no complex numbers."""

    def __init__(self, front_end: MelSpectrogram) -> None:
        super().__init__()
        spectrogram = front_end.spectrogram
        self.log, self.power = front_end.log, front_end.power
        self.margin, self.hop = spectrogram.n_fft // 2, spectrogram.hop_length
        window = spectrogram.window.double()
        scale = window.square().sum().rsqrt() if spectrogram.normalized else 1.0
        turns = torch.outer(torch.arange(self.margin + 1), torch.arange(spectrogram.n_fft)).double() / spectrogram.n_fft
        angle = 2 * torch.pi * turns
        bases = torch.cat([angle.cos(), -angle.sin()]) * window * scale
        self.register_buffer("bases", bases.float()[:, None])  # (2 (n_fft/2 + 1), 1, n_fft)
        self.register_buffer("filters", front_end.scale.fb)  # (n_fft/2 + 1, mels)

    def forward(self, waveforms: Tensor) -> Tensor:
        """Waveforms (N, samples) to mel spectrograms (N, 1, mels, frames)."""
        padded = F.pad(waveforms[:, None], (self.margin, self.margin), mode="reflect")
        real, imaginary = F.conv1d(padded, self.bases, stride=self.hop).split(self.margin + 1, dim=1)  # type: ignore[arg-type]
        magnitude = (real.square() + imaginary.square()).pow(self.power / 2)
        mel = (magnitude.transpose(1, 2) @ self.filters).transpose(1, 2)[:, None]
        return (mel + 1e-6).log() if self.log else mel


class _Exported(nn.Module):
    """Standardised waveforms (N, samples), or mel spectrograms (N, 1, mels, frames), to an extractor's outputs."""

    def __init__(self, extractor: Extractor, *, from_waveform: bool) -> None:
        super().__init__()
        self.front_end = ConvolvedMelSpectrogram(extractor.front_end) if from_waveform else nn.Identity()
        self.extractor = extractor

    def forward(self, given: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.extractor.after_front_end(self.front_end(given)))


def export_onnx(path: Path, parts: Parts, given: Literal["waveform", "mel"]) -> None:
    """Write the extractor that was trained longest as ONNX; the number of windows N is free, their length is not.

    Inputs are ``waveform`` (N, samples), standardised by the machine's scaling, or ``mel`` (N, 1, mels, frames).
    Metadata tell machine, sections, mean and deviation.

    Raises:
        UserError: the variant has no extractor of its own (a control), or the package onnx is not installed.

    """
    try:
        import onnx
    except ImportError:
        raise UserError("ONNX needs a package: pip install 'rayasd[onnx]'") from None
    if not parts.weights:
        raise UserError(
            f"{parts.config.network.extractor} is a control, with no network to export: --variant names another"
        )
    checkpoint = max(parts.weights)
    extractor = parts.extractor(checkpoint)
    assert isinstance(extractor, Extractor)
    example = torch.zeros(2, parts.config.window_length)
    if given == "mel":
        with torch.no_grad():
            example = extractor.front_end(example)
    with replacing(path) as temporary:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tracing constants
            torch.onnx.export(
                _Exported(extractor, from_waveform=given == "waveform").eval(), (example,), str(temporary),
                input_names=[given], output_names=list(OUTPUTS), dynamo=False, opset_version=17,
                dynamic_axes={name: {0: "windows"} for name in (given, *OUTPUTS)},
            )  # fmt: skip
        model = onnx.load(temporary)
        facts = {
            "machine": parts.machine,
            "sections": ",".join(parts.products),
            "sample_rate": parts.config.data.sample_rate,
            "mean": parts.scale[0],
            "deviation": parts.scale[1],
            "checkpoint": checkpoint,
        }
        for key, value in facts.items():
            entry = model.metadata_props.add()
            entry.key, entry.value = key, str(value)
        onnx.checker.check_model(model)
        onnx.save(model, str(temporary))
