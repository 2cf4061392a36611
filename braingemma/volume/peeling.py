"""Brain extraction by classical image processing: the fallback of `braingemma.volume.brain`, nothing learned.

On FLAIR the brain is the largest bright body of the head; skull and cerebrospinal fluid around it are dark. So:
threshold, peel (erosion) until scalp, eyes and neck come off, keep the largest body, grow it back, close sulci and
ventricles (the manner of Shattuck et al., "BSE", NeuroImage 13(5), 2001). All steps are symmetric in left and right.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage.filters import threshold_otsu

from braingemma.volume.resampling import Float, Volume, resample_mask, resample_whole

Mask = npt.NDArray[np.bool_]

WORKING_SPACING = 2.5
"""Extraction works at this voxel size, mm: finer detail does not help, and costs time."""
PEELING_RADII = (4.0, 5.5, 7.0, 9.0)
"""Peeling radii tried in turn, mm, until what is left has the size of a brain."""
SHED_SHARE = 0.025
"""A body that loses more than this share to the next radius (and less than half) still had eyes or muscle on it."""
CLOSING_RADIUS = 9.0
"""Gaps up to twice this wide (sulci, fissures) are closed, mm."""
LARGEST_BRAIN_ML = 2000.0
"""Largest plausible brain, ml (with its fluid spaces; the 99.9th percentile of adults is below)."""
SMALLEST_BODY = 0.2
"""A body smaller than this share of the bright tissue is debris of the peeling, not a brain."""
LARGEST_STRIPPED_ML = 2600.0
"""More than this beside the background is a head with its skull, ml: brains that come stripped keep their fluid spaces
and a rim, so the bound lies well above the largest brain."""
SKULL_SHARE = 0.08
"""Tissue outside the brain, as a share of all, above which the head is held to have its skull."""


def coarser(volume: Volume, spacing: Float, least: float) -> tuple[Volume, Float]:
    """(X, Y, Z) to voxels of about `least` mm along the axes that are finer; also the new spacing, mm."""
    shape = np.array(volume.shape)
    target = np.clip(np.round(shape * spacing / least), 1, shape).astype(int)
    if (target == shape).all():
        return volume, spacing
    return resample_whole(volume, tuple(target)), shape * spacing / target


def _grow(mask: Mask, spacing: Float, radius: float) -> Mask:
    """All voxels within `radius` mm of the mask."""
    return np.asarray(ndimage.distance_transform_edt(~mask, sampling=spacing) <= radius)


def _depth(mask: Mask, spacing: Float) -> Float:
    """How far inside the mask each voxel lies, mm; the border of the field of view is no edge."""
    return np.asarray(ndimage.distance_transform_edt(mask, sampling=spacing))


def _largest(mask: Mask) -> Mask:
    """The largest connected body."""
    labels, count = ndimage.label(mask)
    if count <= 1:
        return mask
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.asarray(labels == sizes.argmax())


def _close(mask: Mask, spacing: Float, radius: float) -> Mask:
    """Close gaps and holes, with room around the volume so that its border does not eat into the brain."""
    room = [int(np.ceil(radius / s)) + 1 for s in spacing]
    padded = np.pad(mask, [(r, r) for r in room])
    closed = _depth(_grow(padded, spacing, radius), spacing) > radius
    inner = closed[tuple(slice(r, -r) for r in room)]
    return np.asarray(ndimage.binary_fill_holes(inner | mask))


def _body(bright: Mask, depth: Float, spacing: Float, radius: float) -> Mask:
    """What is left of the bright tissue, `depth` mm deep at each voxel, after peeling and growing back."""
    core = _largest(np.asarray(depth > radius))
    return np.asarray(bright & _grow(core, spacing, radius + WORKING_SPACING / 2))


def _brain_of(coarse: Volume, spacing: Float) -> Mask:
    """The brain on the working grid."""
    smooth = ndimage.gaussian_filter(coarse, 0.5)
    head = smooth[smooth > threshold_otsu(smooth) * 0.25]
    threshold = 0.55 * float(np.percentile(head, 75))
    bright = np.asarray(smooth > threshold)
    voxel_ml = float(np.prod(spacing)) / 1000
    depth = _depth(bright, spacing)
    brain = _body(bright, depth, spacing, PEELING_RADII[0])
    for radius in PEELING_RADII[1:]:
        peeled = _body(bright, depth, spacing, radius)
        shrunk = 1 - peeled.sum() / max(int(brain.sum()), 1)
        if brain.sum() * voxel_ml <= LARGEST_BRAIN_ML and not SHED_SHARE < shrunk < 0.5:
            break
        brain = peeled
    if brain.sum() < SMALLEST_BODY * bright.sum():
        return np.zeros_like(brain)
    return _close(brain, spacing, CLOSING_RADIUS)


def peel_brain(volume: Volume, spacing: Float) -> Mask | None:
    """Find the brain by peeling; None where nothing has the compactness of one.

    Args:
        volume: (X, Y, Z), axes in RAS order, finite, background 0.
        spacing: Voxel size (3,), mm.
    """
    coarse, coarse_spacing = coarser(volume, spacing, WORKING_SPACING)
    brain = _brain_of(coarse, coarse_spacing)
    if not brain.any():
        return None
    return resample_mask(brain, volume.shape)


def lacks_skull(volume: Volume, spacing: Float) -> bool:
    """Whether a volume with a flat background of 0 shows a brain and hardly anything around it.

    Args:
        volume: (X, Y, Z), axes in RAS order, finite.
        spacing: Voxel size (3,), mm.
    """
    if np.count_nonzero(volume) * float(np.prod(spacing)) / 1000 > LARGEST_STRIPPED_ML:
        return False
    coarse, coarse_spacing = coarser(volume, spacing, WORKING_SPACING)
    brain = _brain_of(coarse, coarse_spacing)
    return bool(brain.any()) and _outside_share(coarse, brain, coarse_spacing) < SKULL_SHARE


def _outside_share(above: Volume, brain: Mask, spacing: Float) -> float:
    """Share of what is not background that lies outside the brain: skull, scalp, face and neck."""
    tissue = above > 0.1 * float(np.median(above[brain]))
    return float((tissue & ~_grow(brain, spacing, 2 * WORKING_SPACING)).sum() / max(int(tissue.sum()), 1))
