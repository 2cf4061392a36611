"""The 3D vision encoder: a SigLIP tower whose patch embedding is inflated from pictures to volumes.

Shapes: B batch; D, H, W voxels; d, h, w patches; C width of the tower.
Sources: SigLIP, arXiv 2303.15343; inflation, Carreira & Zisserman, arXiv 1705.07750 (mean) and Arnab et al. (ViViT),
arXiv 2103.15691, section 3.4 (central frame).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import SiglipVisionModel

from braingemma.configuration import BrainGemmaConfig
from braingemma.errors import VolumeError


def sincos_positions(length: int, dim: int) -> Tensor:
    """Sine–cosine code of 0 … length-1, (length, dim), each column within ± 1 (Vaswani et al., arXiv 1706.03762)."""
    pairs = (dim + 1) // 2
    frequency = torch.exp(torch.arange(pairs, dtype=torch.float32) * (-math.log(10_000.0) / max(pairs, 1)))
    angle = torch.arange(length, dtype=torch.float32)[:, None] * frequency[None, :]
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(1)[:, :dim]


def middle_plane(depth: int) -> int:
    """Index of the middle of `depth` planes; of an even number, the upper (more superior) of the two middle ones."""
    return depth // 2


def inflate_kernel(kernel: Tensor, depth: int, how: str) -> Tensor:
    """Turn the kernel of a picture into the kernel of a gray volume.

    The colour channels are summed, so that a gray volume gives what an RGB picture with three equal channels gives.

    Args:
        kernel: (C, channels, p, p), SigLIP's patch embedding.
        depth: Planes of the 3D kernel.
        how: "center" (all in `middle_plane`) or "mean" (an equal share in each plane).

    Returns:
        (C, 1, depth, p, p).
    """
    gray = kernel.sum(dim=1, keepdim=True).unsqueeze(2)  # (C, 1, 1, p, p)
    if how == "mean":
        return gray.repeat(1, 1, depth, 1, 1) / depth
    volume = gray.new_zeros(*gray.shape[:2], depth, *gray.shape[3:])
    volume[:, :, middle_plane(depth)] = gray[:, :, 0]
    return volume


def symmetric_padding(size: int, patch: int) -> tuple[int, int]:
    """Voxels to add before and after `size` so that `patch` divides the sum; the odd one goes to the end."""
    missing = -size % patch
    return missing // 2, missing - missing // 2


class InflatedVisionTower(nn.Module):
    """SigLIP over the patches of a volume.

    `siglip` is kept whole, its 2D kernel included (frozen, unused here), so that `vision_model/` stays a SigLIP
    checkpoint which any other tool loads.
    """

    def __init__(self, config: BrainGemmaConfig) -> None:
        super().__init__()
        self.settings = config.volume_settings
        self.patch_size = int(config.vision_config.patch_size)
        self.patch = (config.patch_depth, self.patch_size, self.patch_size)
        self.inflation = config.inflation
        width = config.vision_config.hidden_size
        self.siglip = SiglipVisionModel(config.vision_config)
        self.patch_embedding = nn.Conv3d(1, width, kernel_size=self.patch, stride=self.patch)
        self.depth_position = nn.Parameter(torch.zeros(self.patch_grid[0], width))

    @property
    def padding(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        """Voxels added (before, after) along D, H and W, so that nothing is cut off."""
        d, h, w = (symmetric_padding(n, p) for n, p in zip(self.settings.grid, self.patch, strict=True))
        return d, h, w

    @property
    def patch_grid(self) -> tuple[int, int, int]:
        """(d, h, w): patches of the padded grid."""
        d, h, w = (math.ceil(n / p) for n, p in zip(self.settings.grid, self.patch, strict=True))
        return d, h, w

    @torch.no_grad()
    def inflate(self) -> None:
        """Set the 3D patch embedding and the depth positions from the 2D tower's weights."""
        flat = self.siglip.embeddings
        flat.patch_embedding.requires_grad_(False)  # only read here, never used in `forward`
        self.patch_embedding.weight.copy_(inflate_kernel(flat.patch_embedding.weight, self.patch[0], self.inflation))
        self.patch_embedding.bias.data.copy_(flat.patch_embedding.bias)  # type: ignore[union-attr]
        code = sincos_positions(*self.depth_position.shape)
        size = flat.position_embedding.weight.float().square().mean().sqrt()
        self.depth_position.copy_(code * (size / code.square().mean().sqrt()))

    def to_siglip_range(self, volume: Tensor) -> Tensor:
        """z-scores to [-1, 1], the range that SigLIP was trained on; "unit" volumes are taken as they are."""
        if self.settings.normalization == "unit":
            return volume
        limit = self.settings.zscore_clip
        return volume.clamp(-limit, limit) / limit

    def pad(self, volume: Tensor, background: float) -> Tensor:
        """Grow (B, channels, D, H, W) symmetrically to a multiple of the patch; the new voxels are `background`."""
        (d0, d1), (h0, h1), (w0, w1) = self.padding
        return F.pad(volume, (w0, w1, h0, h1, d0, d1), value=background)

    def on_grid(self, values: Tensor) -> Tensor:
        """(B, d, h, w), one value for each patch of the padded grid, to as many equal boxes of the grid itself."""
        if not any(map(any, self.padding)):
            return values
        for axis, patch in enumerate(self.patch):
            values = values.repeat_interleave(patch, dim=axis + 1)
        for axis, ((before, _), size) in enumerate(zip(self.padding, self.settings.grid, strict=True)):
            values = values.narrow(axis + 1, before, size)
        return F.adaptive_avg_pool3d(values.unsqueeze(1), self.patch_grid).squeeze(1)

    def embed(self, volume: Tensor) -> Tensor:
        """(B, 1, D, H, W) to patch embeddings (B, d, h, w, C), before any position."""
        if volume.ndim != 5 or volume.shape[1:] != (1, *self.settings.grid):
            expected = ("B", 1, *self.settings.grid)
            raise VolumeError(f"expected a volume tensor of shape {expected}, got {tuple(volume.shape)}")
        weight = self.patch_embedding.weight
        background = self.to_siglip_range(torch.tensor(self.settings.background)).item()
        padded = self.pad(self.to_siglip_range(volume.to(weight.device, weight.dtype)), background)
        return self.patch_embedding(padded).permute(0, 2, 3, 4, 1)  # (B, d, h, w, C)

    def positions(self) -> Tensor:
        """(d, h, w, C): the pretrained 2D table, interpolated to h x w, plus the depth term."""
        _, h, w = self.patch_grid
        table = self.siglip.embeddings
        probe = self.depth_position.new_empty(1, h * w, self.depth_position.shape[1])
        plane = table.interpolate_pos_encoding(probe, h * self.patch_size, w * self.patch_size)
        return plane.view(1, h, w, -1) + self.depth_position[:, None, None, :]

    def forward(self, volume: Tensor) -> Tensor:
        """(B, 1, D, H, W) to patch features (B, d, h, w, C) after the encoder and its last layer norm."""
        patches = self.embed(volume) + self.positions()
        return self.encode(patches.flatten(1, 3)).view(patches.shape)

    def encode(self, patches: Tensor) -> Tensor:
        """(B, P, C) embeddings of all patches or of some, positions added, to their features (B, P, C)."""
        return self.siglip.post_layernorm(self.siglip.encoder(inputs_embeds=patches).last_hidden_state)
