"""The lesion by the grounding map: how large, on which side, in which lobes."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any, Final

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.affines import apply_affine
from scipy import ndimage

from braingemma.explain.supervoxels import site_of
from braingemma.findings.vocabulary import SITES, Laterality
from braingemma.volume.brain import Mask
from braingemma.volume.preprocess import PreparedVolume
from braingemma.volume.resampling import resample_whole

Float = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]

LEAST_SHARE: Final = 0.2
"""Patches below this share of lesion count as background."""
LEAST_BRAIN: Final = 0.1
"""Patches of which less than this share is brain lie outside it."""
LIKELY: Final = 0.5
"""A map that reaches this somewhere shows a lesion."""
ONE_SIDED: Final = 0.85
"""Beyond this share of the estimate on one side it is one-sided."""
SITE_SHARE: Final = 0.2
"""A site is named when it holds this share of the estimate."""


@dataclass(frozen=True)
class LesionEstimate:
    """An estimate from a coarse map, not a measurement.

    Attributes:
        peak: Highest lesion share of a patch, in [0, 1].
        volume_ml: Size of `lesion_mask`, ml; 0 where no patch reaches `LEAST_SHARE`.
        laterality: The patient's side; None where there is no volume.
        sites: Names out of `SITES`.
        left_share: Share of the volume on the patient's left, in [0, 1]; None where there is none.
    """

    peak: float
    volume_ml: float
    laterality: Laterality | None
    sites: tuple[str, ...]
    left_share: float | None = None

    @property
    def stated(self) -> bool:
        """Whether the map is sure enough that the volume may stand in a report."""
        return self.peak >= LIKELY and self.volume_ml > 0

    def to_json(self) -> dict[str, Any]:
        """As in `report.json`."""
        return {
            "peak": round(self.peak, 4),
            "volume_ml": round(self.volume_ml, 1),
            "laterality": self.laterality,
            "sites": list(self.sites),
        }


def lesion_mask(grounding: Float32, prepared: PreparedVolume) -> Mask:
    """The lesion as every result shows and measures it: the voxels with the highest shares.

    The map is coarse: around a small lesion no voxel reaches a half, and inside a large one the border's shares are
    lost to any threshold. The sum of the shares over all voxels is the volume that the map expects, so as many voxels
    are taken, the highest first.

    Args:
        grounding: (d, h, w) lesion share of each patch, as `BrainGemma3D.ground` gives it for one volume.
        prepared: The volume that it was made from.

    Returns:
        (X, Y, Z) on the grid of the RAS volume.
    """
    image = nib.Nifti1Image(np.broadcast_to(np.uint8(0), prepared.source_shape), prepared.source_affine)
    shares = grounding_on_grid(grounding, prepared.foreground.shape, prepared.grid_affine, image)
    count = round(float(shares.sum(dtype=np.float64))) if grounding.max() >= LEAST_SHARE else 0
    if prepared.brain.any():
        shares[~prepared.brain] = 0  # a coarse map reaches over the brain's border; a lesion does not
    mask = np.zeros(shares.size, dtype=bool)
    if count:
        # Hardly fewer than wanted; choosing among millions of equal zeros costs seconds.
        inside = np.flatnonzero(shares)
        wanted = min(count, inside.size)
        mask[inside[np.argpartition(shares.ravel()[inside], -wanted)[-wanted:]]] = True
    return mask.reshape(shares.shape)


def estimate_lesion(grounding: Float32, prepared: PreparedVolume) -> LesionEstimate:
    """Size, side and sites of the lesion on a grounding map; arguments as of `lesion_mask`."""
    mask, peak = lesion_mask(grounding, prepared), float(grounding.max())
    volume_ml = float(mask.sum()) * abs(float(np.linalg.det(prepared.source_affine[:3, :3]))) / 1000
    size = np.array(prepared.foreground.shape) / np.array(grounding.shape)  # voxels of a patch, (D, H, W)
    index = np.argwhere(grounding >= LEAST_SHARE)
    if not len(index):
        return LesionEstimate(peak, 0.0, None, ())
    weights = grounding[tuple(index.T)].astype(float)
    centres = apply_affine(prepared.grid_affine, ((index + 0.5) * size - 0.5)[:, ::-1])
    left = float(weights[prepared.frame.right_mm(centres) < 0].sum() / weights.sum())
    return LesionEstimate(peak, volume_ml, _side(left), _sites(prepared.frame.standard(centres), weights), left)


def _side(left: float) -> Laterality:
    """The side of a lesion with this share on the patient's left."""
    if left >= ONE_SIDED:
        return "left"
    return "right" if left <= 1 - ONE_SIDED else "bilateral"


