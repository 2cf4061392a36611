"""The token compressor: a Perceiver that reads all patches into a few visual tokens.

Source: Perceiver, arXiv 2103.03206, in the form of Flamingo's resampler, arXiv 2204.14198, section 2.1 and A.1.1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from braingemma.configuration import BrainGemmaConfig
from braingemma.model.vision import sincos_positions


def sincos_positions_3d(d: int, h: int, w: int, dim: int) -> Tensor:
    """(d, h, w, dim): a third of the channels for each axis, so that every axis is seen on its own."""
    shares = [dim // 3, dim // 3, dim - 2 * (dim // 3)]
    along_d, along_h, along_w = (sincos_positions(n, c) for n, c in zip((d, h, w), shares, strict=True))
    return torch.cat(
        (
            along_d[:, None, None].expand(d, h, w, -1),
            along_h[None, :, None].expand(d, h, w, -1),
            along_w[None, None, :].expand(d, h, w, -1),
        ),
        dim=-1,
    )


class PerceiverLayer(nn.Module):
    """Latents attend to the patches and to each other, then an MLP; both with pre-norm and residual."""

    def __init__(self, dim: int, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_latents = nn.LayerNorm(dim)
        self.norm_patches = nn.LayerNorm(dim)
        self.q_proj = nn.Linear(dim, dim, bias=False)
        self.k_proj = nn.Linear(dim, dim, bias=False)
        self.v_proj = nn.Linear(dim, dim, bias=False)
        self.o_proj = nn.Linear(dim, dim, bias=False)
        self.mlp = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, mlp_ratio * dim), nn.GELU(), nn.Linear(mlp_ratio * dim, dim)
        )

    def forward(self, latents: Tensor, patches: Tensor, positions: Tensor) -> Tensor:
        """Latents (B, N, dim), patches (B, P, dim), positions (P, dim) or (B, P, dim) to new latents (B, N, dim)."""
        query = self.norm_latents(latents)
        memory = torch.cat((self.norm_patches(patches) + positions, query), dim=1)  # (B, P + N, dim)
        q, k, v = (self._split(f(x)) for f, x in ((self.q_proj, query), (self.k_proj, memory), (self.v_proj, memory)))
        seen = F.scaled_dot_product_attention(q, k, v)  # (B, heads, N, dim / heads)
        latents = latents + self.o_proj(seen.transpose(1, 2).flatten(2))
        return latents + self.mlp(latents)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, T, dim / heads)


class PerceiverResampler(nn.Module):
    """Patch features of a volume to `num_visual_tokens` tokens; keys and values carry their 3D position."""

    def __init__(self, config: BrainGemmaConfig) -> None:
        super().__init__()
        dim = config.resampler_width
        self.dim = dim
        self.input_proj = nn.Linear(config.vision_config.hidden_size, dim)
        self.latents = nn.Parameter(torch.randn(config.num_visual_tokens, dim) * dim**-0.5)
        self.layers = nn.ModuleList(
            PerceiverLayer(dim, config.resampler_heads, config.resampler_mlp_ratio)
            for _ in range(config.resampler_layers)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, features: Tensor) -> Tensor:
        """(B, d, h, w, C) to (B, num_visual_tokens, dim)."""
        return self.read(features.flatten(1, 3), self.positions(features.shape[1:4]).to(features))

    def positions(self, grid: Sequence[int]) -> Tensor:
        """(P, dim) of the patches of a grid (d, h, w), in the order of `flatten`."""
        d, h, w = grid
        return sincos_positions_3d(d, h, w, self.dim).view(-1, self.dim)

    def read(self, features: Tensor, positions: Tensor) -> Tensor:
        """(B, P, C) of all patches or of some, and their positions (P, dim) or (B, P, dim), to (B, N, dim)."""
        patches = self.input_proj(features)
        latents = self.latents.expand(len(features), -1, -1)
        for layer in self.layers:
            latents = layer(latents, patches, positions)
        return self.norm(latents)
