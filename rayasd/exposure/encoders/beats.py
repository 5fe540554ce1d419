"""BEATs (Chen et al., ICML 2023): a transformer over patches of 16 frames x 16 mel bands, with speechbrain's layers."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from rayasd.config import Config
from rayasd.errors import UserError
from rayasd.exposure.encoders.patches import KaldiFbank, Pretrained, patches_in_time
from rayasd.exposure.encoders.weights import TROUBLES, cannot_load, fill, offline_import, read_weights


class Beats(Pretrained):
    """Waveforms (N, samples) at 16 kHz to a grid (N, T, 8, 768), T = 62 for ten seconds.

    ``file``: as Microsoft published it, a dictionary ``{cfg, model}`` written by ``torch.save``.

    Raises UserError: speechbrain is missing, or the file is not such a file.
    """

    def __init__(self, config: Config, *, file: str, layers: Sequence[int] | None = None) -> None:
        super().__init__()
        self.fbank = KaldiFbank(window="povey", gain=2.0**15, mean=15.41663, deviation=6.55582)
        speechbrain = offline_import("speechbrain.lobes.models.beats", "beats")
        content = read_weights(file, "cfg", "model")
        try:
            # layers are skipped by chance of numpy's, which no seed of ours decides: a training would not repeat
            cfg = speechbrain.BEATsConfig({**content["cfg"], "encoder_layerdrop": 0.0})
            self.model = _Model(speechbrain, cfg)
        except TROUBLES as error:
            raise cannot_load(file, error) from None
        fill(self.model, content["model"], file)
        self.dim = cfg.encoder_embed_dim
        self.choose_layers(layers, cfg.encoder_layers)
        self.patch = cfg.input_patch_size
        patches_in_time(config, self.patch, self.patch)

    def forward(self, waveforms: Tensor) -> Tensor:
        bands = self.fbank(waveforms)
        grid = (len(bands), bands.shape[1] // self.patch, bands.shape[2] // self.patch, self.dim)
        return self.mean_of(self.model(bands)).reshape(grid)


class _Model(nn.Module):
    """The layers of ``speechbrain.lobes.models.beats.BEATs``, named as there.

    That class cannot be used itself: it reads its file onto the device that the file names, fails without ``wav_lens``,
    and computes mel bands in whatever the autocast says.
    """

    def __init__(self, speechbrain: Any, cfg: Any) -> None:
        super().__init__()
        size, inner, outer = cfg.input_patch_size, cfg.embed_dim, cfg.encoder_embed_dim
        if cfg.deep_norm and cfg.layer_norm_first:
            raise UserError("BEATs has either deep_norm or layer_norm_first")
        self.patch_embedding = nn.Conv2d(1, inner, kernel_size=size, stride=size, bias=cfg.conv_bias)
        self.layer_norm = nn.LayerNorm(inner)
        self.post_extract_proj = nn.Linear(inner, outer) if inner != outer else nn.Identity()
        self.encoder = speechbrain.TransformerEncoder(cfg)

    def forward(self, bands: Tensor) -> list[Tensor]:
        """Return the hidden states (N, T * 8, dim) after each layer, the bands of a time side by side."""
        patches = self.patch_embedding(bands.unsqueeze(1)).flatten(2).transpose(1, 2)
        last, states = self.encoder(self.post_extract_proj(self.layer_norm(patches)), output_all_hiddens=True)
        return [*(state.transpose(0, 1) for state in states[1:-1]), last]
