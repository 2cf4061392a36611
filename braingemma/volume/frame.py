"""Where a place lies in the brain: how far from the midsagittal plane, and at which place of the standard brain.

The middle of the brain's box is not its midsagittal plane where the head is turned within the slices, or where the mask
or the field of view leaves out more of one side: at 8 degrees of roll a lesion 8 mm beside the plane is on the other
side of the box's middle. So the standard brain is laid over the picture (`braingemma.volume.appearance`); it knows the
plane. Only where it does not fit is the box stretched onto the standard brain's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from nibabel.affines import voxel_sizes

from braingemma.volume.appearance import lay_standard
from braingemma.volume.brain import Mask
from braingemma.volume.resampling import Volume

Float = npt.NDArray[np.float64]

STANDARD_LOW: Final = (-70.0, -104.0, -66.0)
"""Left, posterior and inferior end of the MNI152 brain, MNI mm."""
STANDARD_HIGH: Final = (70.0, 72.0, 80.0)
"""Its right, anterior and superior end."""
FITS: Final = 0.05
"""The laid standard brain is believed where it explains this share of all but what is far too bright (a large lesion is
most of the variance; 0.11 where one of 250 ml has pushed the rest away, 0 where nothing has a shape),"""
INSIDE: Final = 0.8
"""and this share of the brain lies within it."""
TALLEST: Final = 0.85
"""A mask that reaches down the neck must not push places up: the box's height is at most this share of its length."""
ENDS: Final = (0.5, 99.5)
"""Percentiles of the brain's voxels along an axis between which its box lies: single voxels do not count."""


@dataclass(frozen=True)
class BrainFrame:
    """The standard brain's coordinates in a picture.

    Attributes:
        to_standard: (3, 4) from RAS mm (x, y, z, 1) to MNI mm.
        laid: Whether the standard brain was laid over the picture; otherwise its box was stretched.
    """

    to_standard: Float
    laid: bool

    def standard(self, points: npt.ArrayLike) -> Float:
        """MNI mm (..., 3) of places (..., 3) in RAS mm."""
        return np.asarray(points, np.float64) @ self.to_standard[:, :3].T + self.to_standard[:, 3]

    def right_mm(self, points: npt.ArrayLike) -> Float:
        """Distance (...) of places (..., 3), RAS mm, from the midsagittal plane, mm, negative on the left."""
        across = float(np.linalg.norm(self.to_standard[0, :3]))  # MNI mm for each mm of the patient
        return np.asarray(self.standard(points)[..., 0] / across)


def find_frame(volume: Volume, mask: Mask, affine: Float) -> BrainFrame:
    """The frame of the brain in a picture.

    Args:
        volume: (X, Y, Z), axes in RAS order, finite.
        mask: (X, Y, Z), true inside the brain, somewhere at least.
        affine: (4, 4) voxel to RAS mm.
    """
    laid = lay_standard(volume, mask, affine[:3, :3])
    if laid is None or laid.appearance.fits < FITS or laid.appearance.inside < INSIDE:
        return BrainFrame(_stretched(mask, affine), laid=False)
    return BrainFrame(_after(laid.to_standard, affine), laid=True)


def _stretched(mask: Mask, affine: Float) -> Float:
    """(3, 4) RAS mm to MNI mm: the brain's box along the volume's own axes, which are turned with the head."""
    low, high = np.percentile(np.argwhere(mask), ENDS, axis=0)
    size = voxel_sizes(affine)
    low[2] = max(low[2], high[2] - TALLEST * (high[1] - low[1]) * size[1] / size[2])
    step = (np.array(STANDARD_HIGH) - STANDARD_LOW) / np.maximum(high - low, 1.0)
    return _after(np.column_stack([np.diag(step), STANDARD_LOW - step * low]), affine)


def _after(from_voxel: Float, affine: Float) -> Float:
    """(3, 4) from RAS mm, of a map (3, 4) from voxels."""
    return np.asarray(from_voxel @ np.linalg.inv(affine))
