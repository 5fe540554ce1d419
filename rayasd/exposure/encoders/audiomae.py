"""AudioMAE (Huang et al., NeurIPS 2022) as timm has it: a plain vision transformer over 1024 frames x 128 mel bands."""

from collections.abc import Sequence

import timm
from torch import Tensor

from rayasd.config import Config
from rayasd.errors import UserError
from rayasd.exposure.encoders.patches import KaldiFbank, Pretrained, patches_in_time
from rayasd.exposure.encoders.weights import TROUBLES, fill, read_weights

_FRAMES, _PATCH = 1024, 16


class AudioMae(Pretrained):
    """Waveforms (N, samples) at 16 kHz, 10.2 s at most, to a grid (N, T, 8, dim), T = 62 for ten seconds.

    Shorter windows are filled up with zeros, as in training; patches that are not wholly of sound are left out.

    ``file``: weights as the hub's ``vit_base_patch16_1024_128.audiomae_as2m`` has them (safetensors, or torch);
    ``model``: timm's name of the architecture.

    Raises UserError: the file does not hold these weights, or the window is too long.
    """

    def __init__(
        self, config: Config, *, file: str, layers: Sequence[int] | None = None, model: str = "vit_base_patch16_224"
    ) -> None:
        super().__init__()
        self.fbank = KaldiFbank(_FRAMES)
        state = read_weights(file)
        try:
            self.model = timm.create_model(
                model, img_size=(_FRAMES, 128), in_chans=1, num_classes=0, global_pool="avg",
                fc_norm="fc_norm.weight" in state,  # a norm after the mean instead of before: the grid is before
            )  # fmt: skip
        except TROUBLES as error:
            raise UserError(f"model = {model!r}: timm cannot make it for {_FRAMES} frames: {error}") from None
        fill(self.model, state, file)
        self.dim = self.model.num_features
        self.choose_layers(layers, len(self.model.blocks))
        self.in_time = patches_in_time(config, _PATCH, _PATCH, _FRAMES)

    def forward(self, waveforms: Tensor) -> Tensor:
        bands = self.fbank(waveforms)
        last, states = self.model.forward_intermediates(bands.unsqueeze(1), output_fmt="NLC")
        tokens = self.mean_of([*states[:-1], last[:, self.model.num_prefix_tokens :]])
        return tokens.reshape(len(tokens), _FRAMES // _PATCH, -1, self.dim)[:, : self.in_time]
