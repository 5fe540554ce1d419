"""Controls: encoders without weights, which show how far plain statistics of the sound get."""

import torch
from torch import Tensor

from rayasd.config import Config
from rayasd.errors import UserError
from rayasd.exposure.encoders import Encoder
from rayasd.exposure.encoders.mel import MelSpectrogram


class Statistics(Encoder):
    """Mean and standard deviation over time of log-mel bands, half of ``network.embedding_dim`` bands."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.dim = config.network.embedding_dim
        if self.dim % 2:
            raise UserError("network.embedding_dim must be even for network.encoder = statistics")
        self.mel = MelSpectrogram(config.front_end, config.data.sample_rate, n_mels=self.dim // 2)
        self.mel.log = True

    def forward(self, waveforms: Tensor) -> Tensor:
        bands = self.mel(waveforms).squeeze(1)
        return torch.cat([bands.mean(dim=2), bands.std(dim=2)], dim=1)


class MaxStatistics(Encoder):
    """Maximum over time of amplitude mel bands: as many as ``bands``, of the waveform as it is."""

    scaling = "none"

    def __init__(self, config: Config, *, bands: int = 128) -> None:
        super().__init__()
        self.dim = bands
        self.mel = MelSpectrogram(config.front_end, config.data.sample_rate, n_mels=bands)
        self.mel.log, self.mel.power = False, 1.0

    def forward(self, waveforms: Tensor) -> Tensor:
        return self.mel(waveforms).squeeze(1).amax(dim=2)


class Level(Encoder):
    """Level of the waveform as it is: its RMS value in dB below full scale, the one feature of a window."""

    scaling = "none"
    dim = 1

    def __init__(self, config: Config) -> None:
        super().__init__()

    def forward(self, waveforms: Tensor) -> Tensor:
        return 10 * waveforms.square().mean(dim=1, keepdim=True).clamp(min=1e-12).log10()
