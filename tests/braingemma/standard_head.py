"""A head whose truth is known: the standard brain, put where one likes."""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from braingemma.volume.brain import Mask
from braingemma.volume.resampling import Volume
from braingemma.volume.standard import standard_brain

SHAPE = (64, 76, 66)
AFFINE = np.array([[3.0, 0, 0, -94.5], [0, 3, 0, -128], [0, 0, 3, -92], [0, 0, 0, 1]])
GRAY, WHITE, FLUID = 1.0, 0.8, 0.3


def lying(degrees: tuple[float, float, float]) -> tuple[Volume, Mask, np.ndarray]:
    """(picture, brain, (4, 4) MNI mm to RAS mm) of a standard brain that is turned, moved, and 5 % smaller."""
    place = np.eye(4)
    place[:3, :3] = 0.95 * Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    place[:3, 3] = 6, -4, 3
    brain = standard_brain()
    to_voxel = np.linalg.inv(np.diag([brain.spacing] * 3 + [1]) + np.pad(np.array([brain.origin]).T, ((0, 1), (3, 0))))
    index = to_voxel @ np.linalg.inv(place) @ AFFINE
    gray, white, inside = (
        ndimage.affine_transform(m, index[:3, :3], index[:3, 3], output_shape=SHAPE, order=1)
        for m in (brain.gray, brain.white, brain.brain)
    )
    picture = GRAY * gray + WHITE * white + FLUID * np.clip(inside - gray - white, 0, 1)
    picture += np.random.default_rng(0).normal(0, 0.03, SHAPE)
    return picture.astype(np.float32), inside > 0.5, place
