"""Cases as the model takes them: prepared once by the serving path, kept in memory, augmented in batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from braingemma.configuration import BrainGemmaConfig
from braingemma.findings.text import Finding
from braingemma.volume.preprocess import PreparedVolume, prepare_image
from braingemma.volume.resampling import resample_box
from training.data.targets import findings_target
from training.phantoms.lesions import PARTS
from training.phantoms.phantom import Phantom, make_phantom


@dataclass(frozen=True)
class Cases:
    """Prepared cases.

    Attributes:
        volumes: (N, 1, D, H, W) float16, as `prepare_image` gives them.
        masks: (N, parts, D, H, W) bool on the same grid, parts as in `training.phantoms.lesions.PARTS`.
        targets: (N, findings, outputs), see `findings_target`.
        findings: The truth of each case.
        reports: Its reference report.
        synthetic: Whether the grammar may word each report anew.
    """

    volumes: Tensor
    masks: Tensor
    targets: Tensor
    findings: tuple[tuple[Finding, ...], ...]
    reports: tuple[str, ...]
    synthetic: bool = True

    def __len__(self) -> int:
        return len(self.reports)

    def select(self, index: Sequence[int]) -> Cases:
        """The cases at these positions."""
        chosen = list(index)
        return Cases(
            self.volumes[chosen],
            self.masks[chosen],
            self.targets[chosen],
            tuple(self.findings[i] for i in chosen),
            tuple(self.reports[i] for i in chosen),
            self.synthetic,
        )

    @staticmethod
    def join(parts: Sequence[Cases]) -> Cases:
        """All cases of several sets, in order."""
        return Cases(
            torch.cat([p.volumes for p in parts]),
            torch.cat([p.masks for p in parts]),
            torch.cat([p.targets for p in parts]),
            tuple(f for p in parts for f in p.findings),
            tuple(r for p in parts for r in p.reports),
            all(p.synthetic for p in parts),
        )


def training_spacing(seed: int) -> tuple[float, float, float]:
    """Voxel sizes at which phantoms are drawn for training: coarse, often with thicker slices on one axis."""
    rng = np.random.default_rng([seed, 99])
    size = np.full(3, rng.uniform(2.2, 3.0))
    if rng.random() < 0.5:
        size[rng.choice(3, p=[0.15, 0.1, 0.75])] = rng.uniform(3, 6)
    return float(size[0]), float(size[1]), float(size[2])


#: Which phantoms: as they come, or those that `[data]` asks for by this name, as arguments of `make_phantom`.
KINDS: Final[dict[str, dict[str, bool]]] = {
    "any": {},
    "bilateral": {"both_sides": True},
    "plaques": {"with_lesion": False, "large_plaques": True},
}


def training_phantom(seed: int, kind: str = "any") -> Phantom:
    """A coarse phantom of one of `KINDS`; half of them come without skull, since serving takes it off anyway."""
    stripped = bool(np.random.default_rng([seed, 98]).random() < 0.5)
    return make_phantom(seed, spacing=training_spacing(seed), stripped=stripped, **KINDS[kind])


def prepare_case(phantom: Phantom, config: BrainGemmaConfig) -> Cases:
    """One phantom through the path that serving takes, with its mask on the model's grid."""
    prepared = prepare_image(phantom.volume, config)
    masks = [mask_on_grid((phantom.parts == part).astype(np.float32), prepared) for part in PARTS]
    return Cases(
        volumes=prepared.tensor.half(),
        masks=torch.from_numpy(np.stack(masks))[None],
        targets=findings_target(phantom.findings)[None],
        findings=(phantom.findings,),
        reports=(str(phantom.truth["report"]),),
    )


def mask_on_grid(mask: NDArray[np.float32], prepared: PreparedVolume) -> NDArray[np.bool_]:
    """A mask (X, Y, Z) of the RAS source to the tensor's grid (D, H, W): where it fills half a voxel or more."""
    to_source = np.linalg.inv(prepared.source_affine) @ prepared.grid_affine
    step = np.diag(to_source)[:3]
    lower = to_source[:3, 3] - step / 2
    sizes = prepared.settings.grid[::-1]
    share = resample_box(mask, lower, lower + step * np.array(sizes), sizes, 0.0)
    return np.ascontiguousarray(share.transpose(2, 1, 0) > 0.5)


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
