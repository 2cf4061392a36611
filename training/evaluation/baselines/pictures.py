"""A brain volume as other models take it: axial slices as pictures, or one cube in their order of axes."""

from __future__ import annotations

from typing import Any, Final

import nibabel
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from braingemma.errors import VolumeError

Floats = NDArray[np.float32]
_CLIP: Final = (1.0, 99.0)
"""Clip of the brightness, in percent of the voxels that are not background."""


def windowed(image: Any) -> tuple[Floats, tuple[float, float, float]]:
    """(X, Y, Z) RAS voxels scaled to [0, 1], and the voxel size in mm.

    Raises:
        VolumeError: not one 3D volume, or no contrast.
    """
    canonical = nibabel.as_closest_canonical(image)
    volume = np.asarray(canonical.get_fdata(dtype=np.float32))
    if volume.ndim != 3 or not np.isfinite(volume).all() or volume.min() == volume.max():
        raise VolumeError(f"expected one finite 3D volume with contrast, got shape {volume.shape}")
    low, high = np.percentile(volume[volume > volume.min()], _CLIP)
    if not low < high:
        raise VolumeError(f"the voxels have no contrast: p{_CLIP} are {low:g} and {high:g}")
    x, y, z = (float(s) for s in np.linalg.norm(canonical.affine[:3, :3], axis=0))
    return ((volume - low) / (high - low)).clip(0, 1).astype(np.float32), (x, y, z)


def axial_slices(image: Any, count: int) -> list[Image.Image]:
    """Square RGB pictures, bottom to top, spread evenly over the slices that show the head.

    Radiological convention: the patient's right is on the left of the picture, the front on top. Pixels are as wide
    as they are high.
    """
    volume, (dx, dy, _) = windowed(image)
    shown = np.flatnonzero((volume > 0.1).mean(axis=(0, 1)) > 0.02)
    chosen = np.unique(np.linspace(shown[0], shown[-1], count).round().astype(int))
    # (X, Y) with X to the right and Y to the front: columns from right to left, rows from front to back.
    planes = [np.ascontiguousarray(volume[::-1, ::-1, z].T) for z in chosen]
    return [_square(plane, dx, dy) for plane in planes]


def _square(plane: Floats, width_mm: float, height_mm: float) -> Image.Image:
    picture = Image.fromarray((plane * 255).round().astype(np.uint8))
    step = min(width_mm, height_mm)
    size = round(picture.width * width_mm / step), round(picture.height * height_mm / step)
    picture = picture.resize(size, Image.Resampling.BILINEAR)
    canvas = Image.new("L", (max(size), max(size)))
    canvas.paste(picture, ((max(size) - size[0]) // 2, (max(size) - size[1]) // 2))
    return canvas.convert("RGB")


def volume_cube(image: Any, size: tuple[int, int, int]) -> Tensor:
    """(1, 1, D, H, W) in [0, 1]: D bottom to top, H front to back, W the patient's right to left.

    This is the order of an axial series as SimpleITK reads it (LPS), which M3D's models were trained on.
    """
    volume, _ = windowed(image)
    ordered = np.ascontiguousarray(volume.transpose(2, 1, 0)[:, ::-1, ::-1])
    return F.interpolate(torch.from_numpy(ordered)[None, None], size=size, mode="trilinear", align_corners=False)
