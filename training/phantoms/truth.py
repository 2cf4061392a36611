"""What a phantom's lesion is called: findings, side and sites from its masks."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from braingemma.findings.vocabulary import FINDINGS, SITES, Finding
from training.phantoms.anatomy import REGIONS, Labels, region_code
from training.phantoms.fields import Floats
from training.phantoms.lesions import LesionMasks, side_of

#: A site is named when it holds this share of the finding's voxels.
SITE_SHARE: Final = 0.2
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
