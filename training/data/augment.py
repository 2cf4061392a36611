"""What a training step changes of a case: mirrored, shifted, brightened."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Augmentation:
    """Random changes that leave the truth as it is; shares of the field of view, of a z-score, and radians."""

    shift: float = 0.05
    scale: float = 0.06
    turn: float = 0.08
    gain: float = 0.12
    noise: float = 0.08

    def apply(self, volumes: Tensor, masks: Tensor, limit: float, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Move and change (B, 1, D, H, W) volumes and their masks; what comes in from outside is `-limit`."""
        grid = F.affine_grid(self._affine(volumes.shape[0], rng), list(volumes.shape), align_corners=False)
        # grid_sample fills with zeros, so values are moved to where zero is background.
        moved = F.grid_sample(volumes.float() + limit, grid, align_corners=False) - limit
        return self._values(moved, limit, rng), F.grid_sample(masks.float(), grid, align_corners=False)

    def _affine(self, batch: int, rng: torch.Generator) -> Tensor:
        theta = torch.zeros(batch, 3, 4)
        spread = torch.rand(batch, 9, generator=rng) * 2 - 1
        for axis in range(3):
            theta[:, axis, axis] = 1 + spread[:, axis] * self.scale
            theta[:, axis, 3] = spread[:, 3 + axis] * self.shift * 2
        for angle, (a, b) in enumerate(((0, 1), (0, 2), (1, 2))):
            turn = spread[:, 6 + angle] * self.turn
            theta[:, a, b], theta[:, b, a] = turn, -turn
        return theta

    def _values(self, volumes: Tensor, limit: float, rng: torch.Generator) -> Tensor:
        batch = volumes.shape[0]
        brain = volumes > -limit + 0.05
        gain = 1 + self.gain * torch.randn(batch, 1, 1, 1, 1, generator=rng)
        offset = 0.5 * self.gain * torch.randn(batch, 1, 1, 1, 1, generator=rng)
        sigma = self.noise * torch.rand(batch, 1, 1, 1, 1, generator=rng)
        changed = volumes * gain + offset + sigma * torch.randn(volumes.shape, generator=rng)
        return torch.where(brain, changed.clamp(-limit, limit), volumes)


def flip_where(flip: Tensor, tensor: Tensor) -> Tensor:
    """(B, ..., W) mirrored left-right in the rows where `flip` (B,) is true."""
    rows = flip.view(-1, *[1] * (tensor.ndim - 1))
    return torch.where(rows, tensor.flip(-1), tensor)
