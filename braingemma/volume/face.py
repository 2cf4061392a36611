"""The face taken out of a head, so that nobody is known by it (PS3.15, Clean Recognizable Visual Features Option).

As Quickshear (Schimke and Hale, HealthSec 2011) does it: what lies in front of the brain and below it, beyond a plane
that touches it there, goes; no voxel of the brain can. The package of that name takes one plane, along the first edge
of the brain's outline, which follows the rounding of the frontal pole: on thin slices it is so steep that the eyes
stay. So here are several planes, in millimetres, for slices in any direction.
"""

from __future__ import annotations

import nibabel
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from braingemma.errors import VolumeError
from braingemma.volume.brain import (
    BrainMask,
    Mask,
    above_background,
    agreement_of_nets,
    background_value,
    find_brain,
)

Float = npt.NDArray[np.float64]

DEGREES_DOWN = (15.0, 30.0, 45.0, 60.0)
"""How far below straight ahead the planes look: together they take the face of a head that is tilted by 20, too."""
DISTANCE_MM = 10.0
"""From the brain to each plane."""
WHOLE_BRAIN_ML = (500.0, 2300.0)
"""What a brain measures; with less or more of it the plane would be elsewhere."""
ONE_PIECE = 0.97
"""Share of the mask that must be connected."""
LEAST_SHARE, LARGEST_SHARE = 0.005, 0.5
"""Share of the head that a plane of the right place takes away."""
SAME_BRAIN = 0.9
"""Dice's coefficient of all that a picture shows and of the nets' brain in it: 0.97 and more for brains that came
stripped, 0.62 for real heads, up to 0.73 for drawn ones."""
HEAD_SHARE = 0.1
"""A voxel counts as head where it reaches this share of the 99th percentile."""


def brain_of_head(voxels: npt.NDArray[np.float32], affine: Float) -> BrainMask:
    """The brain along which the face is removed.

    Args:
        voxels: (X, Y, Z), axes in RAS order, finite.
        affine: (4, 4): voxel to RAS mm.

    Raises:
        VolumeError: none was found.
    """
    brain = find_brain(voxels, np.linalg.norm(affine[:3, :3], axis=0))
    if brain is None:
        raise VolumeError("the face cannot be removed: no brain was found in the picture")
    return brain


def without_face(image: nibabel.Nifti1Image, brain: BrainMask) -> nibabel.Nifti1Image:
    """The picture with background in place of the face; every other voxel, the grid and the header stay as they are.

    Args:
        image: 3D, axes in RAS order.
        brain: On its grid.

    Raises:
        VolumeError: the mask is not believed, so that the face would not surely be gone.
    """
    stored = np.asanyarray(image.dataobj.get_unscaled() if nibabel.is_proxy(image.dataobj) else image.dataobj)
    keep = outside_face(stored, np.asarray(image.affine, np.float64), brain)
    defaced = np.where(keep, stored, stored.dtype.type(background_value(stored)))
    result = nibabel.Nifti1Image(defaced, image.affine, image.header)
    if nibabel.is_proxy(image.dataobj):
        result.header.set_slope_inter(image.dataobj.slope, image.dataobj.inter)
    return result


def outside_face(voxels: npt.NDArray[np.generic], affine: Float, brain: BrainMask) -> Mask:
    """Where a picture (X, Y, Z) in RAS order may keep its voxels: all of the brain, and what is not the face.

    Raises:
        VolumeError: see `without_face`.
    """
    values = np.asarray(voxels, np.float32)
    _check_mask(brain)
    if brain.stripped:
        _check_stripped(values, affine, brain)
        return np.ones(brain.mask.shape, bool)
    keep = _behind_planes(brain.mask, affine)
    values = above_background(values)
    head = values > HEAD_SHARE * float(np.percentile(values, 99))
    share = float((head & ~keep).sum() / max(1, head.sum()))
    if not LEAST_SHARE <= share <= LARGEST_SHARE:
        raise VolumeError(
            f"the face cannot be removed: expected that {LEAST_SHARE:.1%} to {LARGEST_SHARE:.0%} of the head lie in "
            f"front of the brain and below it, got {share:.1%}: the brain mask may take in the face, or the picture "
            "ends above it"
        )
    return keep


def _check_mask(brain: BrainMask) -> None:
    if brain.method == "peeling":
        raise VolumeError(
            "the face cannot be removed: the brain was found by the simpler method only, whose mask may take in orbits"
        )
    low, high = WHOLE_BRAIN_ML
    if not low <= brain.volume_ml <= high:
        raise VolumeError(
            f"the face cannot be removed: expected a brain mask of {low:g} to {high:g} ml, got {brain.volume_ml:.0f} ml"
        )
    labels, count = ndimage.label(brain.mask)
    largest = np.bincount(labels.ravel())[1:].max() / brain.mask.sum() if count else 0.0
    if largest < ONE_PIECE:
        raise VolumeError(
            f"the face cannot be removed: expected one connected brain mask, got {count} parts, "
            f"the largest with {largest:.0%}"
        )


def _check_stripped(values: npt.NDArray[np.float32], affine: Float, brain: BrainMask) -> None:
    """That a picture had no skull was judged by its values: the nets, which look for a brain, must say the same."""
    try:
        agreement = agreement_of_nets(values, brain, np.linalg.norm(affine[:3, :3], axis=0))
    except VolumeError as error:
        raise VolumeError(f"the face cannot be removed: {error}") from error
    if agreement < SAME_BRAIN:
        raise VolumeError(
            "the face cannot be removed: the picture seems to have come without skull and face, but the nets that look "
            f"for a brain agree with its outline by {agreement:.2f} only, expected {SAME_BRAIN:g} (Dice)"
        )


def _behind_planes(mask: Mask, affine: Float) -> Mask:
    """(X, Y, Z): false beyond any of the planes that touch the mask's lower front, `DISTANCE_MM` away from it."""
    behind = np.ones(mask.shape, bool)
    inside = np.argwhere(mask)
    axes = [np.arange(size, dtype=np.float64) for size in mask.shape]
    for angle in np.radians(DEGREES_DOWN):
        ahead = np.array([0.0, np.cos(angle), -np.sin(angle)]) @ affine[:3, :3]  # mm for each step of an index
        farthest = float((inside @ ahead).max()) + DISTANCE_MM
        i, j, k = (axis * step for axis, step in zip(axes, ahead, strict=True))
        behind &= i[:, None, None] + j[None, :, None] + k[None, None, :] <= farthest
    return behind
