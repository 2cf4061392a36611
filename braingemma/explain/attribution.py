"""Attribution methods: from the scores of volumes with some supervoxels replaced to a weight for each supervoxel.

A *mask* is a boolean row with one entry for each supervoxel: True keeps its tissue, False replaces it.
Every method has two halves, so that scoring (slow, batched, cancellable) stays outside: `masks` says which
perturbations it wants, `fit` turns their scores into weights. Positive weights speak for what is scored.

Sources: LIME, Ribeiro et al. 2016, arXiv:1602.04938; KernelSHAP, Lundberg & Lee 2017, arXiv:1705.07874;
paired sampling, Covert & Lee 2021, arXiv:2012.01536; orthogonal designs, Plackett & Burman 1946,
doi:10.1093/biomet/33.4.305, folded over (Box & Wilson 1951, doi:10.1111/j.2517-6161.1951.tb00067.x).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate, combinations
from types import MappingProxyType
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from braingemma.errors import ExplainError

Float = npt.NDArray[np.float64]
Masks = npt.NDArray[np.bool_]
MethodName = Literal["balanced", "lime", "kernelshap", "leave_one_out"]

LIME_KERNEL_WIDTH = 0.25
"""Width of LIME's exponential kernel on cosine distances: the default of `LimeImageExplainer`."""


@dataclass(frozen=True)
class Fit:
    """Weights of one score.

    Attributes:
        weights: (F,) in the unit of the score; positive speaks for it.
        intercept: Score that the additive model predicts with everything replaced.
        r2: Weighted R² of the additive model on the method's own masks; None where nothing was fitted.
    """

    weights: Float
    intercept: float
    r2: float | None


class AttributionMethod(Protocol):
    """What every method offers."""

    name: MethodName

    def masks(self, features: int, samples: int, seed: int) -> Masks:
        """Perturbations to score, (N, features); N is at most `samples` unless the method has a fixed design."""
        ...

    def fit(self, masks: Masks, scores: Float) -> Fit:
        """Weights from the scores (N,) of its own masks (N, F)."""
        ...


class Lime:
    """LIME as the model card has it: independent coin flips, ridge regression near the original."""

    name: MethodName = "lime"

    def masks(self, features: int, samples: int, seed: int) -> Masks:
        """The original first, as LIME requires, then coin flips."""
        _check_samples(samples, 2)
        flips = np.random.default_rng(seed).random((samples - 1, features)) < 0.5
        return np.concatenate([np.ones((1, features), bool), flips])

    def fit(self, masks: Masks, scores: Float) -> Fit:
        """Ridge regression of `LimeBase` with cosine distances to the original."""
        from lime.lime_base import LimeBase  # loads scikit-learn: a second of every start, for this method alone

        _check_scores(masks, scores)
        base = LimeBase(_lime_kernel, random_state=0)
        intercept, pairs, r2, _ = base.explain_instance_with_data(
            masks.astype(float),
            scores[:, None],
            _cosine_distance(masks),
            label=0,
            num_features=masks.shape[1],
            feature_selection="none",
        )
        weights = np.zeros(masks.shape[1])
        for feature, weight in pairs:
            weights[feature] = weight
        return Fit(weights, float(intercept), float(r2))


