"""Two networks without mel bands: residual on the magnitude spectrogram, and on the spectrum of the whole window.

They are the branches of the "MultiResNet" of ASDKit (Fujimura et al.), after Wilkinghoff, ICASSP 2023; their embeddings
are concatenated. No layer has a bias and no batch normalisation is affine: with an angular loss, a network that could
learn constants could ignore its input.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torchaudio
from torch import Tensor, nn

from rayasd.config import Config
from rayasd.errors import UserError
from rayasd.exposure.encoders import Encoder

LONG = ((256, 64), (64, 32), (16, 4))  # kernels and strides of ``FftNetwork`` for whole clips

SHORT = ((256, 64), (64, 8), (8, 4))  # kernels and strides of ``FftNetwork`` for windows of a few seconds


class StftResNet(Encoder):
    """Residual network on the magnitude spectrogram: waveforms (N, samples) to embeddings (N, dim).

    ``n_fft``: samples of a frame, Hann-windowed, one each ``hop_length``; ``f_min``, ``f_max``: frequencies in Hz;
    ``subtract_mean``: take the mean over time from each frequency bin, as Wilkinghoff does.

    Raises UserError: a window is shorter than a frame, or there is no bin between f_min and f_max.
    """

    scaling = "none"
    ends_in_float32 = True

    def __init__(
        self, config: Config, *, n_fft: int = 1024, hop_length: int = 512, f_min: float = 200.0, f_max: float = 8000.0,
        dim: int = 128, subtract_mean: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        sample_rate, length = config.data.sample_rate, config.window_length
        if length < n_fft:
            raise _too_short(f"a spectrogram with n_fft {n_fft}", length, n_fft, sample_rate)
        frequencies = torch.arange(n_fft // 2 + 1, dtype=torch.float64) * sample_rate / n_fft
        bins = torch.nonzero((frequencies >= f_min) & (frequencies <= f_max)).flatten().tolist()
        if not bins:
            raise UserError(f"no frequency bin of n_fft {n_fft} is between f_min {f_min:g} and f_max {f_max:g} Hz")
        self.dim, self.subtract_mean = dim, subtract_mean
        self.first, self.stop = bins[0], bins[-1] + 1
        self.spectrogram = torchaudio.transforms.Spectrogram(
            n_fft=n_fft, hop_length=hop_length, power=None, normalized=True, center=True, pad_mode="constant"
        )
        self.normalise = nn.BatchNorm1d(len(bins), affine=False)
        widths = (16, 16, 32, 64, 128)
        self.trunk = nn.Sequential(
            nn.Conv2d(1, 16, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(16, affine=False),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2, padding=1),
            *(
                block
                for before, after in pairwise(widths)
                for block in (_Residual(before, after, 1 if before == after else 2), _Residual(after, after, 1))
            ),
        )
        height = len(bins)
        for _ in range(5):  # two layers before the stages, three stages: each halves, rounding up
            height = (height + 1) // 2
        features = height * widths[-1]
        self.head = nn.Sequential(nn.BatchNorm1d(features, affine=False), nn.Linear(features, dim, bias=False))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # the stub lacks it; a quarter faster on CPUs

    def forward(self, waveforms: Tensor) -> Tensor:
        with torch.autocast(waveforms.device.type, enabled=False):
            spectra = _magnitude(self.spectrogram(waveforms.float())[:, self.first : self.stop])
            if self.subtract_mean:
                spectra = spectra - spectra.mean(dim=2, keepdim=True)
            spectra = self.normalise(spectra)
        features = self.trunk(spectra.unsqueeze(1).contiguous(memory_format=torch.channels_last))
        # in bfloat16, embeddings would have 8 bits: their distances would tie
        with torch.autocast(waveforms.device.type, enabled=False):
            return self.head(features.float().amax(dim=3).flatten(1))


class FftNetwork(Encoder):
    """Convolutions along the magnitude spectrum of the whole window: waveforms (N, samples) to embeddings (N, dim).

    All of it is computed in float32: the spectrum's range is too wide for bfloat16.

    ``strides``: (kernel, stride) of each convolution; by default ``LONG`` where the window is long enough for it
    (70 014 samples, 4.4 s at 16 kHz), ``SHORT`` below. The number of parameters depends on the window's length.

    Raises UserError: the window is too short for the convolutions.
    """

    scaling = "none"
    ends_in_float32 = True

    def __init__(self, config: Config, *, dim: int = 128, strides: Sequence[tuple[int, int]] | None = None) -> None:
        super().__init__()
        sample_rate, length = config.data.sample_rate, config.window_length
        if strides is None:
            strides = LONG if length >= _shortest(LONG) else SHORT
        if length < _shortest(strides):
            raise _too_short("the FFT network", length, _shortest(strides), sample_rate)
        self.dim = dim
        size, layers = length // 2 + 1, list[nn.Module]()
        for n, (kernel, stride) in enumerate(strides):
            layers += [nn.Conv1d(128 if n else 1, 128, kernel, stride, bias=False), nn.ReLU(), _Excitation(128)]
            size = (size - kernel) // stride + 1
        layers += [nn.Flatten(), nn.Linear(128 * size, 128, bias=False)]
        for _ in range(4):
            layers += [nn.Linear(128, 128, bias=False), nn.BatchNorm1d(128, affine=False), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(128, dim, bias=False))

    def forward(self, waveforms: Tensor) -> Tensor:
        with torch.autocast(waveforms.device.type, enabled=False):
            return self.layers(_magnitude(torch.fft.rfft(waveforms.float())).unsqueeze(1))


class _Residual(nn.Module):
    """A pre-activation residual block with squeeze-excitation."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.BatchNorm2d(before, affine=False),
            nn.ReLU(),
            nn.Conv2d(before, after, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(after, affine=False),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, padding=1, bias=False),
            _Excitation(after),
        )
        self.skip = (
            nn.Identity()
            if stride == 1 and before == after
            else nn.Sequential(nn.MaxPool2d(stride, ceil_mode=True), nn.Conv2d(before, after, 1, bias=False))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.residual(x) + self.skip(x)


class _Excitation(nn.Module):
    """Squeeze-excitation with ratio 16: weighs channels by what they hold on average."""

    def __init__(self, width: int) -> None:
        super().__init__()
        narrow = width // 16
        self.gate = nn.Sequential(
            nn.Linear(width, narrow, bias=False), nn.ReLU(), nn.Linear(narrow, width, bias=False), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        weights: Tensor = self.gate(x.flatten(2).mean(dim=2) if x.dim() == 3 else x.mean(dim=(2, 3)))
        return x * weights.reshape(*weights.shape, *[1] * (x.dim() - 2))


def _magnitude(spectrum: Tensor) -> Tensor:
    squares = spectrum.real.square() + spectrum.imag.square()  # twice as fast as the complex magnitude on CPUs
    return squares.clamp(min=1e-30).sqrt()  # at 0 the root has no finite gradient


def _shortest(strides: Sequence[tuple[int, int]]) -> int:
    """Find how many samples leave one value after the convolutions."""
    size = 1
    for kernel, stride in reversed(strides):
        size = (size - 1) * stride + kernel
    return max(2 * (size - 1), 1)


def _too_short(what: str, length: int, shortest: int, sample_rate: int) -> UserError:
    seconds = f"{shortest / sample_rate:.3g} s at {sample_rate} Hz"
    return UserError(f"{what} needs windows of {shortest} samples ({seconds}) at least, not of {length}")
