"""Checks of a picture before the model sees it: a model writes a report about anything, a bag of noise included.

Each check looks at one thing and says what it saw. The limits were set on real FLAIR volumes, phantoms, and phantoms
drawn with T1, T2 and proton density contrast, cut, or with noise added; `tests/braingemma/checks/test_input_checks.py`
keeps them. They are wide: a check that often cries wolf is switched off.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt

from braingemma.checks.domain import Domain
from braingemma.volume.appearance import Appearance, measure_appearance
from braingemma.volume.brain import BrainMask, Mask, above_background, find_brain
from braingemma.volume.resampling import Volume

Float = npt.NDArray[np.float64]

BRAIN_ML = (500.0, 2600.0)
"""Size of what brain extraction may find: infants' brains to large ones with their fluid and a rim of the skull."""
SIDE_SHARE, TOP_SHARE, BOTTOM_SHARE = 0.1, 0.2, 0.35
"""Brain in the outermost slice over brain in the fullest one, above which the brain goes on outside the picture: to the
sides, to the front and back; at the top, where 3 mm more are a fifth of a cap; at the bottom, where brainstem and
cerebellum are often left out."""
NOISE = 0.12
"""Noise over brightness of the brain; real FLAIR volumes have 0.03 to 0.05."""
NOISE_VOXELS = 8_000_000
"""About as many voxels are looked at for the noise: a large volume must not be copied three times for it."""
EXPLAINED, INSIDE = 0.08, 0.85
"""Least share of the picture that three tissues explain (or `FITS`), and of the brain that lies in the standard brain,
where the standard brain fits at all."""
FITS = 0.1
"""Share that is explained of all but what is far too bright, where a large lesion is most of the picture's variance."""
DARK_FLUID = 0.8
"""Fluid over white matter; FLAIR below 0.7, proton density about 1, T2 above 1.5."""
T1_LIKE = (0.4, 0.785)
"""Share s and limit l: below l for gray matter less s times fluid (both over white matter) it is T1. After contrast
medium, or by spin echo, gray matter comes near white, but fluid is then less dark than where FLAIR has as little
contrast. T1 phantoms after contrast medium have at most 0.66, 0.73 to 0.77 where gray matter has 93 to 95 % of white
matter's brightness; real T1 volumes 0.52 to 0.65; FLAIR phantoms at least 0.80, real FLAIR volumes 0.95 to 1.14."""
FACE_SHARE = 0.5
"""Brain in its own last slice over brain in its fullest one, above which it ends in a flat face: part of the head is
blank. Brains taper; slices of 7 mm end with a fifth."""
DISTANCE = 4.0
"""Standard deviations from the training pictures; of pictures like them, one in 70 lies farther (chi squared, 6). Of
137 held-out phantoms 3 do (at most 4.3), real FLAIR volumes have 2.3 to 3.2, and 15 of 16 T1 phantoms after contrast
medium, whose gray matter comes near white, have 4.2 to 6.8."""

NAMES = ("brain", "coverage", "noise", "contrast", "domain")
"""What is checked, in this order."""


@dataclass(frozen=True)
class Check:
    """What one check saw.

    Attributes:
        name: One of `NAMES`.
        passed: Whether the picture may be reported as far as this check can tell; None where it cannot tell.
        detail: The values it saw, in words; a whole sentence where it did not pass.
    """

    name: str
    passed: bool | None
    detail: str

    def to_json(self) -> dict[str, Any]:
        """As `report.json` holds it."""
        return dict(vars(self))


@dataclass(frozen=True)
class _Picture:
    """A volume and what the checks measured on it."""

    axes: Float
    mask: Mask
    shown: Mask
    volume_ml: float
    noise: float
    appearance: Appearance | None


