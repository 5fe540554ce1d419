"""The feature extractor: mel spectrogram, backbone, neck, machine head and product head; and its untrained control."""

import json
import pickle
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import timm
import torch
import torchaudio
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from rayasd.config import Config, FrontEndConfig
from rayasd.errors import UserError, one_line
from rayasd.files import replacing, write_json
from rayasd.registry import find, said


class Output(NamedTuple):
    """What an extractor says about N windows."""

    embedding: Tensor
    """(N, D)"""
    machine_logit: Tensor
    """(N,): large for the target machine's normal sounds."""
    product_logits: Tensor
    """(N, K), one a section of the target machine."""


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


class Extractor(nn.Module):
    """The outlier-exposure network of one machine type with K sections."""

    def __init__(self, config: Config, num_products: int, *, load_pretrained: bool = True) -> None:
        super().__init__()
        network = config.network
        self.front_end = MelSpectrogram(config.front_end, config.data.sample_rate)
        self.backbone = _backbone(network.backbone, network.pretrained if load_pretrained else "")
        self.neck = nn.Sequential(
            nn.Dropout(network.dropout),
            nn.Linear(_num_features(self.backbone), network.embedding_dim),
            nn.BatchNorm1d(network.embedding_dim),
            nn.PReLU(),
            nn.Linear(network.embedding_dim, network.embedding_dim),
        )
        self.machine_head = nn.Linear(1, 1)  # of the embedding's mean square: a hypersphere criterion
        self.product_head = nn.Linear(network.embedding_dim, num_products, bias=False)

    def forward(self, waveforms: Tensor) -> Output:
        """Embed standardised waveforms (N, samples)."""
        return self.after_front_end(self.front_end(waveforms))

    def after_front_end(self, spectrograms: Tensor) -> Output:
        """Embed mel spectrograms (N, 1, mels, frames)."""
        features = self.backbone(spectrograms.contiguous(memory_format=torch.channels_last))
        # in bfloat16, embeddings would have 8 bits: their distances would tie
        with torch.autocast(spectrograms.device.type, enabled=False):
            embedding = self.neck(features.float())
            machine_logit = self.machine_head(embedding.square().mean(dim=1, keepdim=True)).squeeze(1)
            return Output(embedding, machine_logit, self.product_head(embedding))


class Statistics(nn.Module):
    """Control without learning: mean and standard deviation over time of D/2 log-mel bands."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.mel = MelSpectrogram(config.front_end, config.data.sample_rate, n_mels=config.network.embedding_dim // 2)
        self.mel.log = True

    def forward(self, waveforms: Tensor) -> Tensor:
        """Describe waveforms (N, samples) by (N, D) statistics."""
        bands = self.mel(waveforms).squeeze(1)
        return torch.cat([bands.mean(dim=2), bands.std(dim=2)], dim=1)


CONTROLS = {"statistics": Statistics}
"""Extractors that learn nothing: modules made from a ``Config``, (N, samples) to (N, D)."""


def make_control(config: Config) -> nn.Module:
    """Make the extractor that ``network.extractor`` names.

    Raises:
        UserError: there is none of this name, or it cannot be made.

    """
    name = config.network.extractor
    try:
        control = find("network.extractor", name, {**CONTROLS, "network": Extractor})(config)
    except UserError:
        raise
    except Exception as error:  # whatever a constructor raises
        raise UserError(f"network.extractor {name}: {said(error)}") from None
    if not isinstance(control, nn.Module):
        raise UserError(f"network.extractor {name}: must be a torch.nn.Module")
    return control


WEIGHTS = "model.safetensors"


def save_extractor(folder: Path, extractor: Extractor, config: Config, sections: list[str]) -> None:
    """Write ``model.safetensors`` and the ``config.json`` that rebuilds it."""
    save_weights(folder / WEIGHTS, extractor)
    tables = {name: asdict(getattr(config, name)) for name in ("data", "front_end", "network")}
    write_json(folder / "config.json", {"sections": sections, **tables})


def save_weights(path: Path, extractor: Extractor) -> None:
    """Write an extractor's weights."""
    state = {name: value.contiguous().cpu() for name, value in extractor.state_dict().items()}
    with replacing(path, parents=False) as temporary:
        temporary.write_bytes(save(state))  # save_file hides what the system said, and permissions


def kept_path(folder: Path, epochs: int) -> Path:
    """Where the weights after so many epochs are kept."""
    return folder / f"model-epoch-{epochs}.safetensors"


def kept_weights(folder: Path) -> dict[int, Path]:
    """Find the weights that were kept before the end of training, by number of epochs."""
    kept = {int(path.stem.rpartition("-")[2]): path for path in folder.glob("model-epoch-*.safetensors")}
    return dict(sorted(kept.items()))


def load_extractor(folder: Path, config: Config, weights: Path | None = None) -> tuple[Extractor, list[str]]:
    """Read a trained extractor (on the CPU, in evaluation mode) and the sections of its product head."""
    sections = json.loads((folder / "config.json").read_text(encoding="utf-8"))["sections"]
    extractor = Extractor(config, len(sections), load_pretrained=False)
    extractor.load_state_dict(load_file(weights or folder / WEIGHTS))
    return extractor.eval(), sections


def num_parameters(config: Config) -> int:
    """Count an extractor's learned parameters, with a product head for one section."""
    return sum(p.numel() for p in Extractor(config, 1, load_pretrained=False).parameters())


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
    """Refuse a file that lacks weights of the backbone: timm would leave those random without a word."""
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
        from difflib import get_close_matches

        near = get_close_matches(name, timm.list_models(), n=3)
        raise UserError(f"network.backbone: timm has no model {name!r}" + (f": {', '.join(near)}?" if near else ""))


def _num_features(backbone: nn.Module) -> int:
    with torch.no_grad():
        training = backbone.training
        width = backbone.eval()(torch.zeros(1, 1, 64, 64)).shape[1]
        backbone.train(training)
    return int(width)
