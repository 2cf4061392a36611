"""Standard-brain anatomy for the phantoms: tissue maps and a map of lobes in MNI152 millimetres.

The tissue maps (gray matter, white matter, skull-stripped T1) are those of ICBM152 2009a symmetric that ship inside the
`nilearn` package. It ships no lobes and no ventricles. Ventricles are the deep part of what is neither gray nor white.
Lobes are stated below as planes, ellipsoids and boxes, simplified from the usual landmarks (central sulcus, Sylvian
fissure, parieto-occipital line, preoccipital notch, tentorium). They are good to about 1 cm, which is what a word such
as "frontal" can bear. RAS: x grows to the patient's right, so the patient's left has negative x.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from braingemma.findings.vocabulary import SITES
from braingemma.volume.standard import StandardBrain, grid_places, standard_brain

Floats = NDArray[np.float32]
Labels = NDArray[np.uint8]

REGIONS: Final = ("none", *SITES)
"""Names of the regions in the order of their labels; label 0 is outside the brain or deep grey without a lobe."""
_LABEL: Final = {name: number for number, name in enumerate(REGIONS)}


def region_code(name: str) -> int:
    """The label of a region, by its name in `REGIONS`."""
    return _LABEL[name]


def _sylvian_z(y: Floats) -> Floats:
    """Height of the Sylvian fissure: it climbs backwards, z = -12 at y = 20 to z = 20 at y = -44."""
    return np.clip(-2.0 - 0.5 * y, -16.0, 20.0)


def _central_y(z: Floats) -> Floats:
    """The central sulcus as a plane: y = -6 at the Sylvian fissure (z = 15), y = -22 at the vertex (z = 70)."""
    return -6.0 - 0.3 * (z - 15.0)


def _occipital_y(z: Floats) -> Floats:
    """Parieto-occipital line: y = -62 below z = 5 (preoccipital notch), sloping back to y = -80 at z = 41."""
    return -62.0 - 0.5 * np.clip(z - 5.0, 0.0, None)


def _tentorium_z(x: Floats, y: Floats) -> Floats:
    """The tentorium as a tent: its ridge near z = -4 at the midline, falling to the sides and to the back."""
    return -4.0 - 0.45 * np.abs(x) - 0.1 * np.clip(-y - 45.0, 0.0, None)


def lobe_map(x: Floats, y: Floats, z: Floats) -> Labels:
    """Label of the lobe at MNI coordinates in millimetres, wherever there is tissue; arrays of one shape."""
    a = np.abs(x)
    labels = np.where(y > _central_y(z), _LABEL["frontal"], _LABEL["parietal"]).astype(np.uint8)
    below_sylvian = z < _sylvian_z(y)
    labels[below_sylvian & (a > 16) & (y < 24)] = _LABEL["temporal"]
    labels[below_sylvian & (a <= 16) & (y <= 4)] = _LABEL["none"]
    labels[y < _occipital_y(z)] = _LABEL["occipital"]
    labels[_ellipsoid(x, y, z, (40, 2, 2), (7, 20, 16))] = _LABEL["insula"]
    labels[_ellipsoid(x, y, z, (24, 2, 3), (11, 22, 14))] = _LABEL["none"]  # basal ganglia: no lobe
    labels[_ellipsoid(x, y, z, (12, -18, 8), (10, 14, 9))] = _LABEL["thalamus"]
    labels[_callosum(x, y, z)] = _LABEL["corpus callosum"]
    labels[(y < -36) & (z < _tentorium_z(x, y))] = _LABEL["cerebellum"]
    labels[(a < 17) & (y < -8) & (y > -44) & (z < -8)] = _LABEL["brainstem"]
    return labels


def _ellipsoid(
    x: Floats, y: Floats, z: Floats, centre: tuple[int, int, int], radii: tuple[int, int, int]
) -> NDArray[np.bool_]:
    """Inside one of two ellipsoids that mirror each other across the midline."""
    (cx, cy, cz), (rx, ry, rz) = centre, radii
    return ((np.abs(x) - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 + ((z - cz) / rz) ** 2 < 1


def _callosum(x: Floats, y: Floats, z: Floats) -> NDArray[np.bool_]:
    """An arch over the ventricles: an elliptic band around (y, z) = (-6, 0), its legs ending at z = 0."""
    radius = np.sqrt(((y + 6.0) / 36.0) ** 2 + (z / 22.0) ** 2)
    return (np.abs(x) < 14) & (z > 0) & (np.abs(radius - 1.0) < 0.16)


@dataclass(frozen=True)
class Atlas:
    """The standard brain and its lobes.

    Attributes:
        standard: Maps of tissue and fluid, all (X, Y, Z) on one isotropic RAS grid.
        regions: Labels on that grid, as in `REGIONS`.
    """

    standard: StandardBrain
    regions: Labels

    def voxel(self, points: Floats) -> Floats:
        """MNI millimetres (3, ...) to voxel coordinates of this grid (3, ...)."""
        shape = (3,) + (1,) * (points.ndim - 1)
        return (points - np.asarray(self.standard.origin, np.float32).reshape(shape)) / np.float32(
            self.standard.spacing
        )

    def sample(self, map_: Floats, points: Floats) -> Floats:
        """Linear interpolation of a map at MNI millimetres (3, ...); the border value continues outside."""
        return ndimage.map_coordinates(map_, self.voxel(points), order=1, mode="nearest", output=np.float32)

    def region_at(self, points: Floats) -> Labels:
        """Label of the nearest voxel at MNI millimetres (3, ...); 0 outside the grid."""
        index = np.rint(self.voxel(points)).astype(np.int32)
        inside = np.ones(index.shape[1:], bool)
        for axis, size in enumerate(self.regions.shape):
            inside &= (index[axis] >= 0) & (index[axis] < size)
            np.clip(index[axis], 0, size - 1, out=index[axis])
        return np.where(inside, self.regions[index[0], index[1], index[2]], 0).astype(np.uint8)


@dataclass(frozen=True)
class Tissue:
    """Shares (X, Y, Z) of each tissue after all warps, and the signed distance to the brain's surface in mm."""

    gray: Floats
    white: Floats
    outside: Floats


def sample_tissue(atlas: Atlas, points: Floats, atrophy: float) -> Tissue:
    """Look the tissues up at MNI mm (3, X, Y, Z); `atrophy` in [0, 1] thins the cortex and widens the sulci."""
    gray, white, outside = (
        atlas.sample(m, points) for m in (atlas.standard.gray, atlas.standard.white, atlas.standard.outside)
    )
    gray = gray * np.clip(1.0 - atrophy * (1.2 - gray), 0.0, 1.0)
    return Tissue(gray, white, outside)


@lru_cache(maxsize=1)
def load_atlas() -> Atlas:
    """The standard brain's maps with the regions beside them."""
    standard = standard_brain()
    regions = lobe_map(*grid_places(standard.origin, standard.spacing, standard.brain.shape))
    regions[standard.brain < 0.5] = 0
    regions[standard.ventricle > 0.5] = _LABEL["ventricle"]
    return Atlas(standard, regions)
