"""Low-rank adaptation (LoRA; Hu et al., ICLR 2022): an encoder's linear layers stay, small updates of them are learned.

It is written here in place of ``peft``, which would bring transformers and accelerate along for these few lines.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rayasd.config.tables import Lora
from rayasd.errors import UserError

NAMES = ("lora_a", "lora_b")  # parameters that an adapted layer has beside those of the layer


class LoraLinear(nn.Linear):
    """A linear layer's ``W x + b`` plus ``alpha / rank * B A x``, of which A (rank, in) and B (out, rank) are learned.

    B starts at zero: outputs are those of the layer, bit for bit. The update is computed beside the layer, not added to
    its weights: in bfloat16 the sum would lose it.
    """

    def __init__(self, layer: nn.Linear, rank: int, alpha: float) -> None:
        nn.Module.__init__(self)  # nn.Linear would draw weights
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias = layer.weight, layer.bias
        self.scale = alpha / rank
        self.lora_a = nn.Parameter(torch.empty(rank, layer.in_features))
        self.lora_b = nn.Parameter(torch.zeros(layer.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))

    def forward(self, values: Tensor) -> Tensor:
        """Map values (..., in) to (..., out)."""
        update = F.linear(F.linear(values, self.lora_a), self.lora_b)
        return F.linear(values, self.weight, self.bias) + self.scale * update


def add_lora(encoder: nn.Module, lora: Lora) -> None:
    """Adapt the linear layers of an encoder whose names end with one of ``lora.targets``, or with ``_proj`` after it.

    Raises UserError: there are none.
    """
    ends = tuple(f".{target}{more}" for target in lora.targets for more in ("", "_proj"))
    layers = {name: module for name, module in encoder.named_modules() if type(module) is nn.Linear}
    chosen = {name: layer for name, layer in layers.items() if f".{name}".endswith(ends)}
    if not chosen:
        there = sorted({name.rpartition(".")[2] for name in layers})
        raise UserError(
            f"network.train lora: the encoder has no linear layer called {' or '.join(lora.targets)}: "
            + (f"there are {', '.join(there)[:200]}" if there else "it has none at all")
        )
    for name, layer in chosen.items():
        encoder.set_submodule(name, LoraLinear(layer, lora.rank, lora.alpha))
