"""Separable linear resampling of an axis-aligned box of voxels."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import sparse

Volume = npt.NDArray[np.float32]
Float = npt.NDArray[np.float64]

SLAB = 32
"""Slices of a large volume that are computed at once."""


def _weights(lower: float, upper: float, count: int, size: int) -> Volume:
    """(count, size): linear interpolation along one axis, widened to the step where the grid is coarser.

    Widening keeps thin structures from falling between two grid voxels. Rows whose centre lies outside the volume
    are zero.
    """
    step = (upper - lower) / count
    centres = lower + (np.arange(count) + 0.5) * step
    reach = max(step, 1.0)
    inside = (centres >= -0.5) & (centres <= size - 0.5)
    nearest = np.clip(centres, 0, size - 1)
    weights = np.clip(1 - np.abs(np.arange(size)[None, :] - nearest[:, None]) / reach, 0, None)
    weights /= weights.sum(axis=1, keepdims=True)
    return np.asarray(weights * inside[:, None], dtype=np.float32)


def resample_box(volume: Volume, lower: Float, upper: Float, sizes: tuple[int, ...], background: float) -> Volume:
    """Sample the box between the edges `lower` and `upper` (source voxels) at `sizes` evenly spaced centres.

    Args:
        volume: (X, Y, Z).
        lower: (3,) lower edges.
        upper: (3,) upper edges.
        sizes: Samples along X, Y, Z.
        background: Value outside the volume.
    """
    out = volume
    for axis in (2, 1, 0):
        weights = _weights(lower[axis], upper[axis], sizes[axis], volume.shape[axis])
        # Weights of a row sum to 1 inside the volume and to 0 outside: the rest is background.
        rest = (1 - weights.sum(axis=1)) * background
        shape = [-1 if a == axis else 1 for a in range(3)]
        out = along_axis(weights, out, axis)
        out += rest.reshape(shape).astype(np.float32)  # in place: it may be as large as the source
    return np.asarray(out, dtype=np.float32)


def along_axis(matrix: Volume, values: Volume, axis: int) -> Volume:
    """Multiply `axis` of `values`, of S entries, with an (N, S) matrix of few numbers in each row: N entries instead.

    The sum of a row is taken in the order of its numbers, by one thread: the bits do not depend on how many threads
    there are, nor on the kernels that a BLAS library picks for a processor.
    """
    front = np.ascontiguousarray(np.moveaxis(values, axis, 0))
    product = sparse.csr_array(matrix) @ front.reshape(front.shape[0], -1)
    return np.moveaxis(product.reshape(matrix.shape[0], *front.shape[1:]), 0, axis)


def resample_whole(volume: Volume, sizes: tuple[int, ...]) -> Volume:
    """The whole volume (X, Y, Z) on a grid of `sizes` with the same outer edges."""
    return resample_box(volume, np.full(3, -0.5), np.array(volume.shape) - 0.5, sizes, 0.0)


def resample_mask(mask: npt.NDArray[np.bool_], sizes: tuple[int, int, int]) -> npt.NDArray[np.bool_]:
    """`resample_whole` of a mask, true above a half; in slabs, as the numbers between would fill the memory."""
    partly = resample_whole(mask.astype(np.float32), (mask.shape[0], *sizes[1:]))
    weights = _weights(-0.5, mask.shape[0] - 0.5, sizes[0], mask.shape[0])
    slabs = (along_axis(weights[first : first + SLAB], partly, 0) > 0.5 for first in range(0, sizes[0], SLAB))
    return np.concatenate(list(slabs))