class Balanced:
    """What LIME estimates, by an orthogonal design in place of coin flips: no noise of sampling.

    Rows of a Hadamard matrix, each followed by its complement: every supervoxel is replaced in half of the rows, and
    in half of those in which any other one is. So the weight of one is its mean effect over the states of the rest
    (the Banzhaf value, as a coin flip of many samples would give it), untouched by the weights of the others and by
    all interactions of pairs. 48 volumes for 20 supervoxels.
    """

    name: MethodName = "balanced"

    def masks(self, features: int, samples: int, seed: int) -> Masks:  # noqa: ARG002 - fixed design
        """The original first, its complement second. No sampling: all seeds agree.

        With fewer samples than the matrix has rows the last pairs are left out, and weights become estimates.
        """
        _check_samples(samples, 2)
        kept = hadamard(features + 1)[: samples // 2, 1 : features + 1] > 0
        return np.stack([kept, ~kept], axis=1).reshape(-1, features)

    def fit(self, masks: Masks, scores: Float) -> Fit:
        """Least squares: on the whole design, mean score of the rows with a supervoxel minus that of those without."""
        _check_scores(masks, scores)
        signs = np.where(masks, 0.5, -0.5)  # complements make every column's mean 0
        weights = np.linalg.lstsq(signs, scores - scores.mean(), rcond=None)[0]
        predicted = scores.mean() + signs @ weights
        return Fit(weights, float(scores.mean() - weights.sum() / 2), weighted_r2(scores, predicted))


class LeaveOneOut:
    """Occlusion: what is lost when one supervoxel alone is replaced. No sampling: all seeds agree."""

    name: MethodName = "leave_one_out"

    def masks(self, features: int, samples: int, seed: int) -> Masks:  # noqa: ARG002 - fixed design
        """The original, everything replaced, and each supervoxel replaced alone: F + 2 rows."""
        return np.concatenate(
            [np.ones((1, features), bool), np.zeros((1, features), bool), ~np.eye(features, dtype=bool)]
        )

    def fit(self, masks: Masks, scores: Float) -> Fit:
        """Score of the original minus the score without the supervoxel."""
        _check_scores(masks, scores)
        return Fit(scores[0] - scores[2:], float(scores[1]), None)


class KernelShap:
    """Paired KernelSHAP: Shapley values from the original, everything replaced, and coalitions in pairs.

    Small coalitions and their complements are enumerated, level by level, as far as the samples go: first each
    supervoxel alone and each left out (so leave-one-out is part of the design), then pairs, and so on. Whole levels
    only: measured on phantoms, spending what remains on drawn coalitions costs time and stability (rank agreement
    between seeds 0.42 instead of 1.0) and gains nothing. Only where not even the first level fits are coalitions
    drawn, each with its complement, which removes the noise of odd order.
    """

    name: MethodName = "kernelshap"

    def masks(self, features: int, samples: int, seed: int) -> Masks:
        """The original, everything replaced, then the enumerated or the drawn coalitions."""
        _check_samples(samples, 2)
        rows = [np.ones((1, features), bool), np.zeros((1, features), bool)]
        complete = _complete_sizes(features, samples)
        rows += [_level(features, size) for size in range(1, complete + 1)]
        pairs = (samples - sum(len(r) for r in rows)) // 2
        if complete == 0 and features > 1 and pairs > 0:
            rows.append(_paired_draws(features, 1, pairs, seed))
        return np.concatenate(rows)

    def fit(self, masks: Masks, scores: Float) -> Fit:
        """Weighted least squares under the constraint that the weights add up to (original - all replaced)."""
        _check_scores(masks, scores)
        empty, total = float(scores[1]), float(scores[0] - scores[1])
        if masks.shape[1] == 1 or len(masks) == 2:
            return Fit(np.full(masks.shape[1], total / masks.shape[1]), empty, None)
        z, y = masks[2:].astype(float), scores[2:] - empty
        root = np.sqrt(_kernel_weights(masks[2:], _complete_sizes(masks.shape[1], len(masks))))
        # The last weight is `total` minus the others, which leaves an ordinary least-squares problem.
        left, right = z[:, :-1] - z[:, -1:], y - z[:, -1] * total
        solution = np.linalg.lstsq(left * root[:, None], right * root, rcond=None)[0]
        weights = np.append(solution, total - solution.sum())
        return Fit(weights, empty, weighted_r2(y, z @ weights, root**2))


METHODS: Mapping[MethodName, AttributionMethod] = MappingProxyType(
    {"balanced": Balanced(), "lime": Lime(), "kernelshap": KernelShap(), "leave_one_out": LeaveOneOut()}
)


def method_named(name: str) -> AttributionMethod:
    """The method of this name; ExplainError names those there are."""
    for known, method in METHODS.items():
        if known == name:
            return method
    raise ExplainError(f"expected a method of {', '.join(METHODS)}, got {name!r}")


def hadamard(least: int) -> npt.NDArray[np.int_]:
    """A Hadamard matrix of ±1 of the smallest order >= `least` of Paley's first construction; first row and column 1.

    Paley, J. Math. Phys. 12:311, 1933: order q + 1 for a prime q with q mod 4 = 3.
    """
    prime = max(3, least - 1)
    while prime % 4 != 3 or any(prime % k == 0 for k in range(2, math.isqrt(prime) + 1)):
        prime += 1
    squares = {(k * k) % prime for k in range(1, prime)}
    character = np.array([0, *(1 if k in squares else -1 for k in range(1, prime))])
    index = np.arange(prime)
    matrix = np.ones((prime + 1, prime + 1), int)
    matrix[1:, 1:] = character[(index[:, None] - index) % prime] - np.eye(prime, dtype=int)
    return matrix


def weighted_r2(truth: Float, predicted: Float, weights: Float | None = None) -> float | None:
    """Share of the weighted variance of `truth` that `predicted` explains; None where the truth does not vary."""
    w = np.ones_like(truth) if weights is None else weights
    mean = np.average(truth, weights=w)
    spread = float(np.sum(w * (truth - mean) ** 2))
    scale = float(np.sum(w * truth**2))
    if spread <= 1e-12 * max(scale, 1e-12):
        return None
    return 1 - float(np.sum(w * (truth - predicted) ** 2)) / spread


def shapley_kernel(features: int, size: int) -> float:
    """Total kernel mass of all coalitions of one size, up to a constant: (F - 1) / (s (F - s))."""
    return (features - 1) / (size * (features - size))


def whole_levels(features: int, samples: int) -> list[int]:
    """Rows of KernelSHAP's designs of whole levels, of at most so many; the largest first."""
    sizes = range(1, _complete_sizes(features, samples) + 1)
    return [2 + rows for rows in accumulate(_level_rows(features, size) for size in sizes)][::-1]


def _complete_sizes(features: int, rows: int) -> int:
    """Up to which size all coalitions (and their complements) are enumerated in a design of that many rows."""
    left, size = rows - 2, 0
    while 2 * (size + 1) <= features and _level_rows(features, size + 1) <= left:
        size += 1
        left -= _level_rows(features, size)
    return size


def _level_rows(features: int, size: int) -> int:
    """Coalitions of one size together with their complements."""
    return math.comb(features, size) * (1 if 2 * size == features else 2)


def _level(features: int, size: int) -> Masks:
    """All coalitions of one size left out, then (where different) all kept alone."""
    kept = np.zeros((math.comb(features, size), features), bool)
    for row, members in enumerate(combinations(range(features), size)):
        kept[row, list(members)] = True
    return kept if 2 * size == features else np.concatenate([~kept, kept])


def _paired_draws(features: int, smallest: int, pairs: int, seed: int) -> Masks:
    """Coalitions of sizes smallest .. features - smallest by kernel mass, each followed by its complement."""
    rng = np.random.default_rng(seed)
    sizes = np.arange(smallest, features - smallest + 1)
    mass = np.array([shapley_kernel(features, s) for s in sizes.tolist()])
    drawn = rng.choice(sizes, size=pairs, p=mass / mass.sum())
    kept = np.zeros((2 * pairs, features), bool)
    for pair, size in enumerate(drawn):
        kept[2 * pair, rng.permutation(features)[:size]] = True
        kept[2 * pair + 1] = ~kept[2 * pair]
    return kept


def _kernel_weights(masks: Masks, complete: int) -> Float:
    """Regression weight of each coalition: its size's kernel mass where the size is enumerated, a fair share else."""
    features, sizes = masks.shape[1], masks.sum(axis=1)
    weights = np.empty(len(masks))
    drawn = np.minimum(sizes, features - sizes) > complete
    for row in np.flatnonzero(~drawn):
        size = int(sizes[row])
        weights[row] = shapley_kernel(features, size) / math.comb(features, size)
    # Draws come in proportion to kernel mass: each stands for the same share of what was not enumerated.
    open_mass = sum(shapley_kernel(features, s) for s in range(complete + 1, features - complete))
    weights[drawn] = open_mass / max(int(drawn.sum()), 1)
    return weights


def _lime_kernel(distances: Float) -> Float:
    """LIME's kernel sqrt(exp(-(d / width)^2))."""
    return np.sqrt(np.exp(-((distances / LIME_KERNEL_WIDTH) ** 2)))


def _cosine_distance(masks: Masks) -> Float:
    """Cosine distance of each mask to the one that keeps everything; 1 for the one that keeps nothing."""
    return 1 - np.sqrt(masks.mean(axis=1))


def _check_samples(samples: int, least: int) -> None:
    if samples < least:
        raise ExplainError(f"expected at least {least} samples, got {samples}")


def _check_scores(masks: Masks, scores: Float) -> None:
    if masks.ndim != 2 or scores.shape != (len(masks),):
        raise ExplainError(f"expected one score for each of the masks {masks.shape}, got scores {scores.shape}")
    if not np.isfinite(scores).all():
        raise ExplainError(
            f"expected finite scores, got {int((~np.isfinite(scores)).sum())} of {len(scores)} not finite"
        )
