"""Whether a picture of which nothing else is known is a brain FLAIR: fluid dark, white matter not bright.

Asked where headers are silent, so the limits are closer than those of the checks, and what is doubtful is none: a
series that is not reported can be sent again with a name, a report on another contrast misleads. The brain is found by
peeling, which needs no nets; what it finds of a picture that is no FLAIR mostly fits no brain.

What was measured, over white matter; s is gray matter less 0.4 times fluid. Phantoms with the masks of the checks:

=========================================== ============ ============ ============
pictures                                    fluid        gray matter  s
=========================================== ============ ============ ============
4 real FLAIR volumes                        0.21 to 0.46 1.18 to 1.30 1.00 to 1.22
11 FLAIR phantoms, plain and hard           0.00 to 0.50 0.89 to 1.14 0.80 to 1.07
4 real T1 volumes, one of them from DICOM   0.27 to 0.89 0.72 to 0.94 0.58 to 0.64
9 T1 phantoms after contrast medium         0.30 to 0.62 0.66 to 0.93 0.43 to 0.77
=========================================== ============ ============ ============

Series whose pixels are noise, as public test data have, show no brain.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from braingemma.volume.appearance import measure_appearance
from braingemma.volume.brain import above_background
from braingemma.volume.peeling import lacks_skull, peel_brain
from braingemma.volume.resampling import Volume

BRAIN_ML = (700.0, 2300.0)
"""Size of what is taken for the brain."""
EXPLAINED, INSIDE = 0.12, 0.85
"""Least share of the picture that three tissues explain (or `FITS`), and of the brain inside the standard brain."""
FITS = 0.4
"""Share that is explained of all but what is far too bright, where a large lesion is most of the picture's variance."""
FLUID = 0.65
"""Fluid over white matter at most."""
GRAY = (0.92, 2.0)
"""Gray matter over white: above that of T1; below that of double inversion recovery, which nulls white matter."""
LESS_FLUID = 0.8
"""Least gray matter less 0.4 times fluid, both over white matter; see `input.T1_LIKE`."""


@dataclass(frozen=True)
class Seen:
    """What a picture looks like.

    Attributes:
        flair: Whether it is a FLAIR beyond doubt.
        detail: What was seen, in words.
    """

    flair: bool
    detail: str


def looks_like_flair(volume: Volume, axes: npt.NDArray[np.float64]) -> Seen:
    """Judge a picture alone.

    Args:
        volume: (X, Y, Z), axes in RAS order, finite.
        axes: (3, 3), columns are the voxel axes in RAS mm.
    """
    above, spacing = above_background(volume), np.linalg.norm(axes, axis=0)
    mask = above > 0 if lacks_skull(above, spacing) else peel_brain(above, spacing)
    size = 0.0 if mask is None else float(mask.sum() * np.prod(spacing) / 1000)
    if mask is None or not BRAIN_ML[0] <= size <= BRAIN_ML[1]:
        return Seen(False, f"no brain can be told from its surroundings ({size:.0f} ml)")
    look = measure_appearance(above, mask, axes)
    if look is None or look.inside < INSIDE or (look.explained < EXPLAINED and look.fits < FITS):
        return Seen(False, "no brain in it fits the standard brain")
    seen = f"fluid {look.fluid:.2f} and gray matter {look.gray:.2f} of white matter"
    if look.fluid > FLUID:
        return Seen(False, f"fluid is not dark: {seen}")
    if look.gray < GRAY[0] or look.gray - 0.4 * look.fluid < LESS_FLUID:
        return Seen(False, f"white matter is bright as on T1: {seen}")
    if look.gray > GRAY[1]:
        return Seen(False, f"white matter is too dark for FLAIR: {seen}")
    return Seen(True, f"dark fluid, white matter not bright: {seen}")
