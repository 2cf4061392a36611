"""Brain masks as an extraction would give them: the true brain with a border that is off, leaks and bites.

Training pictures are cut out by such masks, so that what is learned does not hang on a perfect one. How often and how
far they are wrong was measured on phantoms of the same generator: docs/training.md.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from training.phantoms.fields import Floats, Grid, smooth_field

Mask = NDArray[np.bool_]

BORDER_MM: Final = (0.7, 1.0)
"""The border's mean place, mm beyond the true one, and its spread between cases; its roughness within one."""
ROUGHNESS_MM: Final = (0.4, 1.6)
LEAKS: Final = (0.55, 0.25, 0.13, 0.07)
"""How many leaks into what lies outside, and bites out of the brain, a mask has: chances of 0, 1, 2, 3."""
BITES: Final = (0.72, 0.18, 0.07, 0.03)
LEAK_MM: Final = (4.0, 16.0)
BITE_MM: Final = (4.0, 14.0)
ORBIT_CHANCE: Final = 0.1
"""Chance that a mask leaks into the orbits, and into the skull's base, on each side."""
BASE_CHANCE: Final = 0.1


def orbit(head: Floats, side: int) -> Floats:
    """(X, Y, Z) distance from the middle of the fat behind one eye, 1 at its border; `head` (3, X, Y, Z) MNI mm."""
    return _distance(head, (27.0 * side, 42.0, -33.0), (13.0, 20.0, 13.0))


def skull_base(head: Floats, side: int) -> Floats:
    """(X, Y, Z) the same of the fat below the temporal bone and in front of it."""
    return _distance(head, (42.0 * side, 6.0, -46.0), (15.0, 26.0, 13.0))


def _distance(head: Floats, centre: tuple[float, float, float], radii: tuple[float, float, float]) -> Floats:
    parts = [((axis - np.float32(c)) / np.float32(r)) ** 2 for axis, c, r in zip(head, centre, radii, strict=True)]
    return np.sqrt(np.sum(parts, axis=0))


def draw_extraction(rng: np.random.Generator, grid: Grid, outside: Floats, head: Floats) -> Mask:
    """(X, Y, Z) the brain as an extraction would find it.

    Args:
        rng: Draws everything.
        grid: The voxels.
        outside: (X, Y, Z) distance to the brain's surface, mm, negative within.
        head: (3, X, Y, Z) MNI mm of the head before any elastic warp.
    """
    border = np.float32(rng.normal(*BORDER_MM)) + np.float32(rng.uniform(*ROUGHNESS_MM)) * smooth_field(rng, grid, 22.0)
    surface = np.flatnonzero(np.abs(outside.ravel()) < 3.0)
    for chances, depth, sign in ((LEAKS, LEAK_MM, 1.0), (BITES, BITE_MM, -1.0)):
        for _ in range(int(rng.choice(4, p=chances)) if len(surface) else 0):
            place = int(surface[rng.integers(len(surface))])
            centre = head.reshape(3, -1)[:, place].reshape(3, 1, 1, 1)
            squared = (((head - centre) / np.float32(rng.uniform(8.0, 20.0))) ** 2).sum(axis=0)
            border = border + np.float32(sign * rng.uniform(*depth)) * np.exp(-0.5 * squared)
    mask = outside < border
    for side in (-1, 1):
        for chance, place_of in ((ORBIT_CHANCE, orbit), (BASE_CHANCE, skull_base)):
            if rng.random() < chance:
                mask |= (place_of(head, side) < rng.uniform(0.5, 1.0)) & (outside < rng.uniform(8.0, 25.0))
    return np.asarray(mask)