def check_input(path: str | Path, domain: Domain | None = None, brain: BrainMask | None = None) -> tuple[Check, ...]:
    """Check a NIfTI volume that `prepare_volume` has accepted.

    Args:
        path: The volume; its header says the orientation.
        domain: What the weights were trained on; None: not known.
        brain: Where the brain is, on the volume's grid in nibabel's canonical order; None: it is looked for.

    Returns:
        One for each of `NAMES`; without a brain, only the first.
    """
    canonical = nibabel.as_closest_canonical(nibabel.load(path))
    volume = np.asarray(canonical.get_fdata(dtype=np.float32, caching="unchanged"))
    axes = np.asarray(canonical.affine, dtype=np.float64)[:3, :3]
    picture = _measure(volume, axes, brain)
    found = _brain_check(picture)
    if picture is None or not found.passed:
        return (found,)
    coverage = _coverage_check(picture)
    contrast = _contrast_check(picture, whole=bool(coverage.passed))
    return (found, coverage, _noise_check(picture), contrast, _domain_check(picture, domain))


def picture_features(volume: Volume, axes: Float, brain: BrainMask | None = None) -> dict[str, float] | None:
    """What a `Domain` is made of; None where there is no brain, or none that fits the standard brain.

    Args:
        volume: (X, Y, Z), axes in RAS order, finite.
        axes: (3, 3), columns are the voxel axes in RAS mm.
        brain: Where the brain is; None: it is looked for.
    """
    picture = _measure(volume, axes, brain)
    return _features(picture) if picture is not None and _brain_check(picture).passed else None


def _measure(volume: Volume, axes: Float, brain: BrainMask | None) -> _Picture | None:
    brain = brain or find_brain(volume, np.linalg.norm(axes, axis=0))
    if brain is None:
        return None
    above = above_background(volume)
    plausible = BRAIN_ML[0] <= brain.volume_ml <= BRAIN_ML[1]
    return _Picture(
        axes=axes,
        mask=brain.mask,
        shown=_shown(above, brain.mask),
        volume_ml=brain.volume_ml,
        noise=noise_share(above, brain.mask),
        appearance=measure_appearance(above, brain.mask, axes) if plausible else None,
    )


def _shown(above: Volume, mask: Mask) -> Mask:
    """The brain without what is blank, into which the nets round it off; all of it where values mean no brightness."""
    shown = mask & (above > 0)
    return shown if 4 * shown.sum() > mask.sum() else mask


def noise_share(volume: Volume, mask: Mask) -> float:
    """Standard deviation of the noise over the brain's median brightness.

    By second differences of neighbours, whose median hardly sees edges (in the manner of Immerkaer 1996); the axis with
    the smallest is the one that shows least anatomy.

    Args:
        volume: (X, Y, Z).
        mask: (X, Y, Z), true inside the brain.
    """
    middle = float(np.median(volume[mask])) if mask.any() else 0.0
    if middle <= 0:
        return 0.0
    found = []
    step = 1 + volume.size // NOISE_VOXELS  # beside the axis: neighbours along it stay neighbours
    for axis in range(3):
        v, m = np.moveaxis(volume, axis, 0)[:, ::step], np.moveaxis(mask, axis, 0)[:, ::step]
        second = np.abs(2 * v[1:-1] - v[:-2] - v[2:])[m[1:-1] & m[:-2] & m[2:]]
        if second.size:
            found.append(float(np.median(second)) / (0.6745 * math.sqrt(6)))
    return min(found, default=0.0) / middle


def _brain_check(picture: _Picture | None) -> Check:
    if picture is None:
        return Check("brain", False, "No brain could be told from its surroundings.")
    low, high = BRAIN_ML
    size = f"{picture.volume_ml:.0f} ml"
    if not low <= picture.volume_ml <= high:
        return Check("brain", False, f"What looks most like a brain has {size}; expected {low:.0f} to {high:.0f} ml.")
    fit = picture.appearance
    if fit is None or fit.inside < INSIDE or (fit.explained < EXPLAINED and fit.fits < FITS):
        seen = "" if fit is None else f" ({_explained(fit)}, {fit.inside:.0%} inside)"
        return Check("brain", False, f"What looks most like a brain does not fit the standard brain{seen}.")
    return Check("brain", True, f"{size}, {_explained(fit)} by the standard brain")


