"""How well a change of a lesion is told from none: pairs of phantoms, with the same lesion or a larger one.

The second picture of a pair is the same head in another position (turned and shifted, so that every voxel is
interpolated) and with noise of its own; in the other half of the pairs its lesion has grown by 20 to 100 %.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import nibabel as nib
import numpy as np
from scipy import ndimage

from braingemma.reading.change import stated_change
from braingemma.reading.second_look import look_twice
from braingemma.volume.preprocess import prepare_image
from training.errors import DataError
from training.phantoms.fields import rotation
from training.phantoms.phantom import Phantom, make_phantom
from training.progress import Say

SPACING: Final = (1.5, 1.5, 3.0)
SIZES_ML: Final = (10.0, 150.0)
GROWTH: Final = (1.2, 2.0)
TURN_DEGREES: Final = 5.0
SHIFT_MM: Final = 8.0
NOISE: Final = (0.005, 0.03)
LEAST_GROWTH: Final = 1.2
"""The share by which the drawn lesion grew must be within this of what was asked for: borders stop some."""


@dataclass(frozen=True)
class Pair:
    """True and measured volumes of two pictures of one head, ml; None where the map stated none."""

    seed: int
    true_ml: tuple[float, float]
    measured_ml: tuple[float | None, float | None]

    @property
    def grew(self) -> bool:
        """Whether the drawn lesion grew."""
        return self.true_ml[1] >= LEAST_GROWTH * self.true_ml[0]

    @property
    def stated(self) -> str | None:
        """What a report would state; None where one of the two has no volume."""
        before, now = self.measured_ml
        return None if before is None or now is None else stated_change(before, now)


def measure_changes(model: Any, count: int, seed: int, say: Say) -> dict[str, Any]:
    """Draw and measure pairs.

    Args:
        model: A `BrainGemma3D` with a grounding head.
        count: Pairs of each kind.
        seed: Of the first phantom.
        say: Told how far it is.

    Raises:
        DataError: the weights have no lesion map.
    """
    if model.grounding_head is None:
        raise DataError("expected weights with a lesion map, got weights without one")
    unchanged: list[Pair] = []
    grown: list[Pair] = []
    number = seed
    while min(len(unchanged), len(grown)) < count:
        pairs = _pairs(model, number)
        number += 1
        if pairs is None:
            continue
        unchanged.append(pairs[0])
        grown.append(pairs[1])
        say(f"pair {len(grown)}/{count}")
    return summary(unchanged, grown)


def _pairs(model: Any, seed: int) -> tuple[Pair, Pair] | None:
    """One head as it was, again, and with a larger lesion; None where that is not within what is measured."""
    rng = np.random.default_rng([seed, 41])
    first = make_phantom(seed, spacing=SPACING, with_lesion=True)
    volume = _true_ml(first)
    if not SIZES_ML[0] <= volume <= SIZES_ML[1]:
        return None
    larger = make_phantom(seed, spacing=SPACING, with_lesion=True, growth=float(rng.uniform(*GROWTH)))
    if _true_ml(larger) < LEAST_GROWTH * volume:
        return None
    before = _measured(model, first.volume)
    again, later = (_measured(model, visit(phantom.volume, rng)) for phantom in (first, larger))
    return Pair(seed, (volume, volume), (before, again)), Pair(seed, (volume, _true_ml(larger)), (before, later))


def _true_ml(phantom: Phantom) -> float:
    voxel_ml = abs(float(np.linalg.det(phantom.lesion.affine[:3, :3]))) / 1000
    return float(np.asarray(phantom.lesion.dataobj).sum()) * voxel_ml


def visit(image: nib.Nifti1Image, rng: np.random.Generator) -> nib.Nifti1Image:
    """The same head at another visit: turned and shifted within the field of view, with noise of its own."""
    turn, steps = rotation(rng, TURN_DEGREES), np.diag(image.affine[:3, :3])
    margin = np.ceil(2 * SHIFT_MM / np.abs(steps)).astype(
        int
    )  # so that nothing of the head is moved out of the picture
    voxels = np.pad(np.asarray(image.dataobj, np.float32), [(int(m), int(m)) for m in margin])
    affine = image.affine.copy()
    affine[:3, 3] -= image.affine[:3, :3] @ margin
    matrix = np.diag(1 / steps) @ turn @ np.diag(steps)
    middle = (np.array(voxels.shape) - 1) / 2
    offset = middle - matrix @ middle + rng.uniform(-SHIFT_MM, SHIFT_MM, 3) / np.abs(steps)
    moved = ndimage.affine_transform(voxels, matrix, offset, order=1)
    sigma = rng.uniform(*NOISE) * float(np.percentile(voxels, 99.5))
    noisy = np.hypot(moved + sigma * rng.standard_normal(moved.shape), sigma * rng.standard_normal(moved.shape))
    noisy[moved <= 0] = 0
    return nib.Nifti1Image(noisy.astype(np.float32), affine)


def _measured(model: Any, image: nib.Nifti1Image) -> float | None:
    look = look_twice(model, prepare_image(image, model.config))
    return look.first.volume_ml if look is not None and look.first.stated else None


def summary(unchanged: Sequence[Pair], grown: Sequence[Pair]) -> dict[str, Any]:
    """Shares of what would be stated, and the errors from which the uncertainty is taken."""
    told = [pair for pair in grown if pair.stated in ("larger", "smaller")]
    ratios = [
        math.log(now / before) for pair in unchanged for before, now in [pair.measured_ml] if before and now is not None
    ]
    return {
        "pairs": {"unchanged": len(unchanged), "grown": len(grown)},
        "both_measured": {kind: sum(p.stated is not None for p in pairs) for kind, pairs in
                          (("unchanged", unchanged), ("grown", grown))},
        "unchanged_stated": _share(pair.stated in ("larger", "smaller") for pair in unchanged),
        "grown_stated": _share(pair in told for pair in grown),
        "sign_right_of_stated": _share(pair.stated == "larger" for pair in told),
        "ln_volume_sd": float(np.std(ratios, ddof=0) / math.sqrt(2)) if ratios else None,
        "ln_volume_rms": float(np.sqrt(np.mean(np.square(ratios)) / 2)) if ratios else None,
        "cases": [vars(pair) | {"stated": pair.stated} for pair in (*unchanged, *grown)],
    }  # fmt: skip


def _share(found: Any) -> float | None:
    values = list(found)
    return sum(values) / len(values) if values else None


def markdown(result: dict[str, Any]) -> str:
    """The figures as a table."""
    rows = [
        ("pairs of each kind", result["pairs"]["grown"]),
        ("both volumes measured, unchanged / grown", " / ".join(str(n) for n in result["both_measured"].values())),
        ("unchanged: a change is stated (at most 0.05)", result["unchanged_stated"]),
        ("grown by 20 % or more: a change is stated (at least 0.5)", result["grown_stated"]),
        ("its sign is right, of those stated (at least 0.95)", result["sign_right_of_stated"]),
        ("ln(volume) measured again: rms / sqrt(2)", result["ln_volume_rms"]),
    ]
    shown = [(name, f"{value:.3f}" if isinstance(value, float) else str(value)) for name, value in rows]
    return "\n".join(["| lesion volume, pairs of phantoms | |", "|---|---|", *(f"| {a} | {b} |" for a, b in shown), ""])
