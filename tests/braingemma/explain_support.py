"""A head that is quick to make, and scorers whose answer is known."""

from __future__ import annotations

from dataclasses import dataclass

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.affines import apply_affine
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from torch import Tensor

LEFT_MARK = (-38.0, -20.0, 25.0)
"""RAS mm, in the left hemisphere."""


def head(
    spacing: tuple[float, float, float] = (3.0, 3.0, 3.0),
    *,
    skull: bool = True,
    mark: tuple[float, float, float] | None = None,
    seed: int = 0,
) -> nib.Nifti1Image:
    """A RAS volume: an ellipsoid brain with ventricles and noise, skull and scalp around it, a bright mark of 20 mm.

    The brain is centred at RAS (0, 0, 0) with half axes 66, 84, 62 mm: about 1440 ml.
    """
    half = np.array([84.0, 102.0, 80.0])
    shape = np.ceil(2 * half / spacing).astype(int)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -(shape - 1) / 2 * spacing
    points = apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1))
    radius = np.sqrt(((points / [66.0, 84.0, 62.0]) ** 2).sum(axis=-1))
    rng = np.random.default_rng(seed)
    volume = np.where(radius < 1, 300 + 10 * np.sin(points[..., 0] / 9) * np.cos(points[..., 1] / 11), 20.0)
    volume[(np.abs(points[..., 0]) < 12) & (np.abs(points[..., 1]) < 30) & (np.abs(points[..., 2] - 5) < 10)] = 60
    if skull:
        volume[(radius > 1.13) & (radius < 1.21)] = 260  # scalp beyond the dark skull
    if mark is not None:
        volume[((points - mark) ** 2).sum(axis=-1) < 20.0**2] = 520
    volume += rng.normal(0, 4, volume.shape)
    return nib.Nifti1Image(np.clip(volume, 0, None).astype(np.float32), affine)


def reoriented(image: nib.Nifti1Image, codes: str) -> nib.Nifti1Image:
    """The same volume stored in another axis order, e.g. "LAS" or "PSR"."""
    transform = ornt_transform(io_orientation(image.affine), axcodes2ornt(codes))
    data = apply_orientation(np.asarray(image.dataobj), transform)
    return nib.Nifti1Image(data, image.affine @ inv_ornt_aff(transform, image.shape))


def brain_of(image: nib.Nifti1Image) -> npt.NDArray[np.bool_]:
    """The true brain of `head`, (X, Y, Z)."""
    points = apply_affine(image.affine, np.moveaxis(np.indices(image.shape), 0, -1))
    return np.asarray(((points / [66.0, 84.0, 62.0]) ** 2).sum(axis=-1) < 1)


@dataclass
class BrightScorer:
    """Mean of the voxels above a level: it depends on a bright mark and on nothing else. Counts its batches."""

    level: float
    batches: int = 0
    largest: int = 0

    def score(self, volumes: Tensor) -> npt.NDArray[np.floating]:
        self.batches += 1
        self.largest = max(self.largest, len(volumes))
        excess = (volumes - self.level).clamp(min=0).flatten(1).sum(dim=1)
        return -1 + np.asarray(excess.numpy(), float) / 1000


def turned(affine: np.ndarray, axis: int, degrees: float) -> np.ndarray:
    """An affine (4, 4) whose volume is turned with the head about one of the scanner's axes R, A, S."""
    turn, angle = np.eye(4), np.radians(degrees)
    first, second = (other for other in range(3) if other != axis)
    turn[[first, second], [first, second]] = np.cos(angle)
    turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
    return turn @ affine
