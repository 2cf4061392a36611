"""What a training step changes of a case: mirrored, shifted, turned, brightened."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from braingemma.configuration import VolumeSettings

Box = tuple[slice, slice, slice]


def case_generator(*seed: int) -> torch.Generator:
    """A generator of a case's own: what it draws does not depend on which cases are drawn beside it."""
    state = int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0])
    return torch.Generator().manual_seed(state >> 1)


@dataclass(frozen=True)
class Augmentation:
    """Random changes that leave the truth as it is; shares of the field of view, of a z-score, and radians."""

    shift: float = 0.05
    scale: float = 0.06
    turn: float = 0.08
    gain: float = 0.12
    noise: float = 0.08

    def draw(self, rng: torch.Generator, *, flip: bool) -> Tensor:
        """(3, 4): where a voxel of the result lies in the case, in coordinates of ± 1 along W, H and D."""
        spread = (torch.rand(9, generator=rng) * 2 - 1).tolist()
        theta = torch.zeros(3, 4)
        for axis in range(3):
            theta[axis, axis] = 1 + spread[axis] * self.scale
            theta[axis, 3] = spread[3 + axis] * self.shift * 2
        for angle, (a, b) in enumerate(((0, 1), (0, 2), (1, 2))):
            turn = spread[6 + angle] * self.turn
            theta[a, b], theta[b, a] = turn, -turn
        if flip:
            theta[:, 0] = -theta[:, 0]
        return theta

    def volume(self, volume: Tensor, theta: Tensor, settings: VolumeSettings, rng: torch.Generator) -> Tensor:
        """(1, D, H, W) moved and changed in brightness, float32; only where the brain comes to lie.

        What comes in from outside is background, and the background stays as it is.
        """
        low, high = (0.0, 1.0) if settings.normalization == "unit" else (-settings.zscore_clip, settings.zscore_clip)
        background = settings.background
        result = torch.full(volume.shape, background)
        box = moved_box(volume[0] > background + 0.05, theta)
        if box is None:
            return result
        moved = sample(volume.float() - background, theta, box) + background
        gain = 1 + self.gain * torch.randn((), generator=rng)
        offset = 0.5 * self.gain * torch.randn((), generator=rng)
        sigma = self.noise * torch.rand((), generator=rng)
        changed = torch.randn(moved.shape, generator=rng).mul_(sigma).add_(offset).addcmul_(moved, gain)
        result[:, *box] = torch.where(moved > background + 0.05, changed.clamp_(low, high), moved)
        return result


def move_masks(masks: Tensor, theta: Tensor) -> Tensor:
    """(parts, D, H, W) bool masks moved as the volume, float32 shares."""
    result = torch.zeros(masks.shape)
    box = moved_box(masks.any(dim=0), theta)
    if box is not None:
        result[:, *box] = sample(masks.float(), theta, box)
    return result


def moved_box(inside: Tensor, theta: Tensor) -> Box | None:
    """The box (D, H, W) of the result that what is `inside` (D, H, W) can reach; None where nothing is."""
    spans = [torch.nonzero(inside.any(dim=a).any(dim=b)).flatten() for a, b in ((1, 1), (0, 1), (0, 0))]
    if not len(spans[0]):
        return None
    sizes = inside.shape
    # Corners in coordinates of ± 1 in the order W, H, D, one voxel further out, since sampling is linear.
    ends = [
        [(2 * (float(end) + 0.5) / size) - 1 for end in (span[0] - 1, span[-1] + 1)]
        for span, size in zip(reversed(spans), reversed(sizes), strict=True)
    ]
    corners = torch.tensor(list(product(*ends))) - theta[:, 3]
    placed = torch.linalg.solve(theta[:, :3], corners.T)  # (3, 8)
    slices = []
    for axis, size in enumerate(sizes):
        places = ((placed[2 - axis] + 1) * size - 1) / 2
        first = max(0, int(places.min().floor()) - 1)
        slices.append(slice(first, min(size, int(places.max().ceil()) + 2)))
        if slices[-1].stop <= first:
            return None
    return slices[0], slices[1], slices[2]


def sample(values: Tensor, theta: Tensor, box: Box) -> Tensor:
    """(C, D, H, W) sampled in `box` of the grid that `theta` lays over it, linearly; outside is 0."""
    z, y, x = (
        (torch.arange(part.start, part.stop, dtype=torch.float32) * 2 + 1) / size - 1
        for part, size in zip(box, values.shape[1:], strict=True)
    )
    grid = torch.empty(len(z), len(y), len(x), 3)
    for axis, (along_x, along_y, along_z, offset) in enumerate(theta.tolist()):
        plane = along_z * z[:, None] + (along_y * y + offset)  # (d, h)
        torch.add(plane[:, :, None], along_x * x, out=grid[..., axis])
    return F.grid_sample(values[None], grid[None], align_corners=False)[0]
