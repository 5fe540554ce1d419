"""Several encoders side by side, of which the rest of the house sees one."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rayasd.config import Config
from rayasd.errors import UserError
from rayasd.exposure.encoders import Encoder, features_of_windows, make_encoder


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
