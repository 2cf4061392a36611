"""Masks on the model's patches."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from training.phantoms.lesions import PARTS


def patch_share(masks: Tensor, patch: tuple[int, int, int], grid: tuple[int, ...] | None = None) -> Tensor:
    """(B, parts, D, H, W) masks to the lesion's share of each patch (B, d, h, w).

    `grid` (d, h, w) may have one plane more than the volume: patches that overlap along D, as the published tower's.
    """
    lesion = masks[:, : len(PARTS) - 1].float().sum(dim=1, keepdim=True)
    if grid is not None and grid[0] == masks.shape[2] + 1:
        shares = F.avg_pool3d(lesion, patch, stride=(1, *patch[1:]), padding=(patch[0] // 2, 0, 0))
    else:
        shares = F.avg_pool3d(lesion, patch)
    return shares.squeeze(1).clamp(0, 1)


def cell_shares(masks: Tensor, patch: tuple[int, int, int]) -> Tensor:
    """(B, parts, D, H, W) masks to each part's share of the 2 x 2 x 2 cells of each patch, (B, d, h, w, parts * 8)."""
    batch, parts, depth, height, width = masks.shape
    d, h, w = depth // patch[0], height // patch[1], width // patch[2]
    cells = F.adaptive_avg_pool3d(masks.float(), (2 * d, 2 * h, 2 * w)).clamp(0, 1)
    split = cells.view(batch, parts, d, 2, h, 2, w, 2).permute(0, 2, 4, 6, 1, 3, 5, 7)
    return split.reshape(batch, d, h, w, parts * 8)


def focus(masks: Tensor, patch: tuple[int, int, int], count: int, rng: torch.Generator) -> Tensor:
    """(B, count) ascending patches to look at: those with any part in them, their mirror images, others at random.

    Which patches are seen must not tell where the lesion is: each case also looks where other lesions of the batch
    are, a case without a lesion at two of them, one with a lesion at one.

    Args:
        masks: (B, parts, D, H, W) of 0 to 1 on a grid that `patch` divides.
        patch: Its sizes along D, H and W.
        count: How many; all where there are fewer.
        rng: Draws the others.
    """
    touched = F.max_pool3d(masks.float().amax(dim=1, keepdim=True), patch).squeeze(1) > 0.5  # (B, d, h, w)
    wanted = (touched | touched.flip(-1)).flatten(1)
    lesions = wanted[wanted.any(dim=1)]
    if len(lesions):
        first, second = torch.randint(len(lesions), (2, len(wanted)), generator=rng)
        wanted = wanted | lesions[first] | (lesions[second] & ~wanted.any(dim=1, keepdim=True))
    order = wanted * 0.9 + torch.rand(wanted.shape, generator=rng)
    return order.topk(min(count, order.shape[1]), dim=1).indices.sort(dim=1).values
