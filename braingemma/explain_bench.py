"""How good the attribution methods are: one table over volumes whose lesions are known.

For each method: does the map's peak hit the lesion, how much of its mass does, do seeds agree, are its curves
better, how long does it take against LIME that scores one volume at a time, and does it lose the lesion when the
weights are random (it must).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch
from nibabel.affines import voxel_sizes

from braingemma.attribution import method_named
from braingemma.errors import ExplainError
from braingemma.explain import ExplainSettings, Explanation, mask_scorer
from braingemma.faithfulness import curves, dilate_mm, mass_ratio, points_into, rank_agreement
from braingemma.perturbation import ScoringSettings
from braingemma.preprocess import PreparedVolume, prepare_image
from braingemma.supervoxels import Supervoxels, segment
from braingemma.targets import ModelScorer, TargetPlan, plan_targets

Float = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

DILATION_MM = 5.0
"""A lesion's border is not sharper than this, and edema reaches beyond it."""
BASELINE = "lime, one volume at a time"
VARIANTS = (
    ("lime", "mirror"),
    ("lime", "blur"),
    ("lime", "constant"),
    ("kernelshap", "mirror"),
    ("kernelshap", "blur"),
    ("kernelshap", "constant"),
    ("leave_one_out", "mirror"),
)
"""(method, replacement) compared."""


@dataclass(frozen=True)
class BenchCase:
    """One volume with a known lesion.

    Attributes:
        image: RAS volume.
        lesion: (X, Y, Z) mask on its grid, not empty.
    """

    image: nib.Nifti1Image
    lesion: Mask


@dataclass(frozen=True)
class _Trial:
    """One case, ready for all methods."""

    supervoxels: Supervoxels
    prepared: PreparedVolume
    plan: TargetPlan
    near: Mask


def bench_explain(
    model: Any,
    cases: Iterable[BenchCase],
    *,
    variants: Sequence[tuple[str, str]] = VARIANTS,
    samples: int = 100,
    segments: int = 20,
    seeds: tuple[int, int] = (42, 43),
    batch_size: int = 32,
    progress: Callable[[int, str], None] | None = None,
) -> dict[str, Any]:
    """Compare attribution methods on volumes whose lesions are known.

    Args:
        model: A `BrainGemma3D` with its tokenizer.
        cases: Volumes with lesions, for example phantoms of a seed that the model was not trained on.
        variants: (method, replacement) pairs.
        samples: Volumes that each method may score.
        segments: Supervoxels.
        seeds: Two seeds whose weights are compared.
        batch_size: Of all but the baseline.
        progress: Called with (cases done, what is going on).

    Returns:
        `cases`, `unstated` (reports that state no present finding, which are left out), and `methods`: for each
        "method/replacement" the means of pointing, pointing_dilated, mass_ratio, seed_agreement, deletion_auc,
        insertion_auc, volumes, seconds, speed_ratio (seconds of LIME with the same samples and replacement one
        volume at a time, over its own), random_pointing_dilated and random_mass_ratio (with random weights).

    Raises:
        ExplainError: No case was left.
    """
    random_model = _randomised(model)
    rows: dict[str, list[dict[str, float | None]]] = {f"{m}/{r}": [] for m, r in variants}
    unstated = done = 0
    for case in cases:
        trial = _prepare(model, case, segments)
        done += 1
        if trial is None:
            unstated += 1
            continue
        baselines = {
            r: _baseline_seconds(model, trial, r, samples, seeds[0]) for r in dict.fromkeys(r for _, r in variants)
        }
        for method, replacement in variants:
            if progress is not None:
                progress(done, f"{method}/{replacement}")
            row = _measure(model, case, trial, (method, replacement), samples, seeds, batch_size)
            seconds = row["seconds"] or 1e-9
            row["speed_ratio"] = baselines[replacement] / seconds
            row |= _random_row(random_model, case, trial, (method, replacement), samples, seeds[0])
            rows[f"{method}/{replacement}"].append(row)
    if done == unstated:
        raise ExplainError(f"expected reports that state a finding, got none of {done}")
    return {
        "cases": done - unstated,
        "unstated": unstated,
        "samples": samples,
        "segments": segments,
        "methods": {name: _means(found) for name, found in rows.items()},
    }


def format_table(result: dict[str, Any]) -> str:
    """The result of `bench_explain` as a table for a terminal."""
    columns = {
        "pointing": "pointing",
        "pointing_dilated": "+5 mm",
        "mass_ratio": "mass",
        "seed_agreement": "seeds",
        "deletion_auc": "deletion",
        "insertion_auc": "insertion",
        "volumes": "volumes",
        "seconds": "seconds",
        "speed_ratio": "speed",
        "random_pointing_dilated": "rnd +5 mm",
        "random_mass_ratio": "rnd mass",
    }
    lines = [f"{'method':<26}" + "".join(f"{title:>11}" for title in columns.values())]
    for name, means in result["methods"].items():
        cells = ("-" if means[key] is None else f"{means[key]:.3g}" for key in columns)
        lines.append(f"{name:<26}" + "".join(f"{cell:>11}" for cell in cells))
    lines.append(
        f"{result['cases']} volumes with a stated finding, {result['unstated']} without; "
        f"speed: against {BASELINE}, {result['samples']} samples"
    )
    return "\n".join(lines)


