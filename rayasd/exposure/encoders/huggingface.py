"""Encoders that transformers has: AST (Gong et al., Interspeech 2021), and the wav2vec 2.0 family of speech models."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rayasd.config import Config
from rayasd.errors import UserError
from rayasd.exposure.encoders.patches import KaldiFbank, Pretrained, patches_in_time
from rayasd.exposure.encoders.weights import TROUBLES, cannot_load, mark_as_base, offline_import, refuse_missing
from rayasd.files import read_json

_AST = {"audio-spectrogram-transformer": "ASTModel"}
_SPEECH = {"wav2vec2": "Wav2Vec2Model", "hubert": "HubertModel", "wavlm": "WavLMModel"}


class Ast(Pretrained):
    """Waveforms (N, samples) at 16 kHz, 10.2 s at most, to a grid (N, T, 12, dim), T = 99 for ten seconds.

    Shorter windows are filled up with zeros, as in training; patches that are not wholly of sound are left out.

    ``folder``: ``config.json`` and safetensors of a model of transformers.

    Raises UserError: transformers is missing, the folder does not hold such a model, or the window is too long.
    """

    def __init__(self, config: Config, *, folder: str, layers: Sequence[int] | None = None) -> None:
        super().__init__()
        self.model = _load(folder, _AST)
        facts: Any = self.model.config
        own = _json(Path(folder) / "preprocessor_config.json")
        if facts.num_mel_bins != 128:
            raise UserError(f"{folder} takes {facts.num_mel_bins} mel bands, not 128")
        names = {"mean": "mean", "std": "deviation"}
        known: dict[str, Any] = {ours: float(own[theirs]) for theirs, ours in names.items() if theirs in own}
        self.fbank = KaldiFbank(facts.max_length, **known)
        self.dim = facts.hidden_size
        self.choose_layers(layers, facts.num_hidden_layers)
        self.bands: int = (128 - facts.patch_size) // facts.frequency_stride + 1
        self.in_time = patches_in_time(config, facts.patch_size, facts.time_stride, facts.max_length)

    def forward(self, waveforms: Tensor) -> Tensor:
        tokens = self.mean_of(_states(self.model, self.fbank(waveforms)))[:, 2:]  # after two that stand for the whole
        by_bands = tokens.reshape(len(tokens), self.bands, -1, self.dim)
        return by_bands.transpose(1, 2)[:, : self.in_time]


class Wav2Vec2(Pretrained):
    """Waveforms (N, samples) at 16 kHz to a grid (N, T, 1, dim), one frame each 20 ms: wav2vec 2.0, HuBERT, WavLM.

    ``folder``, and what is raised, are as of ``Ast``; windows may be too short.
    """

    def __init__(self, config: Config, *, folder: str, layers: Sequence[int] | None = None) -> None:
        super().__init__()
        # spans of time are masked by chance of numpy's, which no seed of ours decides: a training would not repeat
        self.model = _load(folder, _SPEECH, apply_spec_augment=False)
        facts: Any = self.model.config
        if config.network.lora is not None and facts.model_type == "wavlm":
            raise UserError("network.train lora: WavLM reads the weights of its layers itself, past any update of them")
        self.standardise = bool(_json(Path(folder) / "preprocessor_config.json").get("do_normalize", True))
        self.dim = facts.hidden_size
        self.choose_layers(layers, facts.num_hidden_layers)
        patches_in_time(config, 1, 1)

    def forward(self, waveforms: Tensor) -> Tensor:
        if self.standardise:
            variance, mean = torch.var_mean(waveforms, dim=1, correction=0, keepdim=True)
            waveforms = (waveforms - mean) / (variance + 1e-7).sqrt()
        return self.mean_of(_states(self.model, waveforms)).unsqueeze(2)


def _load(folder: str, classes: dict[str, str], **changes: Any) -> nn.Module:
    """Make a model of a folder's ``config.json``, of one of these kinds, and read its safetensors; nothing else."""
    kind = _json(Path(folder) / "config.json", needed=True).get("model_type")
    if kind not in classes:
        raise UserError(f"{folder} holds a model of type {kind!r}, not {' or '.join(classes)}")
    transformers = offline_import("transformers", "transformers")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        model, found = getattr(transformers, classes[kind]).from_pretrained(
            folder, local_files_only=True, use_safetensors=True, trust_remote_code=False, dtype=torch.float32,
            output_loading_info=True, ignore_mismatched_sizes=False, **changes,
        )  # fmt: skip
    except TROUBLES as error:
        raise cannot_load(folder, error) from None
    refuse_missing(sorted(found["missing_keys"]), len(model.state_dict()), folder)
    mark_as_base(model)
    return model.train()  # like any new module: from_pretrained returns it in evaluation mode


def _states(model: nn.Module, values: Tensor) -> list[Tensor]:
    """Return the hidden states after each layer; the last one as the model returns it."""
    found = model(values, output_hidden_states=True)
    return [*found.hidden_states[1:-1], found.last_hidden_state]


def _json(path: Path, *, needed: bool = False) -> dict[str, Any]:
    try:
        values = read_json(path)
    except (OSError, ValueError) as error:
        raise cannot_load(path, error) from None
    if values is None and needed:
        raise UserError(f"no such file: {path}")
    if not isinstance(values, dict | None):
        raise cannot_load(path, "no table of settings")
    return values or {}
