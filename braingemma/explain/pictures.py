"""Slices of a RAS volume as RGB tiles in radiological convention.

Volumes have shape (X, Y, Z) with axes R, A, S. Pictures have shape (rows, columns[, 3]), row 0 on top.
Axial and coronal: the patient's left is on the right of the picture. Sagittal: anterior is on the left.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from nibabel.affines import apply_affine, voxel_sizes
from PIL import Image

Float = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Plane = Literal["axial", "coronal", "sagittal"]

AXIS: dict[Plane, int] = {"sagittal": 0, "coronal": 1, "axial": 2}
MARKS: dict[Plane, tuple[str, str]] = {"axial": ("R", "L"), "coronal": ("R", "L"), "sagittal": ("A", "P")}
"""What lies at the left and at the right edge of a picture."""
DIRECTIONS = (("L", "R"), ("P", "A"), ("I", "S"))
"""Letter of negative and positive positions along each RAS axis."""
FOR_COLOUR = (1.0, 0.10, 0.05)
AGAINST_COLOUR = (0.10, 0.40, 1.0)
REGION_COLOUR = (1.0, 0.85, 0.1)
"""Line around the strongest region: yellow."""


@dataclass(frozen=True)
class View:
    """What is cut and how it is scaled.

    Attributes:
        affine: (4, 4) voxel to RAS mm.
        box: First and last + 1 voxel shown along each axis: ((x0, x1), (y0, y1), (z0, z1)).
        pixel_mm: Size of a picture's square pixels, mm.
    """

    affine: Float
    box: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    pixel_mm: float

    def tile_shape(self, plane: Plane) -> tuple[int, int]:
        """Rows and columns of a tile of this plane."""
        across, up = [a for a in range(3) if a != AXIS[plane]]
        spacing = voxel_sizes(self.affine)
        columns, rows = ((self.box[a][1] - self.box[a][0]) * spacing[a] / self.pixel_mm for a in (across, up))
        return max(1, round(rows)), max(1, round(columns))

    def cut(self, volume: npt.NDArray[np.generic], plane: Plane, index: int, *, smooth: bool = True) -> Float32:
        """One slice (rows, columns) inside the box; `smooth`: linear between voxels, else nearest."""
        picture = to_picture(self._slab(volume, plane, index))
        rows, columns = self.tile_shape(plane)
        how = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
        resized = Image.fromarray(np.ascontiguousarray(picture, np.float32)).resize((columns, rows), how)
        return np.asarray(resized, dtype=np.float32)

    def _slab(self, volume: npt.NDArray[np.generic], plane: Plane, index: int) -> npt.NDArray[np.generic]:
        """The two-dimensional cut inside the box, first axis across."""
        inside: list[slice | int] = [slice(*limits) for limits in self.box]
        inside[AXIS[plane]] = index
        return volume[tuple(inside)]

    def position(self, plane: Plane, index: int) -> float:
        """RAS coordinate of a slice at the middle of the box, mm, along the plane's normal."""
        centre = [(low + high - 1) / 2 for low, high in self.box]
        centre[AXIS[plane]] = index
        return float(apply_affine(self.affine, centre)[AXIS[plane]])


def to_picture(cut: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """A cut (across, up) of a RAS volume to (rows, columns): both axes turn round.

    Axial and coronal: columns run from the patient's right to the left; sagittal: from anterior to posterior.
    Rows run from anterior (axial) or superior to posterior or inferior.
    """
    return cut[::-1, ::-1].T


def position_text(plane: Plane, millimetres: float) -> str:
    """Position of a slice for a reader: "S 32 mm", "L 5 mm"."""
    negative, positive = DIRECTIONS[AXIS[plane]]
    rounded = round(millimetres)
    return f"{positive if rounded >= 0 else negative} {abs(rounded)} mm"


def acquired_plane(affine: Float) -> Plane:
    """The plane of thick slices; axial where the voxels are about as thick as wide."""
    spacing = voxel_sizes(affine)
    thickest = int(np.argmax(spacing))
    if spacing[thickest] < 1.5 * np.median(spacing):
        return "axial"
    return next(plane for plane, axis in AXIS.items() if axis == thickest)


def grey(cut: Float32, window: tuple[float, float]) -> Float32:
    """A cut (rows, columns) as grey RGB (rows, columns, 3) in 0..1."""
    low, high = window
    return np.repeat(np.clip((cut - low) / max(high - low, 1e-9), 0, 1)[..., None], 3, axis=2).astype(np.float32)


def blend(picture: Float32, weights: Float32, limit: float, alpha: float) -> Float32:
    """Lay weights (rows, columns) over a picture: red for, blue against, the fainter the smaller.

    Args:
        picture: RGB (rows, columns, 3) in 0..1.
        weights: Positive for, negative against.
        limit: Weight of full colour.
        alpha: Opacity of full colour.
    """
    strength = np.clip(np.abs(weights) / limit, 0, 1)[..., None] * alpha if limit > 0 else np.zeros((1, 1, 1))
    colour = np.where((weights > 0)[..., None], FOR_COLOUR, AGAINST_COLOUR)
    return (picture * (1 - strength) + colour * strength).astype(np.float32)


def outline(picture: Float32, mask: Mask, colour: tuple[float, float, float], width: int = 2) -> Float32:
    """Draw the inner edge of a mask (rows, columns), `width` pixels wide, into a copy of a picture."""
    drawn = picture.copy()
    drawn[inner_edge(mask, width)] = colour
    return drawn


def inner_edge(mask: Mask, width: int) -> Mask:
    """The pixels of a mask (rows, columns) that lie at most `width` from its outside."""
    inner = mask.copy()
    for _ in range(width):
        padded = np.pad(inner, 1)
        inner &= padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return np.asarray(mask & ~inner)


def montage(tiles: list[Float32], columns: int, gap: int = 2) -> tuple[Float32, list[tuple[int, int]]]:
    """Tiles of one shape, row by row on black.

    Returns:
        The picture (rows, columns, 3) and the (row, column) of each tile's first pixel in it.
    """
    height, width = tiles[0].shape[:2]
    rows = -(-len(tiles) // columns)
    sheet = np.zeros((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), np.float32)
    corners = [((n // columns) * (height + gap), (n % columns) * (width + gap)) for n in range(len(tiles))]
    for tile, (row, column) in zip(tiles, corners, strict=True):
        sheet[row : row + height, column : column + width] = tile
    return sheet, corners