def _prepare(model: Any, case: BenchCase, segments: int) -> _Trial | None:
    """Supervoxels, tensor and the model's own report; None where that states no finding."""
    image = nib.as_closest_canonical(case.image)
    if image.shape != case.lesion.shape or not case.lesion.any():
        raise ExplainError(f"expected a lesion mask {image.shape} that is not empty, got {case.lesion.shape}")
    prepared = prepare_image(image, model.config)
    plan = plan_targets(model.generate_report(prepared.tensor.to(model.compute_device)), model.tokenizer)
    if not plan.targets:
        return None
    supervoxels = segment(np.asarray(image.dataobj, np.float32), image.affine, segments)
    return _Trial(supervoxels, prepared, plan, dilate_mm(case.lesion, voxel_sizes(image.affine), DILATION_MM))


def _measure(
    model: Any,
    case: BenchCase,
    trial: _Trial,
    variant: tuple[str, str],
    samples: int,
    seeds: tuple[int, int],
    batch_size: int,
) -> dict[str, float | None]:
    """All measures of one method on one case but the comparisons with other models."""
    weights, seconds, volumes = _attribute(model, trial, variant, samples, seeds[0], batch_size)
    other, _, _ = _attribute(model, trial, variant, samples, seeds[1], batch_size)
    ask = _scorer(model, trial, variant[1], batch_size)
    curve = curves(weights, lambda masks: ask(masks)[:, 0])
    return {
        **_hits(case, trial, weights, variant),
        "seed_agreement": rank_agreement(weights, other),
        "deletion_auc": curve.deletion_auc,
        "insertion_auc": curve.insertion_auc,
        "volumes": float(volumes),
        "seconds": seconds,
    }


def _hits(case: BenchCase, trial: _Trial, weights: Float, variant: tuple[str, str]) -> dict[str, float | None]:
    """Where the map points."""
    settings = ExplainSettings(method=variant[0], replacement=variant[1])
    saliency = Explanation(trial.supervoxels, weights, settings, finding_present=True).saliency
    return {
        "pointing": float(points_into(saliency, case.lesion)),
        "pointing_dilated": float(points_into(saliency, trial.near)),
        "mass_ratio": mass_ratio(saliency, trial.near, trial.supervoxels.labels > 0),
    }


def _random_row(
    model: Any, case: BenchCase, trial: _Trial, variant: tuple[str, str], samples: int, seed: int
) -> dict[str, float | None]:
    """The same hits with random weights: they must be those of chance."""
    weights, _, _ = _attribute(model, trial, variant, samples, seed, 32)
    return {f"random_{name}": value for name, value in _hits(case, trial, weights, variant).items()}


def _attribute(
    model: Any, trial: _Trial, variant: tuple[str, str], samples: int, seed: int, batch_size: int
) -> tuple[Float, float, int]:
    """Weights of the first target, seconds and volumes that they cost."""
    started = time.perf_counter()
    method = method_named(variant[0])
    masks = method.masks(len(trial.supervoxels.regions), samples, seed)
    ask = _scorer(model, trial, variant[1], batch_size)
    weights = method.fit(masks, ask(masks)[:, 0]).weights
    return weights, time.perf_counter() - started, ask.evaluations


def _scorer(model: Any, trial: _Trial, replacement: str, batch_size: int) -> Any:
    return mask_scorer(
        trial.supervoxels,
        trial.prepared.tensor.to(model.compute_device),
        trial.prepared.grid_affine,
        ModelScorer(model, trial.plan),
        replacement,
        ScoringSettings(batch_size),
    )


def _baseline_seconds(model: Any, trial: _Trial, replacement: str, samples: int, seed: int) -> float:
    """LIME, one volume at a time."""
    return _attribute(model, trial, ("lime", replacement), samples, seed, 1)[1]


def _randomised(model: Any) -> Any:
    """A model of the same classes and sizes with random weights, the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        fresh = type(model)(copy.deepcopy(model.config), tokenizer=model.tokenizer)
    return fresh.to(model.compute_device).eval()


def _means(rows: list[dict[str, float | None]]) -> dict[str, float | None]:
    """Mean of each measure over the cases where it is defined."""
    means: dict[str, float | None] = {}
    for key in rows[0]:
        values = [v for row in rows if (v := row[key]) is not None]
        means[key] = float(np.mean(values)) if values else None
    return means
