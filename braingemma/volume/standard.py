"""The standard brain: tissue shares and lateral ventricles of ICBM152 2009a symmetric, as files of `nilearn` hold them.

The files are read from where the package lies: importing `nilearn.datasets` costs seconds and hundreds of modules.
Everything is RAS in MNI152 millimetres; x grows to the patient's right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Literal

import nibabel
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from braingemma.errors import VolumeError

Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

SPACING: Final = 2
PAD: Final = 20
"""Voxels added around the template, so that a head fits around the brain."""
FLUID: Final = 0.35
"""From this share of fluid on, a voxel of the maps is fluid."""


@dataclass(frozen=True)
class StandardBrain:
    """Maps on one isotropic RAS grid, all (X, Y, Z).

    Attributes:
        spacing: Voxel size, mm.
        origin: MNI mm of voxel (0, 0, 0).
        gray: Share of gray matter, in [0, 1].
        white: Share of white matter.
        brain: Share of brain, fluid included.
        ventricle: Share of lateral and third ventricle and of clefts beside them.
        lateral: Share of the lateral ventricles alone, their soft border included as far as it is nearer to them than
            to other fluid: half of it lies on either side of where a reader would draw the border.
        beside: Distance from the lateral ventricles, mm, 0 within.
        other: Distance from other fluid, mm, 0 within.
        outside: Distance to the brain's surface, mm, negative within.
        thinned: (3, x, y, z) gray, white and brain of every second voxel of the template, without a border.
        thinned_affine: (4, 4) voxel of these to MNI mm.
    """

    spacing: float
    origin: tuple[float, float, float]
    gray: Floats
    white: Floats
    brain: Floats
    ventricle: Floats
    lateral: Floats
    beside: Floats
    other: Floats
    outside: Floats
    thinned: Floats
    thinned_affine: npt.NDArray[np.float64]


def template(name: Literal["t1", "gm", "wm"]) -> tuple[Floats, npt.NDArray[np.float64]]:
    """A template at 1 mm with its largest value at 1, and its affine (4, 4).

    Raises:
        VolumeError: the installed `nilearn` has no such file.
    """
    package = find_spec("nilearn")
    places = list(package.submodule_search_locations or ()) if package else []
    for place in places:
        file = Path(place) / "datasets" / "data" / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz"
        if file.exists():
            image = nibabel.load(file)
            values = np.asanyarray(image.dataobj).astype(np.float32)
            values /= values.max()
            return values, np.asarray(image.affine, np.float64)
    raise VolumeError(f"the standard brain is missing: nilearn holds no mni_icbm152_{name} file in {places}")


@lru_cache(maxsize=1)
def standard_brain() -> StandardBrain:
    """The maps at 2 mm, padded by 40 mm.

    Raises:
        VolumeError: see `template`.
    """
    (t1, affine), (gray_1mm, _), (white_1mm, _) = template("t1"), template("gm"), template("wm")
    gray, white = _coarser(gray_1mm), _coarser(white_1mm)
    brain = _coarser((t1 > 0).astype(np.float32))
    origin = [float(v) - SPACING * PAD for v in affine[:3, 3]]
    outside = _signed_distance(brain > 0.5)
    places = grid_places(origin, SPACING, brain.shape)
    ventricle = _ventricles(brain - gray - white, outside, places)
    label, other = _labels(ventricle, brain - gray - white, places)
    beside, beyond = (np.asarray(ndimage.distance_transform_edt(~m) * SPACING, np.float32) for m in (label, other))
    lateral = np.where((beside < 5) & (beside < beyond), np.clip(brain - gray - white, 0, 1), 0).astype(np.float32)
    step = slice(None, None, SPACING)
    thinned = np.stack([m[step, step, step] for m in (gray_1mm, white_1mm, (t1 > 0.05).astype(np.float32))])
    return StandardBrain(
        spacing=float(SPACING),
        origin=(origin[0], origin[1], origin[2]),
        gray=gray,
        white=white,
        brain=brain,
        ventricle=ventricle,
        lateral=lateral,
        beside=beside,
        other=beyond,
        outside=outside,
        thinned=thinned,
        thinned_affine=affine @ np.diag([SPACING, SPACING, SPACING, 1.0]),
    )


def grid_places(origin: Sequence[float], spacing: float, shape: Sequence[int]) -> tuple[Floats, Floats, Floats]:
    """MNI mm x, y and z of each voxel of a grid, each (X, Y, Z)."""
    axes = [start + spacing * np.arange(size, dtype=np.float32) for start, size in zip(origin, shape, strict=True)]
    x, y, z = (axis.astype(np.float32) for axis in np.meshgrid(*axes, indexing="ij"))
    return x, y, z


def _coarser(map_: Floats) -> Floats:
    """Anti-aliased subsampling from 1 mm to 2 mm, with a border of zero."""
    smooth = ndimage.gaussian_filter(map_, 0.6)
    return np.pad(smooth[::SPACING, ::SPACING, ::SPACING], PAD).astype(np.float32)


def _signed_distance(mask: Mask) -> Floats:
    outer = ndimage.distance_transform_edt(~mask, sampling=SPACING)
    inner = ndimage.distance_transform_edt(mask, sampling=SPACING)
    return np.asarray(outer - inner, np.float32)


def _ventricles(csf: Floats, outside: Floats, xyz: tuple[Floats, Floats, Floats]) -> Floats:
    """The lateral and third ventricles: CSF share deep inside the brain, without cisterns and insular clefts."""
    x, y, z = xyz
    box = (np.abs(x) < 38) & (y > -62) & (y < 42) & (z > -10) & (z < 34)
    cistern = (y < -26) & (z < 12) & (np.abs(x) < 16)
    insular_cleft = (y > -24) & (np.abs(x) > 26)
    deep = box & ~cistern & ~insular_cleft & (outside < -14) & (csf > FLUID)
    parts, _ = ndimage.label(deep)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    keep = np.isin(parts, np.flatnonzero(sizes >= max(20, sizes.max() // 50)))
    return np.where(keep, np.clip(csf, 0, 1), 0).astype(np.float32)


def _labels(ventricle: Floats, csf: Floats, xyz: tuple[Floats, Floats, Floats]) -> tuple[Mask, Mask]:
    """(lateral ventricles, other fluid): the third ventricle and the clefts of the midline are other fluid."""
    x, y, z = xyz
    third = (np.abs(x) < 5) & ((z < 3) | ((y < -4) & (z < 17)))
    cleft = (np.abs(x) < 5) & ((y > 26) | (y < -26))
    lateral = (ventricle > 0) & ~third & ~cleft
    return lateral, (csf > FLUID) & ~lateral
