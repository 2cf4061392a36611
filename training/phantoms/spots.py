"""Bright spots of white matter that are no mass: age, and plaques of multiple sclerosis."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from training.phantoms.anatomy import Atlas, load_atlas
from training.phantoms.fields import Floats, Grid, smooth_field

_LARGEST_SPOT_ML: Final = 2.5
"""No single spot of a healthy brain is larger than this, ml, and no plaque, alone or run together with others, than the
second: `LEAST_ML` is above both."""
_LARGEST_PLAQUE_ML: Final = 7.0
PLAQUE_BURDEN_ML: Final = (2.05, 1.45, 0.3, 49.0)
"""Multiple sclerosis as measured in the consensus masks of 26 patients on the MNI152 grid (Lesjak et al.,
Neuroinformatics 2017, doi 10.1007/s12021-017-9348-7): ml in all (mean and deviation of its logarithm, least,
most); mm between plaque and lateral ventricle (median of each patient, least to most); how many times as long as
thick a plaque of 0.3 ml or more is (quartiles). The largest run-together one held 9 to 85 % of the whole."""
PLAQUE_DISTANCE_MM: Final = (3.7, 17.8)
PLAQUE_ELONGATION: Final = (2.2, 4.5)
MEASURED_PLAQUE_SHARE: Final = 0.45
LARGE_PLAQUE_SHARE: Final = 0.3
"""How many heads without a lesion have large plaques, as in advanced multiple sclerosis."""


def white_matter_spots(
    rng: np.random.Generator, atlas: Atlas, grid: Grid, points: Floats, white: Floats, plaque_share: float
) -> Floats:
    """Small hyperintensities of ageing, plaques, and bright caps along the ventricles: never a lesion."""
    spots = np.zeros(grid.shape, np.float32)
    if rng.random() < 0.6:
        spots = _ageing_spots(rng, grid, white)
    near = atlas.sample(ventricle_halo(), points)
    if rng.random() < 0.6:
        strength = rng.uniform(0.2, 1.0)
        spots = np.maximum(spots, np.clip(near * strength, 0, 1) * np.clip(white * 1.5, 0, 1))
    if rng.random() < 0.4:
        _add_plaques(spots, rng, grid, near, white)
    large = rng.spawn(1)[0]  # a generator of its own: whatever is drawn for them, all else stays as it is
    if large.random() < plaque_share:
        _add_large_plaques(spots, large, grid, near, white)
    return spots


def measured_plaques(rng: np.random.Generator, atlas: Atlas, grid: Grid, points: Floats, white: Floats) -> Floats:
    """Plaques of one patient, as bright as 1 at their middle: many small ones, the large ones along the ventricles."""
    mean, spread, least, most = PLAQUE_BURDEN_ML
    burden = float(np.clip(np.exp(rng.normal(mean, spread)), least, most))
    distance = atlas.sample(ventricle_distance(), points)
    # A plaque is drawn out along one axis: noise of equal size in all, looked up on a grid squeezed along two.
    thick = rng.uniform(4.5, 8.0)
    long = thick * rng.uniform(*PLAQUE_ELONGATION)
    noise = smooth_field(rng, _squeezed(grid, int(rng.integers(2)), thick / long), thick)
    near = np.exp(-distance / np.float32(rng.uniform(*PLAQUE_DISTANCE_MM)))
    side = rng.normal(0.0, 0.25) * np.sign(points[0])
    score = noise * np.float32(0.6) + near * np.float32(rng.uniform(0.8, 3.0)) + side
    score = np.where((white > 0.45) & (distance > 0), score, np.float32(-99))
    voxels = min(int(burden * 1000 / float(np.prod(grid.spacing))) + 1, score.size)
    threshold = np.partition(score.ravel(), -voxels)[-voxels]
    return (np.clip((score - threshold) * 3.0 + 0.5, 0, 1) * np.clip(white * 1.5, 0, 1)).astype(np.float32)


def _squeezed(grid: Grid, axis: int, factor: float) -> Grid:
    """The same voxels, smaller along one axis: noise on it is longer there."""
    spacing = [step * (factor if a == 1 + axis else 1.0) for a, step in enumerate(grid.spacing)]
    return Grid(grid.shape, (spacing[0], spacing[1], spacing[2]), grid.origin)


def _ageing_spots(rng: np.random.Generator, grid: Grid, white: Floats) -> Floats:
    """Irregular spots strewn over the white matter; fewer where one of them would be as large as a lesion."""
    threshold = rng.uniform(1.7, 2.8)
    noise = smooth_field(rng, grid, rng.uniform(5.0, 8.0)) + 0.4 * smooth_field(rng, grid, 40.0)
    inside = np.clip(white * 1.5 - 0.5, 0, 1)
    while True:
        spots: Floats = (np.clip((noise - threshold) * 2.5, 0, 1) * inside).astype(np.float32)
        if _largest_ml(spots, grid) <= _LARGEST_SPOT_ML:
            return spots
        threshold += 0.25


def _largest_ml(spots: Floats, grid: Grid) -> float:
    """Size of the largest connected spot, ml; 0 where there is none."""
    labels, _ = ndimage.label(spots > 0.3)
    return float(np.bincount(labels.ravel(), minlength=2)[1:].max() * (np.prod(grid.spacing) / 1000))


def _add_plaques(spots: Floats, rng: np.random.Generator, grid: Grid, near: Floats, white: Floats) -> None:
    """Ovoid plaques of 3 to 11 mm, most of them at the ventricles' walls, in place."""
    at_wall = np.argwhere((near > 0.15) & (white > 0.5))
    anywhere = np.argwhere(white > 0.8)
    for _ in range(int(rng.integers(3, 25))):
        choices = at_wall if rng.random() < 0.6 and len(at_wall) else anywhere
        if not len(choices):
            return
        centre = choices[rng.integers(len(choices))]
        radii = rng.uniform(1.5, 4.0) * np.exp(rng.normal(0.0, 0.25, 3)) / grid.spacing  # voxels
        _add_ovoid(spots, centre, radii, rng.uniform(0.5, 1.0), white)


