"""How far an explanation can be trusted: curves, agreements, and (with a lesion mask) hits.

Deletion and insertion: Petsiuk et al. 2018, arXiv:1806.07421. Pointing game: Zhang et al. 2016, arXiv:1608.00507.
Randomised-weights check: Adebayo et al. 2018, arXiv:1810.03292.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.stats import spearmanr

from braingemma.errors import ExplainError
from braingemma.explain.record import CurvesRecord

Float = npt.NDArray[np.float64]
Masks = npt.NDArray[np.bool_]

CURVE_STEPS = 8
"""Points of a curve beside its two ends; denser where the weights are large."""
COARSE_STEPS = 2
"""Points where a volume takes long: without the best supporter, and without about three of ten."""


@dataclass(frozen=True)
class Curves:
    """Deletion and insertion curves of one explanation.

    Scores are log-probabilities for each token; the curves are on probabilities exp(score), so areas lie in [0, 1]
    for such scores.

    Attributes:
        steps: Supervoxels deleted (or inserted) at each point, from 0 to F.
        deletion: Probability after the `steps` best supporters are replaced.
        insertion: Probability when only the `steps` best supporters are kept.
    """

    steps: tuple[int, ...]
    deletion: tuple[float, ...]
    insertion: tuple[float, ...]

    @property
    def deletion_auc(self) -> float:
        """Area under the deletion curve over the share of supervoxels; lower is more faithful."""
        return self._area(self.deletion)

    @property
    def insertion_auc(self) -> float:
        """Area under the insertion curve; higher is more faithful."""
        return self._area(self.insertion)

    def _area(self, values: tuple[float, ...]) -> float:
        return float(np.trapezoid(values, np.array(self.steps) / self.steps[-1]))

    def record(self) -> CurvesRecord:
        """Areas and points."""
        return CurvesRecord(
            deletion_auc=self.deletion_auc,
            insertion_auc=self.insertion_auc,
            steps=self.steps,
            deletion=self.deletion,
            insertion=self.insertion,
        )


def curve_steps(features: int, count: int = CURVE_STEPS) -> tuple[int, ...]:
    """0, then `count` numbers of supervoxels growing about geometrically (each where few are asked), then F.

    The last of `COARSE_STEPS` or fewer would be F - 1, which tells little beside F: they stop one step before.
    """
    spread = np.geomspace(1, max(features - 1, 1), count if count > COARSE_STEPS else count + 1)[:count]
    inner = np.unique(np.rint(spread).astype(int))
    return (0, *(int(k) for k in inner if k < features), features)


def curve_masks(weights: Float, count: int = CURVE_STEPS) -> tuple[tuple[int, ...], Masks, Masks]:
    """Steps and the masks of both curves, (steps, F) each: best supporter first."""
    order = np.argsort(-weights, kind="stable")
    rank = np.argsort(order)
    steps = curve_steps(len(weights), count)
    insertion = rank[None, :] < np.array(steps)[:, None]
    return steps, ~insertion, insertion


def curves(weights: Float, score: Callable[[Masks], Float], count: int = CURVE_STEPS) -> Curves:
    """Deletion and insertion of `weights` (F,), with `score` from masks (N, F) to log-probabilities (N,)."""
    steps, deletion, insertion = curve_masks(weights, count)
    values = np.exp(score(np.concatenate([deletion, insertion])))
    half = len(steps)
    return Curves(steps, tuple(values[:half].tolist()), tuple(values[half:].tolist()))


def rank_agreement(a: npt.ArrayLike, b: npt.ArrayLike) -> float | None:
    """Spearman's rank correlation; None where one of the two does not vary."""
    first, second = np.asarray(a, float).ravel(), np.asarray(b, float).ravel()
    if first.shape != second.shape:
        raise ExplainError(f"expected two rankings of one length, got {first.shape} and {second.shape}")
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(spearmanr(first, second).statistic)


def dilate_mm(mask: Masks, spacing: npt.ArrayLike, radius_mm: float) -> Masks:
    """Dilation of a mask by a ball in mm; an empty mask stays empty."""
    if not mask.any():
        return mask.copy()
    distance = ndimage.distance_transform_edt(~mask, sampling=np.asarray(spacing, float))
    return np.asarray(distance <= radius_mm)


def points_into(saliency: npt.NDArray[np.floating], mask: Masks) -> bool:
    """Pointing game: whether the highest voxel of the saliency lies in the mask; False where nothing is above 0.

    Where several voxels share the highest value, the one nearest to their common centre is the point.
    """
    peak = peak_voxel(saliency)
    return peak is not None and bool(mask[peak])


def peak_voxel(saliency: npt.NDArray[np.floating]) -> tuple[int, int, int] | None:
    """Voxel of the highest saliency, of equals the one nearest to their centre; None where nothing is above 0."""
    top = float(saliency.max())
    if top <= 0:
        return None
    equals = np.argwhere(saliency >= top)
    nearest = equals[np.argmin(((equals - equals.mean(axis=0)) ** 2).sum(axis=1))]
    return int(nearest[0]), int(nearest[1]), int(nearest[2])


def mass_ratio(saliency: npt.NDArray[np.floating], mask: Masks, brain: Masks) -> float | None:
    """Share of the positive saliency inside the mask over the mask's share of the brain; None where undefined."""
    positive = np.where(brain, np.maximum(saliency, 0), 0)
    share = (mask & brain).sum() / max(int(brain.sum()), 1)
    if positive.sum() <= 0 or share == 0:
        return None
    return float(positive[mask].sum() / positive.sum() / share)
