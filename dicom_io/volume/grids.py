"""Two voxel grids that are the same but for the order and direction of their axes.

Flips and permutations move voxels without touching their values; anything else interpolates. Telling the two apart
keeps the way back from RAS to the source slices exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import nibabel as nib
import numpy as np
import numpy.typing as npt

from dicom_io.volume.geometry import Float, SeriesGeometry

Array = npt.NDArray[np.generic]

GRID_TOLERANCE = 1e-2
"""Largest distance, mm, between a voxel of one grid and its partner in the other."""


@dataclass(frozen=True)
class AxisMap:
    """Signed permutation that leads from one grid's axes to another's.

    Attributes:
        order: `order[a]` is the source axis that becomes axis a.
        flipped: Whether axis a runs backwards, after the permutation.
    """

    order: tuple[int, int, int]
    flipped: tuple[bool, bool, bool]

    def apply(self, array: Array) -> Array:
        """A view (or copy) of a 3D array with its axes moved."""
        moved = np.transpose(array, self.order)
        return moved[tuple(slice(None, None, -1) if f else slice(None) for f in self.flipped)]


def axis_map(
    source_affine: Float, source_shape: tuple[int, ...], target_affine: Float, target_shape: tuple[int, ...]
) -> AxisMap | None:
    """The signed permutation between two grids that hold the same voxels; None where there is none.

    Args:
        source_affine: (4, 4) voxel to mm.
        source_shape: 3 sizes.
        target_affine: (4, 4) voxel to mm of the same space.
        target_shape: 3 sizes.
    """
    relation = np.linalg.inv(source_affine) @ target_affine  # target voxel -> source voxel
    rounded = np.rint(relation[:3, :3])
    if not (np.abs(rounded).sum(axis=0) == 1).all() or not (np.abs(rounded).sum(axis=1) == 1).all():
        return None
    order = tuple(int(np.abs(rounded[:, axis]).argmax()) for axis in range(3))
    flipped = tuple(bool(rounded[order[axis], axis] < 0) for axis in range(3))
    if tuple(source_shape[o] for o in order) != tuple(target_shape):
        return None
    exact = np.eye(4)
    exact[:3, :3] = rounded
    for axis in range(3):
        if flipped[axis]:
            exact[order[axis], 3] = source_shape[order[axis]] - 1
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(target_shape) - 1)
    corners = np.c_[corners, np.ones(8)]
    apart = (corners @ (source_affine @ exact - target_affine).T)[:, :3]
    if np.linalg.norm(apart, axis=1).max() > GRID_TOLERANCE:
        return None
    return AxisMap(order=(order[0], order[1], order[2]), flipped=(flipped[0], flipped[1], flipped[2]))


def ras_grid(geometry: SeriesGeometry) -> tuple[Float, tuple[int, int, int]]:
    """Affine and shape of the closest RAS+ grid of a series: its own voxels, axes permuted and flipped.

    Returns:
        (4, 4) voxel to RAS mm, and (R, A, S) sizes.
    """
    shape = (geometry.columns, geometry.rows, len(geometry.slices))
    orientation = nib.orientations.io_orientation(geometry.affine_ras)
    affine = geometry.affine_ras @ nib.orientations.inv_ornt_aff(orientation, shape)
    sizes = [0, 0, 0]
    for axis, (target, _) in enumerate(orientation):
        sizes[int(target)] = shape[axis]
    return affine, (sizes[0], sizes[1], sizes[2])
