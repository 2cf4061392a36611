"""Volumes with some supervoxels replaced, scored in batches, each mask once.

Shapes: B batch, K scores for each volume, N masks, F supervoxels, grid (D, H, W).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from nibabel.affines import voxel_sizes
from scipy import ndimage
from torch import Tensor

from braingemma.errors import ExplainError

Float = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int16]
Masks = npt.NDArray[np.bool_]
Replacement = Literal["blur", "mirror", "constant"]
Progress = Callable[[int, int], None]

BLUR_MM = 12.0
"""Standard deviation of the blur: wide enough to take the edge off a lesion, narrow enough to keep the anatomy."""
COMPARED_MM = 5.0
"""Standard deviation of the neighbourhood in which tissue and opposite tissue are compared."""
BRIGHT = 2.0
"""How far above ordinary tissue a neighbourhood is that neither side may show, in spreads of the ordinary."""


class ExplainCancelled(ExplainError):
    """The caller asked to stop between two batches."""


class ReportScorer(Protocol):
    """Scores volumes; the model on a user's path, a known function in tests."""

    def score(self, volumes: Tensor) -> npt.NDArray[np.floating]:
        """(B, 1, D, H, W) to (B,) or (B, K) finite scores; higher speaks for the finding."""
        ...


@dataclass(frozen=True)
class ScoringSettings:
    """How perturbed volumes are scored.

    Attributes:
        batch_size: Volumes in memory at once.
        progress: Called with (volumes scored, volumes planned).
        cancelled: Asked before each batch; True raises `ExplainCancelled`.
    """

    batch_size: int = 8
    progress: Progress | None = None
    cancelled: Callable[[], bool] | None = None

    def __post_init__(self) -> None:
        """Refuse a batch of nothing."""
        if self.batch_size < 1:
            raise ExplainError(f"batch_size must be at least 1, got {self.batch_size}")


@dataclass
class MaskScorer:
    """Scores masks over supervoxels; a mask that was scored before costs nothing.

    Attributes:
        volume: (1, 1, D, H, W) the original.
        filling: (1, 1, D, H, W) what replaced supervoxels show.
        labels: (D, H, W) supervoxels 1..F on the model's grid, 0 is never touched.
        scorer: What is asked.
        settings: Batches, progress, cancelling.
        planned: Volumes expected in all, for progress.
    """

    volume: Tensor
    filling: Tensor
    labels: Tensor
    scorer: ReportScorer
    settings: ScoringSettings = field(default_factory=ScoringSettings)
    planned: int = 0
    _known: dict[bytes, Float] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        """Check that the grids agree."""
        shapes = {tuple(self.volume.shape[2:]), tuple(self.filling.shape[2:]), tuple(self.labels.shape)}
        if self.volume.ndim != 5 or len(shapes) != 1 or self.volume.shape[:2] != (1, 1):
            raise ExplainError(
                f"expected volume and filling (1, 1, D, H, W) and labels (D, H, W) on one grid, got "
                f"{tuple(self.volume.shape)}, {tuple(self.filling.shape)}, {tuple(self.labels.shape)}"
            )

    @property
    def evaluations(self) -> int:
        """Volumes that were really scored."""
        return len(self._known)

    def __call__(self, masks: Masks) -> Float:
        """Scores (N, K) of masks (N, F)."""
        keys = [row.tobytes() for row in masks]
        unknown = list({key: row for row, key in enumerate(keys) if key not in self._known}.values())
        for start in range(0, len(unknown), self.settings.batch_size):
            self._score_batch(masks[unknown[start : start + self.settings.batch_size]])
        return np.stack([self._known[key] for key in keys])

    def perturbed(self, masks: Masks) -> Tensor:
        """Volumes (N, 1, D, H, W) of masks (N, F)."""
        keep = torch.from_numpy(np.concatenate([np.ones((len(masks), 1), bool), masks], axis=1))
        kept_voxels = keep.to(self.labels.device)[:, self.labels].unsqueeze(1)  # (N, 1, D, H, W)
        return torch.where(kept_voxels, self.volume, self.filling)

    def _score_batch(self, masks: Masks) -> None:
        if self.settings.cancelled is not None and self.settings.cancelled():
            raise ExplainCancelled(f"cancelled after {self.evaluations} of about {self.planned} volumes")
        scores = np.asarray(self.scorer.score(self.perturbed(masks)), dtype=np.float64)
        if len(scores) != len(masks) or scores.ndim > 2:
            raise ExplainError(f"expected scores ({len(masks)}, K) from the scorer, got {scores.shape}")
        if not np.isfinite(scores).all():
            raise ExplainError(f"expected finite scores from the model, got {scores.tolist()}")
        for mask, row in zip(masks, scores.reshape(len(masks), -1), strict=True):
            self._known[mask.tobytes()] = row
        if self.settings.progress is not None:
            self.settings.progress(self.evaluations, max(self.planned, self.evaluations))


