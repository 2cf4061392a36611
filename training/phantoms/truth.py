"""What a phantom's lesion is called: findings, side and sites from its masks."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from braingemma.findings.vocabulary import FINDINGS, SITES, Finding
from braingemma.measure.sizes import Measured, shift, ventricle
from training.phantoms.anatomy import REGIONS, Labels, load_atlas, region_code
from training.phantoms.fields import Floats
from training.phantoms.lesions import LesionMasks, side_of

SITE_SHARE: Final = 0.2
"""A site is named when it holds this share of the finding's voxels."""
_DOUBTFUL_SIDE: Final = (0.06, 0.25)  # of the lesion on its smaller side
_DOUBTFUL_SITE: Final = (0.15, 0.26)  # of the lesion in one site
_DOUBTFUL_PART: Final = (0.0, 0.08)  # of the lesion that is edema, or necrosis


def is_plain(masks: LesionMasks, regions: Labels, standard: Floats) -> bool:
    """Whether side, sites and parts of a lesion are no matter of taste: none of its shares is near its threshold."""
    whole = masks.whole
    total = max(1, int(whole.sum()))
    left = float((standard[0][whole] < 0).mean()) if whole.any() else 0.0
    sites = _region_counts(whole, regions)
    parts = [float(part.sum()) / total for part in (masks.edema, masks.necrosis)]
    return (
        not _DOUBTFUL_SIDE[0] < min(left, 1 - left) < _DOUBTFUL_SIDE[1]
        and not any(_DOUBTFUL_SITE[0] < share < _DOUBTFUL_SITE[1] for share in sites / max(1.0, sites.sum()))
        and not any(_DOUBTFUL_PART[0] < share < _DOUBTFUL_PART[1] for share in parts)
    )


def _region_counts(mask: NDArray[np.bool_], regions: Labels) -> NDArray[np.float64]:
    """Voxels of a mask in each of `REGIONS`; those in no region, or in a ventricle, are not counted."""
    counts = np.bincount(regions[mask], minlength=len(REGIONS)).astype(float)
    counts[region_code("none")] = counts[region_code("ventricle")] = 0
    return counts


def located_findings(
    regions: Labels, standard: Floats, masks: LesionMasks | None, compressed: set[str]
) -> tuple[Finding, ...]:
    """The truth of a case: what is present, on which side, in which lobes; `compressed` names narrowed ventricles."""
    if masks is None or not masks.whole.any():
        return tuple(Finding(name, "absent") for name in FINDINGS)
    side = {frozenset(): None, frozenset({"left"}): "left", frozenset({"right"}): "right"}.get(
        frozenset(compressed), "bilateral"
    )
    narrowed = (
        Finding("ventricular_compression", "present", side, ("ventricle",))  # type: ignore[arg-type]
        if compressed
        else Finding("ventricular_compression", "absent")
    )
    whole = masks.whole
    enough = 0.03 * whole.sum()
    return (
        _located("lesion", whole, regions, standard),
        _located("edema", masks.edema, regions, standard) if masks.edema.sum() > enough else Finding("edema", "absent"),
        _located("necrosis", masks.necrosis, regions, standard)
        if masks.necrosis.sum() > enough
        else Finding("necrosis", "absent"),
        narrowed,
    )


def _located(name: str, mask: NDArray[np.bool_], regions: NDArray[np.uint8], standard: Floats) -> Finding:
    """A present finding with its side and the regions that hold at least `SITE_SHARE` of it."""
    counts = _region_counts(mask, regions)
    total = counts.sum()
    if total == 0:
        return Finding(name, "present", side_of(mask, standard))  # type: ignore[arg-type]
    sites = tuple(site for site in SITES if counts[region_code(site)] >= SITE_SHARE * total)
    return Finding(name, "present", side_of(mask, standard), sites)  # type: ignore[arg-type]


# ---- sizes

SEPTUM: Final = (0.0, 10.0, 14.0)
"""MNI mm of the septum between the frontal horns, and of the falx in front of it and behind it at the same height."""
FALX: Final = ((0.0, 60.0, 14.0), (0.0, -92.0, 14.0))
_NEAR: Final = 6.0
"""Tissue within this distance of such a point says where it lies in the head, mm."""


def measured_truth(
    head: Floats, pushed: Floats, spacing: tuple[float, float, float], scale: float
) -> tuple[Measured, ...]:
    """Midline shift and the lateral ventricles' volumes, as they are drawn.

    The shift is how far the septum lies beside the straight line from the falx in front to the falx behind; a
    ventricle's volume is the sum of its fluid shares over the voxels.

    Args:
        head: (3, X, Y, Z) MNI mm of the head before any elastic warp.
        pushed: (3, X, Y, Z) MNI mm at which each voxel's tissue is looked up.
        spacing: Voxel size, mm.
        scale: Scanner mm over head mm from left to right.
    """
    septum, front, back = (_place_of(point, head, pushed) for point in (SEPTUM, *FALX))
    share = (septum[1] - back[1]) / (front[1] - back[1])
    off = septum[0] - (back[0] + share * (front[0] - back[0]))
    sizes = _ventricle_ml(pushed, spacing)
    return (
        shift(float(off) * scale, "drawn"),
        ventricle("left", sizes[0], "drawn"),
        ventricle("right", sizes[1], "drawn"),
    )


def _place_of(point: tuple[float, float, float], head: Floats, pushed: Floats) -> NDArray[np.float64]:
    """(3,) where in the head (mm) the tissue of an MNI place lies.

    The map is straight within `_NEAR` on either side of the midsagittal plane, and bends at it where a mass narrows one
    ventricle: a straight line over both sides would say that the septum had moved.
    """
    box = np.ones(pushed.shape[1:], bool)
    for axis, middle in enumerate(point):
        box &= np.abs(pushed[axis] - np.float32(middle)) < _NEAR
    tissue, places = pushed[:, box].astype(np.float64), head[:, box].astype(np.float64)
    bend = np.maximum(tissue[0], 0.0) - max(point[0], 0.0)
    offset = np.stack([np.ones(tissue.shape[1]), *(tissue - np.reshape(point, (3, 1))), bend], axis=1)
    found: NDArray[np.float64] = np.linalg.lstsq(offset, places.T, rcond=None)[0][0]
    return found


def _ventricle_ml(pushed: Floats, spacing: tuple[float, float, float]) -> tuple[float, float]:
    """Size of the left and of the right lateral ventricle, ml."""
    atlas = load_atlas()
    filled = np.argwhere(atlas.standard.lateral > 0) * atlas.standard.spacing + np.asarray(atlas.standard.origin)
    low, high = filled.min(axis=0) - atlas.standard.spacing, filled.max(axis=0) + atlas.standard.spacing
    box = np.ones(pushed.shape[1:], bool)
    for axis in range(3):
        box &= (pushed[axis] > low[axis]) & (pushed[axis] < high[axis])
    points = pushed[:, box]
    fluid = atlas.sample(atlas.standard.lateral, points) * np.float32(np.prod(spacing) / 1000)
    left = points[0] < 0
    return float(fluid[left].sum(dtype=np.float64)), float(fluid[~left].sum(dtype=np.float64))