def _add_large_plaques(spots: Floats, rng: np.random.Generator, grid: Grid, near: Floats, white: Floats) -> None:
    """One to five plaques of 8 to 22 mm, some run together, in place; all smaller than a lesion."""
    at_wall, anywhere = np.argwhere((near > 0.15) & (white > 0.5)), np.argwhere(white > 0.8)
    centre = None
    for _ in range(int(rng.integers(1, 6))):
        choices = at_wall if rng.random() < 0.5 and len(at_wall) else anywhere
        if not len(choices):
            return
        if centre is not None and rng.random() < 0.4:  # beside the last one
            choices = choices[np.linalg.norm((choices - centre) * grid.spacing, axis=1) < 14.0]
        if not len(choices):
            continue
        centre = choices[rng.integers(len(choices))]
        radii = rng.uniform(4.0, 10.0) * np.exp(rng.normal(0.0, 0.2, 3)) / grid.spacing  # voxels
        larger = spots.copy()
        _add_ovoid(larger, centre, radii, rng.uniform(0.6, 1.0), white)
        if _largest_ml(larger, grid) <= _LARGEST_PLAQUE_ML:
            spots[...] = larger


def _add_ovoid(
    spots: Floats, centre: NDArray[np.int64], radii: NDArray[np.float64], bright: float, white: Floats
) -> None:
    """An ellipsoid of `radii` voxels where there is white matter, soft at its border, in place."""
    low = np.maximum(np.floor(centre - 1.5 * radii - 1), 0).astype(int)
    high = np.minimum(np.ceil(centre + 1.5 * radii + 2), spots.shape).astype(int)
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    axes = [(np.arange(a, b) - c) / r for a, b, c, r in zip(low, high, centre, radii, strict=True)]
    distance = np.sqrt(sum(np.square(axis) for axis in np.ix_(*axes)))
    spots[box] = np.maximum(spots[box], np.clip((1.3 - distance) * 2.0, 0, 1) * bright * (white[box] > 0.2))


@lru_cache(maxsize=1)
def ventricle_halo() -> Floats:
    """How near to a ventricle's wall, on the atlas's grid: 1 at it, fading over about 4 mm."""
    near = ndimage.gaussian_filter((load_atlas().standard.ventricle > 0.4).astype(np.float32), 1.2)
    return np.clip(near * 2.5, 0, 1).astype(np.float32)


@lru_cache(maxsize=1)
def ventricle_distance() -> Floats:
    """Distance to the nearest lateral ventricle on the atlas's grid, mm; 0 inside."""
    atlas = load_atlas()
    return np.asarray(
        ndimage.distance_transform_edt(atlas.standard.ventricle <= 0.4) * atlas.standard.spacing, np.float32
    )