def filling_for(name: str, volume: Float32, labels: Labels, grid_affine: Float) -> Float32:
    """What replaced tissue shows, for every voxel of the grid.

    Args:
        name: "blur": the brain blurred by BLUR_MM; "mirror": the tissue opposite the midsagittal plane where that
            is the more ordinary of the two, the ordinary intensity where both are bright; "constant": the brain's
            median intensity.
        volume: (D, H, W) as the model gets it.
        labels: (D, H, W); above 0 is brain.
        grid_affine: (4, 4) grid voxel (w, h, d) to RAS mm.

    Returns:
        (D, H, W); outside the brain the volume itself.
    """
    if name not in FILLINGS:
        raise ExplainError(f"expected a replacement of {', '.join(FILLINGS)}, got {name!r}")
    brain = labels > 0
    if not brain.any():
        raise ExplainError("expected supervoxels on the model's grid, got none: brain and grid do not overlap")
    filled = FILLINGS[name](volume, brain, voxel_sizes(grid_affine)[::-1])
    return np.where(brain, filled, volume).astype(np.float32)


def _constant(volume: Float32, brain: Masks, spacing: Float) -> Float32:  # noqa: ARG001 - one signature for all
    """Median of the brain: what most of its tissue looks like."""
    return np.full_like(volume, np.median(volume[brain]))


def _blur(volume: Float32, brain: Masks, spacing: Float) -> Float32:
    """Gaussian blur that takes nothing from outside the brain."""
    return _smooth(volume, brain, BLUR_MM / spacing)


def _mirror(volume: Float32, brain: Masks, spacing: Float) -> Float32:
    """The more ordinary of a voxel's own and its opposite tissue, by the neighbourhood of each.

    Taking the opposite tissue everywhere would put the lesion into the healthy side as soon as that is replaced, and
    the healthy side would then seem to speak for the lesion. Ordinary is the median of the darker of each pair: on
    FLAIR a lesion is bright, so that median is not moved by a large one. Where tissue stays bright even so, as in a
    lesion at the midline or on both sides, that median takes its place: the lesion would else never go.
    """
    opposite = _opposite(volume, brain, spacing)
    darker = np.minimum(volume, opposite)[brain]
    ordinary = np.median(darker)
    own_oddity, opposite_oddity = (
        _smooth(np.abs(tissue - ordinary), brain, COMPARED_MM / spacing) for tissue in (volume, opposite)
    )
    chosen = np.where(opposite_oddity < own_oddity, opposite, volume)
    spread = 1.4826 * np.median(np.abs(darker - ordinary))  # as a standard deviation
    excess = _smooth(np.maximum(chosen - ordinary, 0), brain, COMPARED_MM / spacing)
    return np.where(excess > BRIGHT * spread, ordinary, chosen)


def _opposite(volume: Float32, brain: Masks, spacing: Float) -> Float32:
    """Tissue of the same place on the other side; the median where that lies outside the brain."""
    columns = np.flatnonzero(brain.any(axis=(0, 1)))
    opposite = columns[0] + columns[-1] - np.arange(volume.shape[2])
    inside = (opposite >= 0) & (opposite < volume.shape[2])
    picked = np.where(inside, opposite, 0)
    is_brain = brain[:, :, picked] & inside
    return np.where(is_brain, volume[:, :, picked], _constant(volume, brain, spacing))


def _smooth(volume: Float32, brain: Masks, sigma: Float) -> Float32:
    """Gaussian mean over the brain's voxels alone (normalised convolution); `sigma` in voxels."""
    share = ndimage.gaussian_filter(brain.astype(np.float32), sigma)
    return ndimage.gaussian_filter(np.where(brain, volume, 0).astype(np.float32), sigma) / np.maximum(share, 1e-6)


FILLINGS: Mapping[str, Callable[[Float32, Masks, Float], Float32]] = MappingProxyType(
    {"blur": _blur, "mirror": _mirror, "constant": _constant}
)