def _explained(fit: Appearance) -> str:
    return f"{fit.explained:.0%} of the picture, {fit.fits:.0%} without what is far too bright, explained"


def _coverage_check(picture: _Picture) -> Check:
    limits = {
        "left": SIDE_SHARE, "right": SIDE_SHARE, "back": SIDE_SHARE, "front": SIDE_SHARE,
        "bottom": BOTTOM_SHARE, "top": TOP_SHARE,
    }  # fmt: skip
    shares: dict[str, float] = {}
    faces: dict[str, float] = {}
    for axis, ends in enumerate((("left", "right"), ("back", "front"), ("bottom", "top"))):
        areas = picture.mask.sum(axis=tuple(a for a in range(3) if a != axis))
        shown = picture.shown.sum(axis=tuple(a for a in range(3) if a != axis))
        held = np.flatnonzero(shown)
        faces |= {end: float(shown[held[i]]) / float(shown.max()) for end, i in zip(ends, (0, -1), strict=True)}
        shares |= {end: float(areas[i]) / float(areas.max()) for end, i in zip(ends, (0, -1), strict=True)}
    cut = [f"{end} ({share:.0%})" for end, share in shares.items() if share > limits[end]]
    if cut:
        return Check(
            "coverage", False,
            f"The picture does not hold the whole head: the brain is cut at the {', '.join(cut)} "
            "(brain in the last slice, of that in the fullest).",
        )  # fmt: skip
    flat = [f"{end} ({share:.0%})" for end, share in faces.items() if share > FACE_SHARE]
    if flat:
        return Check(
            "coverage", False,
            f"Part of the head is blank: the brain ends in a flat face at the {', '.join(flat)} "
            "(brain in its last slice, of that in the fullest).",
        )  # fmt: skip
    return Check("coverage", True, ", ".join(f"{end} {share:.0%}" for end, share in shares.items()))


def _noise_check(picture: _Picture) -> Check:
    seen = f"noise {picture.noise:.1%} of the brain's brightness"
    if picture.noise > NOISE:
        return Check("noise", False, f"The picture is noisy: {seen}; expected at most {NOISE:.0%}.")
    return Check("noise", True, seen)


def _contrast_check(picture: _Picture, *, whole: bool) -> Check:
    look = picture.appearance
    if look is None or not whole:
        return Check("contrast", None, "not judged, as the brain is not there as a whole")
    seen = f"fluid {look.fluid:.2f} and gray matter {look.gray:.2f} of white matter"
    if look.fluid > DARK_FLUID:
        return Check("contrast", False, f"The picture does not look like FLAIR, fluid is not dark: {seen}.")
    share, limit = T1_LIKE
    if look.gray - share * look.fluid < limit:
        return Check(
            "contrast", False, f"The picture does not look like FLAIR, white matter is bright as on T1: {seen}."
        )
    return Check("contrast", True, seen)


def _domain_check(picture: _Picture, domain: Domain | None) -> Check:
    features = _features(picture)
    if domain is None or features is None:
        return Check("domain", None, "these weights do not state what they were trained on")
    distance, worst = domain.distance(features)
    seen = f"{distance:.1f} standard deviations from {domain.count} {domain.name}"
    if distance > DISTANCE:
        return Check(
            "domain", False,
            f"The picture is unlike what the model was trained on: {seen}, farthest in {worst}; "
            f"expected at most {DISTANCE:g}.",
        )  # fmt: skip
    return Check("domain", True, seen)


def _features(picture: _Picture) -> dict[str, float] | None:
    look = picture.appearance
    if look is None or look.gray <= 0:
        return None
    return {
        "gray over white": math.log(look.gray),
        "fluid over white": look.fluid,
        "variance explained by tissue": look.explained,
        "brain volume": math.log(picture.volume_ml),
        "noise": math.log(max(picture.noise, 1e-3)),
        "slice spacing": math.log(float(np.linalg.norm(picture.axes, axis=0).max())),
    }
