"""Lateral ventricles and midline, measured in the picture: by the standard brain bent onto it, without training.

A lateral ventricle is the dark fluid at and around where the bent standard brain has it. Each voxel counts with the
share of fluid that its brightness tells, between that of the tissue around and that of fluid, so that thick slices and
soft borders need no threshold. Temporal horns are not counted: the standard brain's are too thin to be seen. The
midline shift is the distance of the septum from the straight line between the falx in front of it and behind it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import nibabel
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from braingemma.findings.vocabulary import Laterality
from braingemma.measure.sizes import MIDLINE_SHIFT, VENTRICLES, Measured, shift, ventricle
from braingemma.measure.warp import Warp, fit_warp
from braingemma.volume.appearance import Laid, lay_standard
from braingemma.volume.brain import Mask, above_background
from braingemma.volume.preprocess import PreparedVolume
from braingemma.volume.resampling import Volume, resample_whole
from braingemma.volume.standard import StandardBrain, standard_brain

Float = npt.NDArray[np.float64]

SEPTUM: Final = (0.0, 10.0, 14.0)
"""MNI mm of the septum between the frontal horns, and of the falx before and behind it at the same height."""
FALX: Final = ((0.0, 60.0, 14.0), (0.0, -92.0, 14.0))
METHOD: Final = "standard brain bent onto the picture"
FLUID_METHOD: Final = "dark fluid, standard brain bent onto the picture"
COARSE: Final = 2.5
"""Voxel size at which the standard brain is compared, mm."""
REACH: Final = 2.5
"""Fluid counts up to this distance from the bent ventricle, mm; tissue brightness is that of the shell beyond."""
SHELL: Final = (3.0, 8.0)
EXPLAINED: Final = 0.35
"""Below this share of explained variance the standard brain does not lie on the picture."""
DARK: Final = 0.65
"""Fluid brighter than this share of the tissue is not dark, and cannot be told from it."""
SEEN: Final = 0.95
"""Less of a ventricle's place within picture and brain: the field of view is cut."""


@dataclass(frozen=True)
class Unmeasured:
    """What could not be measured.

    Attributes:
        name: As in `Measured`.
        reason: Why, a clause.
    """

    name: str
    reason: str


@dataclass(frozen=True)
class BrainMeasures:
    """What was measured in a picture, and what could not be.

    Attributes:
        measured: In the order shift, left, right.
        unmeasured: The rest.
    """

    measured: tuple[Measured, ...] = ()
    unmeasured: tuple[Unmeasured, ...] = ()


def measure_brain(volume: Volume, mask: Mask, axes: Float) -> BrainMeasures:
    """Measure midline shift (mm) and the volume of each lateral ventricle (ml).

    Args:
        volume: (X, Y, Z), axes in RAS order, finite.
        mask: (X, Y, Z), true inside the brain.
        axes: (3, 3), the affine's steps: columns are the voxel axes in RAS mm.
    """
    volume = above_background(volume)
    laid = lay_standard(volume, mask, axes)
    if laid is None:
        return _none("there is no brain to measure in")
    warp, middle = _bent(volume, mask, axes, laid)
    if warp is None or warp.explained < EXPLAINED:
        return _none("the standard brain does not fit the picture")
    tissue = (warp.levels[0] + warp.levels[1]) / 2
    if warp.levels[2] > DARK * tissue:
        return _none("fluid is not dark")
    if not _held(warp, mask):
        return _none("the field of view cuts the ventricles")
    sizes = _ventricles(volume / np.float32(middle), mask, warp, abs(float(np.linalg.det(axes))) / 1000)
    return BrainMeasures(
        (
            shift(_shift_mm(warp, laid, axes), METHOD),
            *(ventricle(side, size, FLUID_METHOD) for side, size in sizes.items()),
        )
    )


def measure_picture(path: str | Path, prepared: PreparedVolume) -> BrainMeasures:
    """`measure_brain` of a RAS NIfTI file in the brain that `prepared` was made with."""
    canonical = nibabel.as_closest_canonical(nibabel.load(path))
    volume = np.asarray(canonical.get_fdata(dtype=np.float32, caching="unchanged"))
    return measure_brain(volume, prepared.brain, np.asarray(canonical.affine, np.float64)[:3, :3])


def _none(reason: str) -> BrainMeasures:
    return BrainMeasures((), tuple(Unmeasured(name, reason) for name in (MIDLINE_SHIFT, *VENTRICLES.values())))


