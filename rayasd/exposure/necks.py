"""Necks: what makes an embedding of an encoder's features."""

import torch
from torch import Tensor, nn


def mlp(features: int, dim: int, dropout: float) -> nn.Sequential:
    """Make the paper's neck: features (N, features) to embeddings (N, dim)."""
    return nn.Sequential(
        nn.Dropout(dropout), nn.Linear(features, dim), nn.BatchNorm1d(dim), nn.PReLU(), nn.Linear(dim, dim)
    )


class AttentiveStatistics(nn.Module):
    """Attentive statistics pooling (Okabe et al., Interspeech 2018), then a linear layer.

    A grid (N, T, F, features) becomes its weighted mean and deviation over T and F, and these embeddings (N, dim). The
    weights are ``softmax(v tanh(W h + b))`` of each place's features h.
    """

    def __init__(self, features: int, dim: int) -> None:
        super().__init__()
        self.attention = nn.Sequential(nn.Linear(features, dim), nn.Tanh(), nn.Linear(dim, 1))
        self.linear = nn.Linear(2 * features, dim)

    def forward(self, grid: Tensor) -> Tensor:
        """Embed grids."""
        places = grid.flatten(1, 2)
        weights = self.attention(places).softmax(dim=1)
        mean = (weights * places).sum(dim=1)
        variance = (weights * (places - mean.unsqueeze(1)).square()).sum(dim=1)
        return self.linear(torch.cat([mean, (variance + 1e-6).sqrt()], dim=1))
