"""How faint may a lesion be? Each lesion is drawn anew at falling brightness, and reported each time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import nibabel
import numpy as np
from numpy.typing import NDArray

from braingemma.findings.text import findings_from_text
from braingemma.volume.brain import BrainMask
from braingemma.volume.preprocess import prepare_image
from training.errors import DataError
from training.evaluation.cases import EvaluationCase
from training.evaluation.metrics import finding
from training.evaluation.reporters import ModelReporter

RATIOS: Final = (1.6, 1.5, 1.4, 1.3, 1.2, 1.1)
"""How many times as bright as the brain's median the lesion's bright part is."""


@dataclass(frozen=True)
class FadedReading:
    """What was said of one lesion at one brightness; `warned`: of its side where it is stated, else of its presence."""

    ratio: float
    stated: bool
    right_side: bool | None
    warned: bool


def faded(
    voxels: NDArray[np.float32], lesion: NDArray[np.bool_], brain: NDArray[np.bool_], ratio: float
) -> NDArray[np.float32]:
    """The picture with the bright part of its lesion `ratio` times as bright as the brain's median.

    What is above the median is drawn towards it or away from it; necrosis and the brain around stay as they are.

    Args:
        voxels: (X, Y, Z).
        lesion: (X, Y, Z), true in the lesion.
        brain: (X, Y, Z), true in the brain.
        ratio: Above 1.

    Raises:
        DataError: nothing in the lesion is brighter than the brain.
    """
    middle = float(np.median(voxels[brain & ~lesion]))
    bright = lesion & (voxels > middle)
    if not bright.any():
        raise DataError("expected a lesion that is brighter than the brain, found none to fade")
    now = float(np.median(voxels[bright])) / middle
    changed = voxels.copy()
    changed[bright] = middle * (1 + (voxels[bright] / middle - 1) * ((ratio - 1) / (now - 1)))
    return changed


def fade_case(reporter: ModelReporter, case: EvaluationCase, ratios: Sequence[float] = RATIOS) -> list[FadedReading]:
    """One case with a lesion at each brightness; its brain is the one found in the picture as it came.

    Raises:
        VolumeError: the picture cannot be used.
        DataError: its lesion cannot be faded.
    """
    image, mask = case.open()
    if mask is None:
        raise DataError(f"{case.name}: expected a lesion mask to fade by, got none")
    canonical = nibabel.as_closest_canonical(image)
    brain = prepare_image(canonical, reporter.model.config, name=case.name).brain
    lesion = np.asarray(nibabel.as_closest_canonical(mask).dataobj) > 0
    voxels = np.asarray(canonical.get_fdata(dtype=np.float32))
    given = BrainMask.of(brain, canonical.header.get_zooms()[:3])
    truth = finding(case.truth, "lesion")
    result = []
    for ratio in ratios:
        picture = nibabel.Nifti1Image(faded(voxels, lesion, brain, ratio), canonical.affine)
        reading = reporter.read(picture, case.name, flip=False, brain=given)
        said = finding(findings_from_text(reading.report), "lesion")
        stated = said.presence == "present"
        side = said.laterality == truth.laterality if stated and truth.laterality else None
        warned = ("lesion", "side" if stated else "presence") in reading.doubted
        result.append(FadedReading(ratio, stated, side, warned))
    return result


def fade_curve(readings: Sequence[FadedReading]) -> dict[str, Any] | None:
    """By brightness: lesions, share stated, share of those on the right side, share wrong without a warning."""
    if not readings:
        return None
    curve = {}
    for ratio in sorted({r.ratio for r in readings}, reverse=True):
        rows = [r for r in readings if r.ratio == ratio]
        sided = [r.right_side for r in rows if r.right_side is not None]
        silent = [not r.warned and (not r.stated or r.right_side is False) for r in rows]
        curve[f"{ratio:.1f}"] = {
            "lesions": len(rows),
            "stated": float(np.mean([r.stated for r in rows])),
            "right_side": float(np.mean(sided)) if sided else None,
            "silent": float(np.mean(silent)),
        }
    return curve
