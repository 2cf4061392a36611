"""How bright gray matter, white matter and fluid are in a brain picture of unknown contrast.

The standard brain's tissue shares (ICBM152 2009a, as `nilearn` ships them) are laid over the brain by an affine map,
and the picture is written as a mixture: brightness = gray · a + white · b + fluid · c. Which map lies best is judged by
how much of the picture the mixture explains, whatever a, b and c come out to be: that needs no knowledge of the
contrast (the correlation ratio of Roche et al., MICCAI 1998, with tissue shares in place of grey levels), and a, b and
c then say which contrast it is. Nothing here tells left from right: the maps are symmetric.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage, optimize

from braingemma.volume.brain import Mask
from braingemma.volume.resampling import Volume, resample_whole
from braingemma.volume.standard import standard_brain

Float = npt.NDArray[np.float64]

SAMPLING = 5.0
"""Voxel size at which the picture is explained, mm: large beside noise and lesions' edges, small beside ventricles."""
SMOOTHING = 1.5
"""The tissue maps are smoothed by so many of their voxels, so that the search is smooth too."""
INSIDE = 0.9
"""Only samples that lie this far inside the brain's mask count."""
LEAST_SAMPLES = 200
"""Fewer samples than this are no brain: 25 ml."""
CUT = (1.0, 98.0)
"""Values beyond these percentiles are cut: lesions and vessels must not decide."""
ROUNDS = 5
"""How often the tissues' levels are estimated anew without what lies far off, and the coil's brightness with them."""
OUTSIDE_COST, STRETCH_COST, TURN_COST = 0.5, 0.3, 0.1
"""What the search pays for leaving the standard brain, for stretching (log scale) and for turning (radians)."""


@dataclass(frozen=True)
class Appearance:
    """What a brain picture looks like.

    Attributes:
        gray: Brightness of gray matter over that of white matter.
        fluid: Brightness of cerebrospinal fluid over that of white matter.
        explained: Share of the picture's variance that three tissues explain, in [0, 1].
        fits: The same under an even coil and without what is far too bright: a large lesion is most of the variance,
            and says nothing about where the standard brain lies.
        inside: Share of the picture's brain that lies within the standard brain, in [0, 1].
    """

    gray: float
    fluid: float
    explained: float
    fits: float
    inside: float


@dataclass(frozen=True)
class _Atlas:
    """Tissue maps (3, X, Y, Z): gray, white, brain; `to_voxel` (3, 4) from MNI mm; centre and spread of its brain."""

    maps: npt.NDArray[np.float32]
    to_voxel: Float
    centre: Float
    spread: Float

    def at(self, points: Float) -> Float:
        """(3, N) tissue shares at MNI mm (3, N); 0 outside."""
        index = self.to_voxel[:, :3] @ points + self.to_voxel[:, 3:]
        return np.stack([ndimage.map_coordinates(m, index, order=1, mode="constant") for m in self.maps])


@lru_cache(maxsize=1)
def _atlas() -> _Atlas:
    standard = standard_brain()
    maps = np.stack([ndimage.gaussian_filter(m, SMOOTHING) for m in standard.thinned])
    affine = np.asarray(standard.thinned_affine, np.float64)
    places = (affine[:3, :3] @ np.argwhere(maps[2] > 0.5).T) + affine[:3, 3:]
    return _Atlas(maps, np.asarray(np.linalg.inv(affine)[:3], np.float64), places.mean(axis=1), places.std(axis=1))


@dataclass(frozen=True)
class Laid:
    """How the standard brain lies over a picture.

    Attributes:
        appearance: What the picture looks like under it.
        to_standard: (3, 4) from voxel (i, j, k, 1) to MNI mm.
    """

    appearance: Appearance
    to_standard: Float


_KNOWN: OrderedDict[bytes, Laid | None] = OrderedDict()
_KNOWN_LOCK = threading.Lock()
KEPT: Final = 3
"""The last pictures', so that the standard brain is laid once for check and measurement, once on the model's grid."""


