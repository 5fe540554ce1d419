"""Dasheng (Dinkel et al., Interspeech 2024): a transformer over patches of 4 frames and all bands, by its package."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rayasd.config import Config
from rayasd.exposure.encoders.patches import Pretrained, patches_in_time
from rayasd.exposure.encoders.weights import TROUBLES, cannot_load, fill, mark_as_base, offline_import, read_weights

_HEADS = {768: 12, 1280: 16, 1536: 24}  # attention heads by width: of base, 0.6B and 1.2B, whose files do not name them


class Dasheng(Pretrained):
    """Waveforms (N, samples) at 16 kHz to a grid (N, T, 1, dim), T = 250 for ten seconds.

    Longer windows are encoded in parts of 10.08 s.

    ``file``: as published, a dictionary ``{config, model}`` written by ``torch.save``.

    Raises UserError: the package is missing, the file is not such a file, or the window is too short.
    """

    def __init__(self, config: Config, *, file: str, layers: Sequence[int] | None = None) -> None:
        super().__init__()
        package = offline_import("dasheng.pretrained.pretrained", "dasheng")
        content = read_weights(file, "config", "model")
        state = content["model"]
        try:
            self.dim = len(state["norm.weight"])
            depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
            known = {"num_heads": _HEADS[self.dim]} if self.dim in _HEADS else {}
            self.model = package.Dasheng(**{**content["config"], "embed_dim": self.dim, "depth": depth, **known})
            patch = self.model.patch_stride[-1]
            self.longest = self.model.target_length // patch
        except TROUBLES as error:
            raise cannot_load(file, error) from None
        if self.model.pooling == "token":
            raise cannot_load(file, "it is a Dasheng with a class token, which is not supported")
        # through a module around it: Dasheng's own load_state_dict resizes positions, and returns nothing
        fill(nn.ModuleDict({"model": self.model}), {f"model.{name}": value for name, value in state.items()}, file)
        mark_as_base(self.model)
        self.choose_layers(layers, depth)
        patches_in_time(config, patch, patch)

    def forward(self, waveforms: Tensor) -> Tensor:
        with torch.autocast(waveforms.device.type, enabled=False):
            # one by one: the floor of the decibels is below the maximum of all that is computed together
            bands = torch.cat([self.model.forward_to_spec(waveform[None].float()) for waveform in waveforms])
        parts = self.model.patch_embed(bands).split(self.longest, dim=3)
        return torch.cat([self._encoded(part) for part in parts], dim=1)

    def _encoded(self, patches: Tensor) -> Tensor:
        """Encode patches (N, dim, bands, T) of at most ``longest`` times as (N, T, bands, dim)."""
        positions = self.model.time_pos_embed[..., : patches.shape[3]] + self.model.freq_pos_embed
        tokens, states = (patches + positions).flatten(2).transpose(1, 2), []
        for block in self.model.blocks:
            tokens = block(tokens)
            states.append(tokens)
        states[-1] = self.model.norm(tokens)
        return self.mean_of(states).unflatten(1, patches.shape[2:]).transpose(1, 2)
