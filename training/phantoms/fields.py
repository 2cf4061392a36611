"""Smooth random fields and coordinate maps, evaluated only where they are needed (a separable cubic B-spline)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from braingemma.volume.resampling import along_axis

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Grid:
    """A regular RAS grid: voxels (X, Y, Z), their size in mm, and the position in mm of voxel (0, 0, 0)."""

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]

    @property
    def affine(self) -> NDArray[np.float64]:
        """(4, 4) voxel → mm."""
        affine = np.diag([*self.spacing, 1.0])
        affine[:3, 3] = self.origin
        return affine

    def axes(self) -> list[Floats]:
        """Positions in mm along each axis."""
        return [
            (start + step * np.arange(size)).astype(np.float32)
            for size, step, start in zip(self.shape, self.spacing, self.origin, strict=True)
        ]

    def points(self) -> Floats:
        """(3, X, Y, Z) positions in mm."""
        return np.stack(np.meshgrid(*self.axes(), indexing="ij"))


def _spline_matrix(size: int, controls: int) -> Floats:
    """(size, controls) cubic B-spline weights; the control points span the axis with one to spare at each end."""
    position = np.linspace(0.0, controls - 3.0 - 1e-6, size)
    cell = np.floor(position).astype(int)
    t = position - cell
    weights = (
        (1 - t) ** 3 / 6,
        (3 * t**3 - 6 * t**2 + 4) / 6,
        (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6,
        t**3 / 6,
    )
    matrix = np.zeros((size, controls + 1), np.float32)
    rows = np.arange(size)
    for offset, weight in enumerate(weights):
        matrix[rows, np.minimum(cell + offset, controls)] += weight
    return matrix[:, :controls]


def smooth_field(rng: np.random.Generator, grid: Grid, scale_mm: float) -> Floats:
    """(X, Y, Z) smooth noise of mean 0 and standard deviation about 1 that varies over `scale_mm`."""
    controls = [max(4, round(size * step / scale_mm) + 3) for size, step in zip(grid.shape, grid.spacing, strict=True)]
    field = rng.standard_normal(controls).astype(np.float32)
    for axis, (size, count) in enumerate(zip(grid.shape, controls, strict=True)):
        field = along_axis(_spline_matrix(size, count), field, axis)
    return np.ascontiguousarray(field) * np.float32(1.0 / 0.48**1.5 / 1.15)


def smooth_displacement(rng: np.random.Generator, grid: Grid, scale_mm: float, amplitude_mm: float) -> Floats:
    """(3, X, Y, Z) smooth displacement in mm with about `amplitude_mm` standard deviation on each axis."""
    return np.stack([smooth_field(rng, grid, scale_mm) for _ in range(3)]) * np.float32(amplitude_mm)


def rotation(rng: np.random.Generator, degrees: float) -> NDArray[np.float64]:
    """(3, 3) rotation by independent normal angles about x, y, z with the given standard deviation."""
    ax, ay, az = np.deg2rad(rng.normal(0.0, degrees, 3))
    rx = np.array([[1, 0, 0], [0, np.cos(ax), -np.sin(ax)], [0, np.sin(ax), np.cos(ax)]])
    ry = np.array([[np.cos(ay), 0, np.sin(ay)], [0, 1, 0], [-np.sin(ay), 0, np.cos(ay)]])
    rz = np.array([[np.cos(az), -np.sin(az), 0], [np.sin(az), np.cos(az), 0], [0, 0, 1]])
    product: NDArray[np.float64] = rx @ ry @ rz
    return product


def apply_matrix(matrix: NDArray[np.float64], points: Floats) -> Floats:
    """(3, 3) matrix times points (3, ...)."""
    x, y, z = points
    return np.stack([a * x + b * y + c * z for a, b, c in matrix.astype(np.float32)])