def measure_appearance(volume: Volume, mask: Mask, axes: Float) -> Appearance | None:
    """How bright the tissues of a brain are; arguments and None as of `lay_standard`."""
    laid = lay_standard(volume, mask, axes)
    return None if laid is None else laid.appearance


def lay_standard(volume: Volume, mask: Mask, axes: Float) -> Laid | None:
    """Lay the standard brain over a brain and say how bright its tissues are.

    Args:
        volume: (X, Y, Z), axes in RAS order, finite.
        mask: (X, Y, Z), true inside the brain.
        axes: (3, 3), the affine's steps: columns are the voxel axes in RAS mm.

    Returns:
        None where the brain is too small to say, or has one brightness only.
    """
    key = hashlib.blake2b(np.packbits(mask).data)
    key.update(np.ascontiguousarray(axes, np.float64).tobytes() + repr(mask.shape).encode())
    key.update(np.ascontiguousarray(volume[::2, ::2, ::2]).data)
    with _KNOWN_LOCK:
        known, found = key.digest() in _KNOWN, _KNOWN.pop(key.digest(), None)
    if not known:
        found = _lay(volume, mask, axes)
    with _KNOWN_LOCK:
        _KNOWN[key.digest()] = found  # the newest
        while len(_KNOWN) > KEPT:
            _KNOWN.popitem(last=False)
    return found


def _lay(volume: Volume, mask: Mask, axes: Float) -> Laid | None:
    sampled = _samples(volume, mask, axes)
    if sampled is None:
        return None
    values, points, middle = sampled
    atlas = _atlas()
    size = np.clip(atlas.spread / np.maximum(points.std(axis=1), 1.0), 0.8, 1.25)
    start = points * size[:, None]

    def shares(pose: Float) -> Float:
        turned = _turn(pose[:3]) @ (start * np.exp(pose[3:6])[:, None])
        return atlas.at(turned + (atlas.centre + 100 * pose[6:])[:, None])

    def cost(pose: Float) -> float:
        gray, white, brain = shares(pose)
        _, explained = _mixture(values, gray, white, np.ones_like(gray))
        effort = STRETCH_COST * float(pose[3:6] @ pose[3:6]) + TURN_COST * float(pose[:3] @ pose[:3])
        return OUTSIDE_COST * float(1 - brain.mean()) + effort - explained

    first = np.diag([0.1] * 3 + [0.05] * 6)
    options = {"maxiter": 3, "xtol": 2e-2, "ftol": 2e-3, "direc": first}
    pose = optimize.minimize(cost, np.zeros(9), method="Powell", options=options).x
    gray, white, brain = shares(pose)
    tissues = gray, white, np.clip(1 - gray - white, 0, 1)
    _, explained = _mixture(values, *tissues)
    levels, fits = _levels(values, points, *tissues)
    bright = max(float(levels[1]), 1e-3)
    appearance = Appearance(
        gray=float(levels[0]) / bright,
        fluid=float(levels[2]) / bright,
        explained=max(0.0, explained),
        fits=max(0.0, fits),
        inside=float(brain.mean()),
    )
    linear = _turn(pose[:3]) @ np.diag(np.exp(pose[3:6]) * size)
    offset = atlas.centre + 100 * pose[6:] - linear @ middle
    return Laid(appearance, np.column_stack([linear @ axes, offset]))