def _sites(places: Float, weights: Float) -> tuple[str, ...]:
    """Sites of patches at these places (N, 3), MNI mm, with these shares of lesion (N,)."""
    shares: dict[str, float] = defaultdict(float)
    for place, weight in zip(places, weights, strict=True):
        shares[site_of(place)] += float(weight / weights.sum())
    return tuple(site for site in SITES if shares[site] >= SITE_SHARE)


def grounding_on_grid(grounding: Float32, grid: tuple[int, ...], grid_affine: Float, image: nib.Nifti1Image) -> Float32:
    """Patch values on the voxels of a RAS volume, linear between the patches' centres, 0 outside their field.

    Args:
        grounding: (d, h, w), one value for each patch of the grid.
        grid: (D, H, W) of the model's grid.
        grid_affine: (4, 4) from the grid's voxel (w, h, d) to RAS mm.
        image: Its shape and affine are the target.

    Returns:
        (X, Y, Z) float32.
    """
    size = np.array(grid[::-1]) / np.array(grounding.shape[::-1])  # voxels of a patch along (w, h, d)
    to_grid = np.diag([*size, 1.0])
    to_grid[:3, 3] = (size - 1) / 2  # the centre of the first patch
    to_patch = np.linalg.inv(grid_affine @ to_grid) @ image.affine
    patches = np.ascontiguousarray(grounding.transpose(2, 1, 0))
    # Half a patch lies between the outermost centres and the border of the field.
    values = np.asarray(
        ndimage.affine_transform(
            np.pad(patches, 1, mode="edge"),
            to_patch[:3, :3],
            to_patch[:3, 3] + 1,
            output_shape=image.shape,
            order=1,
            mode="constant",
            cval=0.0,
        ),
        dtype=np.float32,
    )
    for axis, count in enumerate(patches.shape):  # the grid lies along the volume's axes
        place = to_patch[axis, axis] * np.arange(values.shape[axis]) + to_patch[axis, 3]
        np.moveaxis(values, axis, 0)[(place < -0.5) | (place > count - 0.5)] = 0
    return values


def lesion_map(model: Any, prepared: PreparedVolume) -> Float32 | None:
    """The lesion share of each patch (d, h, w) of a prepared volume, 0 outside the brain.

    Returns:
        None where the weights have no grounding head.
    """
    patches = model.ground(prepared.tensor.to(model.compute_device))
    return None if patches is None else within_brain(patches[0].float().cpu().numpy(), prepared)


def within_brain(patches: Float32, prepared: PreparedVolume) -> Float32:
    """The map (d, h, w) with 0 in each patch that holds hardly any brain: scalp and orbits have no lesion."""
    # Patches divide the grid evenly, see `BrainGemma3D.ground`; their edges may fall between voxels.
    share = resample_whole(prepared.foreground.astype(np.float32), patches.shape)
    return np.where(share >= LEAST_BRAIN, patches, np.float32(0)).astype(np.float32)


def grounding_on(image: nib.Nifti1Image, model: Any, prepared: PreparedVolume) -> Float32 | None:
    """The model's lesion map on the RAS volume's grid; None where the weights have no grounding head."""
    values = lesion_map(model, prepared)
    if values is None:
        return None
    return grounding_on_grid(values, tuple(prepared.tensor.shape[2:]), prepared.grid_affine, image)
