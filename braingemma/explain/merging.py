"""Merging neighbouring supervoxels that look alike, by Ward's criterion, until a given number is left.

Ward, Journal of the American Statistical Association 58:236, 1963, doi:10.1080/01621459.1963.10500845.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Float = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int16]

LENGTH_MM = 50.0
"""Distance between centroids that counts as much as INTENSITY_STEP between means."""
INTENSITY_STEP = 0.25
"""Difference of mean intensity (0..1 in the brain) that counts as much as LENGTH_MM."""


def merge_alike(labels: Labels, intensity: npt.NDArray[np.floating], spacing: Float, count: int) -> Labels:
    """Merge touching supervoxels until `count` are left, or none touch.

    Args:
        labels: (X, Y, Z), 1..n without gaps, 0 outside.
        intensity: (X, Y, Z) in 0..1.
        spacing: Voxel size (3,), mm.
        count: Supervoxels wanted.

    Returns:
        (X, Y, Z), 1..count without gaps in the order of the first label of each, 0 outside.
    """
    number = int(labels.max())
    index = np.arange(1, number + 1)
    sizes = np.bincount(labels.ravel(), minlength=number + 1)[1:].astype(float)
    centres = np.array(ndimage.center_of_mass(labels > 0, labels, index)) * spacing / LENGTH_MM
    means = np.asarray(ndimage.mean(intensity, labels, index))[:, None] / INTENSITY_STEP
    owner = _merge(np.hstack([means, centres]), sizes, _touching(labels, number), count)
    renumbered = np.unique(owner, return_inverse=True)[1] + 1
    return np.concatenate([[0], renumbered]).astype(np.int16)[labels]


def _merge(features: Float, sizes: Float, touching: npt.NDArray[np.bool_], count: int) -> npt.NDArray[np.int_]:
    """The first member of the group of each item, after merging the cheapest touching pair again and again."""
    owner = np.arange(len(sizes))
    cost = np.where(touching, _ward(features, sizes), np.inf)
    for _ in range(len(sizes) - count):
        first, second = sorted(int(i) for i in np.unravel_index(np.argmin(cost), cost.shape))
        if not np.isfinite(cost[first, second]):
            break
        owner[owner == second] = first
        share = sizes[[first, second]] / sizes[[first, second]].sum()
        features[first] = share @ features[[first, second]]
        sizes[first] += sizes[second]
        touching[first] |= touching[second]
        touching[second], touching[:, second], touching[first, [first, second]] = False, False, False
        touching[:, first] = touching[first]
        cost = np.where(touching, _ward(features, sizes), np.inf)
    return owner


def _ward(features: Float, sizes: Float) -> Float:
    """Growth of the sum of squares if two groups became one, for all pairs."""
    distance = ((features[:, None] - features[None]) ** 2).sum(axis=-1)
    return distance * sizes[:, None] * sizes[None] / (sizes[:, None] + sizes[None])


def _touching(labels: Labels, number: int) -> npt.NDArray[np.bool_]:
    """(n, n): whether two labels share a face."""
    touching = np.zeros((number + 1, number + 1), bool)
    for axis in range(3):
        before = np.take(labels, range(labels.shape[axis] - 1), axis)
        after = np.take(labels, range(1, labels.shape[axis]), axis)
        touching[before, after] = True
    touching |= touching.T
    np.fill_diagonal(touching, False)
    return touching[1:, 1:]