def _bent(volume: Volume, mask: Mask, axes: Float, laid: Laid) -> tuple[Warp | None, float]:
    """(the bent standard brain, the brain's median brightness) from a coarse copy of the picture."""
    spacing = np.linalg.norm(axes, axis=0)
    spans = [np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    box = tuple(slice(int(s[0]), int(s[-1]) + 1) for s in spans)
    size = np.array([s.stop - s.start for s in box])
    target = np.clip(np.round(size * spacing / COARSE), 1, size).astype(int)
    shape = (int(target[0]), int(target[1]), int(target[2]))
    inside = resample_whole(mask[box].astype(np.float32), shape)
    sums = resample_whole(np.where(mask[box], volume[box], np.float32(0)).astype(np.float32), shape)
    values = np.where(inside > 0.05, sums / np.maximum(inside, np.float32(0.05)), np.float32(0))
    within = values[inside > 0.9]
    middle = float(np.median(within)) if within.size else 0.0
    if middle <= 0:
        return None, 1.0
    step = size / target
    start = np.array([s.start for s in box]) - 0.5 + 0.5 * step
    linear = laid.to_standard[:, :3]
    coarse = np.column_stack([linear * step, linear @ start + laid.to_standard[:, 3]])
    warp = fit_warp((values / np.float32(middle)).astype(np.float32), inside, coarse)
    return None if warp is None else _on_voxels(warp, laid), middle


def _on_voxels(warp: Warp, laid: Laid) -> Warp:
    """The same for the picture's own voxels."""
    return Warp(laid.to_standard, warp.displacement, warp.bias, warp.levels, warp.explained)


def _held(warp: Warp, mask: Mask) -> bool:
    """Whether the ventricles' places lie within the brain that the picture shows."""
    brain = standard_brain()
    label = np.argwhere(brain.beside == 0)[::7] * brain.spacing + np.asarray(brain.origin)
    back = np.linalg.inv(np.vstack([warp.to_standard, [0, 0, 0, 1]]))[:3]
    places = label.T - warp.at(warp.displacement, label.T)
    index = np.rint(back[:, :3] @ places + back[:, 3:]).astype(int)
    within = np.all((index >= 0) & (index < np.array(mask.shape)[:, None]), axis=0)
    found = mask[tuple(index[:, within])]
    return float(found.sum()) >= SEEN * label.shape[0]


def _shift_mm(warp: Warp, laid: Laid, axes: Float) -> float:
    """Above 0 towards the patient's right."""
    septum, front, back = (warp.place_of(point) for point in (SEPTUM, *FALX))
    along = (septum[1] - back[1]) / (front[1] - back[1])
    off = float(septum[0] - (back[0] + along * (front[0] - back[0])))
    across = laid.to_standard[0, :3] @ np.linalg.inv(axes)  # MNI mm from left to right for each RAS mm
    return off / float(np.linalg.norm(across))


def _ventricles(volume: Volume, mask: Mask, warp: Warp, voxel_ml: float) -> dict[Laterality, float]:
    """Fluid of each side's lateral ventricle, ml; `volume` over the brain's median."""
    brain = standard_brain()
    voxels, standard, plain = _around(mask, warp, brain)
    beside = _sampled(brain, brain.beside, standard)
    near = beside < SHELL[1]
    voxels, standard, plain, beside = voxels[:, near], standard[:, near], plain[:, near], beside[near]
    values = volume[tuple(voxels)] / warp.at(warp.bias, plain)
    other = _sampled(brain, brain.other, standard)
    gray, white = (np.maximum(_sampled(brain, m, standard), 0) for m in (brain.gray, brain.white))
    level = (warp.levels[0], warp.levels[1])
    tissue = np.where(
        gray + white > 0.1,
        (level[0] * gray + level[1] * white) / np.maximum(gray + white, 0.1),
        sum(level) / 2,
    )
    found: dict[Laterality, float] = {}
    sides: tuple[tuple[Laterality, npt.NDArray[np.bool_]], ...] = (
        ("left", standard[0] < 0),
        ("right", standard[0] >= 0),
    )
    for side, here in sides:
        shell = here & (beside > SHELL[0]) & (other > 4.0)
        factor = float(np.median(values[shell] / tissue[shell])) if shell.sum() > 30 else 1.0
        zone = here & (beside <= REACH) & (other > beside)
        bright = tissue[zone] * factor
        share = (bright - values[zone]) / np.maximum(bright - warp.levels[2], 0.05)
        found[side] = float(np.clip(share, 0, 1).sum()) * voxel_ml
    return found


def _around(mask: Mask, warp: Warp, brain: StandardBrain) -> tuple[npt.NDArray[np.intp], Float, Float]:
    """Voxels (3, N) of the brain around the ventricles, their bent and their affine places, MNI mm."""
    label = np.argwhere(brain.beside == 0) * brain.spacing + np.asarray(brain.origin)
    low, high = label.min(axis=0) - 20, label.max(axis=0) + 20
    back = np.linalg.inv(np.vstack([warp.to_standard, [0, 0, 0, 1]]))[:3]
    corners = np.array(np.meshgrid(*zip(low, high, strict=True), indexing="ij")).reshape(3, -1)
    ends = back[:, :3] @ corners + back[:, 3:]
    limits = np.array(mask.shape) - 1
    first = np.clip(np.floor(ends.min(axis=1)).astype(int), 0, limits)
    last = np.clip(np.ceil(ends.max(axis=1)).astype(int), 0, limits)
    box = tuple(slice(int(a), int(b) + 1) for a, b in zip(first, last, strict=True))
    voxels = (np.argwhere(mask[box]) + first).T
    standard, plain = warp.standard(voxels.astype(np.float64))
    return voxels, standard, plain


def _sampled(brain: StandardBrain, map_: npt.NDArray[np.float32], points: Float) -> Float:
    """A map at MNI mm (3, N); the border goes on outside."""
    index = (points - np.asarray(brain.origin)[:, None]) / brain.spacing
    return np.asarray(ndimage.map_coordinates(map_, index, order=1, mode="nearest"), np.float64)