def _samples(volume: Volume, mask: Mask, axes: Float) -> tuple[Float, Float, Float] | None:
    """Values (N,) over their median, their places (3, N) in mm from the brain's centre, and that (3,) from voxel 0."""
    if not mask.any():
        return None
    spacing = np.linalg.norm(axes, axis=0)
    spans = [np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    box = tuple(slice(int(s[0]), int(s[-1]) + 1) for s in spans)
    size = np.array([s.stop - s.start for s in box])
    target = np.clip(np.round(size * spacing / SAMPLING), 1, size).astype(int)
    shape = (int(target[0]), int(target[1]), int(target[2]))
    filled = resample_whole(mask[box].astype(np.float32), shape)
    sums = resample_whole(np.where(mask[box], volume[box], np.float32(0)).astype(np.float32), shape)
    inside = filled > INSIDE
    values = (sums[inside] / filled[inside]).astype(np.float64)
    if values.size < LEAST_SAMPLES:
        return None
    values -= min(float(values.min()), 0.0)  # pictures scaled around zero
    values = np.clip(values, *np.percentile(values, CUT))
    middle = float(np.median(values))
    if middle <= 0 or values.min() == values.max():
        return None
    places = (axes / spacing) @ ((np.argwhere(inside) + 0.5) / target * size * spacing).T
    centre = places.mean(axis=1)
    corner = axes @ (np.array([s.start for s in box]) - 0.5)
    return values / middle, places - centre[:, None], centre + corner


def _turn(angles: Float) -> Float:
    """(3, 3) rotation by angles about the three axes, radians."""
    (a, b, c), (d, e, f) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, a, -d], [0, d, a]])
    about_y = np.array([[b, 0, e], [0, 1, 0], [-e, 0, b]])
    about_z = np.array([[c, -f, 0], [f, c, 0], [0, 0, 1]])
    return np.asarray(about_x @ about_y @ about_z)


def _levels(values: Float, points: Float, *shares: Float) -> tuple[Float, float]:
    """The levels of most of the brain as they would be under an even coil, and what they explain of it.

    A lesion in white matter, or a coil that shows the middle of the head brighter, would make white matter look as
    bright as on T1. So what is far too bright counts little, down to nothing (the weights of Beaton and Tukey 1974,
    with their usual constant of 4.685), and the coil's brightness is estimated in turn with the levels, as 1 and a
    polynomial of second order in the place.

    Args:
        values: (N,) brightness.
        points: (3, N) places in mm from the brain's centre.
        shares: (N,) each, of the tissues.
    """
    matrix = np.stack(shares, axis=1)
    places = points.T / np.maximum(points.std(axis=1), 1.0)
    field = np.concatenate([places, places**2 - 1, places * np.roll(places, 1, axis=1)], axis=1)
    coil = np.ones_like(values)
    levels = _mixture(values, *shares)[0]
    for _ in range(ROUNDS):
        seen = matrix * coil[:, None]
        for _ in range(ROUNDS):
            root = _root_weights(values - seen @ levels)
            levels = _least_squares(seen * root[:, None], values * root)
        even = matrix @ levels
        root = _root_weights(values - coil * even)
        effect = field * (even * root)[:, None]
        coil = np.clip(1 + field @ _least_squares(effect, (values - even) * root), 0.5, 2.0)
    seen, even = values / coil, matrix @ levels
    weights = _root_weights(seen - even) ** 2
    apart = float(np.average((seen - np.average(seen, weights=weights)) ** 2, weights=weights))
    return levels, 1 - float(np.average((seen - even) ** 2, weights=weights)) / max(apart, 1e-12)


def _root_weights(off: Float) -> Float:
    """(N,) square roots of the weights of what is so far off; what is too dark counts, for fluid is there little of."""
    far = np.maximum(off, 0) / (4.685 * max(1.4826 * float(np.median(np.abs(off))), 1e-6))
    return np.clip(1 - far**2, 0, None)


def _least_squares(matrix: Float, values: Float) -> Float:
    return np.asarray(np.linalg.lstsq(matrix, values, rcond=None)[0], dtype=np.float64)


def _mixture(values: Float, *shares: Float) -> tuple[Float, float]:
    """The levels that explain the values best, and the share of their variance that is explained."""
    matrix = np.stack(shares, axis=1)
    levels = _least_squares(matrix, values)
    return levels, 1 - float(np.mean((matrix @ levels - values) ** 2)) / float(values.var())
