"""The vision–language projector: a 2-layer MLP from the vision width to the language model's."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Projector(nn.Module):
    """Linear, GELU, Linear, times one learned scale (`vis_scale` of the published checkpoint)."""

    def __init__(self, input_dim: int, output_dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(input_dim, output_dim), nn.GELU(), nn.Linear(output_dim, output_dim))
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, input_dim) to (B, N, output_dim)."""
        return self.mlp(tokens) * self.scale
