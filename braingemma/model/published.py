"""The public BrainGemma3D code's forward, for the weights that were trained with it.

It departs from the card (see the names below); it is kept exactly, because the published weights know nothing else.
Source: arXiv 2602.22098 and the code published with it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import SiglipVisionModel

from braingemma.configuration import KERNEL_DEPTH, BrainGemmaConfig
from braingemma.errors import VolumeError


class PublishedVisionTower(nn.Module):
    """The public code's encoder: RGB kernels averaged and spread over depth, hand-made positions, edges cut off.

    `patch_embedding` is not part of the checkpoint: it follows from the 2D weights at load.
    """

    def __init__(self, config: BrainGemmaConfig) -> None:
        super().__init__()
        self.settings = config.volume_settings
        self.patch_size = int(config.vision_config.patch_size)
        self.patch = (KERNEL_DEPTH, self.patch_size, self.patch_size)
        self.siglip = SiglipVisionModel(config.vision_config)
        self.patch_embedding = nn.Conv3d(
            1,
            config.vision_config.hidden_size,
            kernel_size=self.patch,
            stride=(1, self.patch_size, self.patch_size),
            padding=(1, 0, 0),
        )

    @property
    def padding(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        """Voxels (before, after) that the patches reach beyond the grid along D, H, W; below 0: voxels cut off."""
        _, h, w = self.settings.grid
        return (1, 1), (0, -(h % self.patch_size)), (0, -(w % self.patch_size))

    @property
    def patch_grid(self) -> tuple[int, int, int]:
        """(d, h, w) of the patch features."""
        d, h, w = self.settings.grid
        return d + 1, h // self.patch_size, w // self.patch_size

    def pad(self, volume: Tensor, background: float) -> Tensor:  # noqa: ARG002 - as in the tower that pads
        """As it is: this tower cuts off what its patches do not cover."""
        return volume

    def on_grid(self, values: Tensor) -> Tensor:
        """As they are: the published weights have no lesion map, and the ablation's grid is divided by the patch."""
        return values

    @torch.no_grad()
    def inflate(self) -> None:
        """Set the 3D patch embedding from the 2D tower: mean over RGB, an equal share for each plane."""
        flat = self.siglip.embeddings.patch_embedding
        flat.requires_grad_(False)
        kernel = flat.weight.mean(dim=1, keepdim=True).unsqueeze(2).repeat(1, 1, KERNEL_DEPTH, 1, 1) / KERNEL_DEPTH
        self.patch_embedding.weight.copy_(kernel)
        self.patch_embedding.bias.data.copy_(flat.bias)  # type: ignore[union-attr]

    def positions(self, patch_grid: tuple[int, int, int]) -> Tensor:
        """(d, h, w, C): depth as one scalar in [-1, 1] on all channels; row and column in channels 0 and 1 alone."""
        d, h, w = patch_grid
        weight = self.patch_embedding.weight
        along_d, along_h, along_w = (torch.linspace(-1, 1, n, device=weight.device) for n in (d, h, w))
        table = along_d[:, None, None, None].repeat(1, h, w, weight.shape[0])
        table[..., 0] += along_h[None, :, None]
        table[..., 1] += along_w[None, None, :]
        return table.to(weight.dtype)

    def embed(self, volume: Tensor) -> Tensor:
        """(B, 1, D, H, W) in [0, 1], of any size, to patch embeddings (B, d, h, w, C), before any position."""
        if volume.ndim != 5 or volume.shape[1] != 1 or min(volume.shape[3:]) < self.patch_size:
            raise VolumeError(
                f"expected a volume tensor of shape (B, 1, D, H, W) with H and W of {self.patch_size} or more, "
                f"got {tuple(volume.shape)}"
            )
        weight = self.patch_embedding.weight
        return self.patch_embedding(volume.to(weight.device, weight.dtype)).permute(0, 2, 3, 4, 1)

    def forward(self, volume: Tensor) -> Tensor:
        """(B, 1, D, H, W) to patch features (B, d, h, w, C)."""
        patches = self.embed(volume)
        batch, d, h, w, width = patches.shape
        patches = patches + self.positions((d, h, w))
        encoded = self.siglip.encoder(inputs_embeds=patches.reshape(batch, d * h * w, width)).last_hidden_state
        return self.siglip.post_layernorm(encoded).view(batch, d, h, w, width)


class AveragePool(nn.Module):
    """The public code's compressor: each token averages a run of the flattened (z, y, x) patches."""

    def __init__(self, config: BrainGemmaConfig) -> None:
        super().__init__()
        self.tokens = config.num_visual_tokens

    def forward(self, features: Tensor) -> Tensor:
        """(B, d, h, w, C) to (B, N, C)."""
        return F.adaptive_avg_pool1d(features.flatten(1, 3).transpose(1, 2), self.tokens).transpose(1, 2)
