"""How good the attribution methods are: one table over volumes whose lesions are known.

For each method: does the map's peak hit the lesion, how much of its mass does, do seeds agree, are its curves
better, how long does it take against LIME that scores one volume at a time, and does it lose the lesion when the
weights are random (it must).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel
import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch
from nibabel.affines import voxel_sizes

from braingemma.errors import ExplainError
from braingemma.explain.attribution import method_named
from braingemma.explain.explanation import (
    DEFAULT_METHOD,
    DEFAULT_REPLACEMENT,
    ExplainSettings,
    Explanation,
    mask_scorer,
    relative_change,
)
from braingemma.explain.faithfulness import curves, dilate_mm, mass_ratio, points_into, rank_agreement
from braingemma.explain.perturbation import MaskScorer, ScoringSettings
from braingemma.explain.run import default_batch_size
from braingemma.explain.supervoxels import Supervoxels, segment
from braingemma.explain.targets import ModelScorer, TargetPlan, plan_targets
from braingemma.volume.preprocess import PreparedVolume, prepare_image
from training.errors import DataError
from training.evaluation.cases import EvaluationCase, folder_cases, inserted_cases
from training.phantoms.phantom import make_phantom

Float = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Row = dict[str, float | None]

DILATION_MM = 5.0
"""A lesion's border is not sharper than this, and edema reaches beyond it."""
VARIANTS = (
    ("kernelshap", "mirror"),
    ("kernelshap", "blur"),
    ("kernelshap", "constant"),
    ("balanced", "mirror"),
    ("leave_one_out", "mirror"),
    ("lime", "mirror"),
)
"""(method, replacement) compared."""
COLUMNS = {
    "pointing": "pointing",
    "pointing_dilated": "+5 mm",
    "top_overlaps": "top hits",
    "mass_ratio": "mass",
    "seed_agreement": "seeds",
    "deletion_auc": "deletion",
    "insertion_auc": "insertion",
    "r2": "R2",
    "volumes": "volumes",
    "seconds": "seconds",
    "speed_ratio": "speed",
    "random_pointing_dilated": "rnd +5 mm",
    "random_mass_ratio": "rnd mass",
    "random_agreement": "rnd rank",
    "random_strength": "rnd size",
}
"""Measures of the table and their titles."""
MEDIANS = ("seconds", "speed_ratio")
"""Measures of which the median over the cases counts; of the others the mean."""


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

    image: nib.Nifti1Image
    supervoxels: Supervoxels
    prepared: PreparedVolume
    plan: TargetPlan
    lesion: Mask
    near: Mask

    def divided(self, segments: int) -> _Trial:
        """The same case in another number of supervoxels."""
        return replace(self, supervoxels=_divided(self.image, self.prepared, segments))


def bench_explain(
    model: Any,
    cases: Iterable[BenchCase],
    *,
    variants: Sequence[tuple[str, str]] = VARIANTS,
    samples: int = 100,
    segments: Sequence[int] = (20,),
    seeds: tuple[int, int] = (42, 43),
    batch_size: int | None = None,
    progress: Callable[[int, str], None] | None = None,
) -> dict[str, Any]:
    """Compare attribution methods on volumes whose lesions are known.

    Args:
        model: A `BrainGemma3D` with its tokenizer.
        cases: Volumes with lesions, for example phantoms of a seed that the model was not trained on.
        variants: (method, replacement) pairs.
        samples: Volumes that each method may score.
        segments: Supervoxels; of several, all on the same cases.
        seeds: Two seeds whose weights are compared.
        batch_size: Of all but the baseline; None: as `run_interpretability` takes it.
        progress: Called with (cases done, what is going on).

    Returns:
        `cases`, `unstated` (reports that state no present finding, which are left out), `methods`: for each
        "method/replacement" (with the number of supervoxels behind it for all but the first number) the measures of
        `COLUMNS` (speed_ratio: seconds of LIME with the same samples and scorer
        one volume at a time, over its own; random_*: with random weights, for the default replacement only;
        random_agreement: rank correlation with the real map; random_strength: largest weight over the real one), and
        `ratios` and `targets` of the default where it was among the variants.

    Raises:
        ExplainError: No case was left.
    """
    at_once = default_batch_size(model.config.grid) if batch_size is None else batch_size
    random_model = _randomised(model)
    names = {(v, n): "/".join(v) + (f", {n}" if n != segments[0] else "") for n in segments for v in variants}
    rows: dict[str, list[Row]] = {name: [] for name in names.values()}
    unstated = done = 0
    for case in cases:
        trial = _prepare(model, case, segments[0])
        done += 1
        if trial is None:
            unstated += 1
            continue
        bench = _Bench(model, random_model, trial, samples, seeds, at_once)
        if done - unstated == 1:
            bench.warm_up()
        one_by_one = bench.attribute(model, ("lime", DEFAULT_REPLACEMENT), 1)[1]
        for (variant, number), name in names.items():
            if progress is not None:
                progress(done, name)
            divided = replace(bench, trial=trial if number == segments[0] else trial.divided(number))
            rows[name].append(divided.row(variant, one_by_one))
    if done == unstated:
        raise ExplainError(f"expected reports that state a finding, got none of {done}")
    methods = {name: _summary(found) for name, found in rows.items()}
    return {
        "cases": done - unstated,
        "unstated": unstated,
        "samples": samples,
        "segments": list(segments),
        "batch_size": at_once,
        "methods": methods,
        **_verdict(methods),
    }


def format_table(result: dict[str, Any]) -> str:
    """The result of `bench_explain` as a table for a terminal."""
    lines = [f"{'method':<24}" + "".join(f"{title:>10}" for title in COLUMNS.values())]
    for name, found in result["methods"].items():
        cells = ("-" if found[key] is None else f"{found[key]:.3g}" for key in COLUMNS)
        lines.append(f"{name:<24}" + "".join(f"{cell:>10}" for cell in cells))
    lines.append(
        f"{result['cases']} volumes with a stated finding, {result['unstated']} without; speed: against LIME, "
        f"{result['samples']} samples, one volume at a time; rnd: with random weights"
    )
    for name, target in result.get("targets", {}).items():
        lines.append(f"{'met   ' if target['met'] else 'MISSED'} {name}: {target['found']:.3g}, {target['needed']}")
    return "\n".join(lines)


def _prepare(model: Any, case: BenchCase, segments: int) -> _Trial | None:
    """Supervoxels, tensor and the model's own report; None where that states no finding."""
    image = nib.as_closest_canonical(case.image)
    if image.shape != case.lesion.shape or not case.lesion.any():
        raise ExplainError(f"expected a lesion mask {image.shape} that is not empty, got {case.lesion.shape}")
    prepared = prepare_image(image, model.config)
    plan = plan_targets(model.generate_report(prepared.tensor.to(model.compute_device), seed=0), model.tokenizer)
    if not plan.targets:
        return None
    near = dilate_mm(case.lesion, voxel_sizes(image.affine), DILATION_MM)
    return _Trial(image, _divided(image, prepared, segments), prepared, plan, case.lesion, near)


def _divided(image: nib.Nifti1Image, prepared: PreparedVolume, segments: int) -> Supervoxels:
    return segment(np.asarray(image.dataobj, np.float32), image.affine, segments, prepared.brain)


@dataclass(frozen=True)
class _Bench:
    """All methods on one case."""

    model: Any
    random_model: Any
    trial: _Trial
    samples: int
    seeds: tuple[int, int]
    batch_size: int

    def warm_up(self) -> None:
        """Torch plans its kernels for each batch size at the first call: no method shall pay for that."""
        for size in (1, self.batch_size):
            self._scorer(self.model, DEFAULT_REPLACEMENT, size)(np.eye(len(self.trial.supervoxels.regions)) > 0)

    def row(self, variant: tuple[str, str], baseline_seconds: float) -> Row:
        """All measures of one method."""
        weights, seconds, ask, r2 = self.attribute(self.model, variant, self.batch_size)
        volumes = float(ask.evaluations)
        masks = self._masks(variant[0], self.seeds[1])
        other = method_named(variant[0]).fit(masks, ask(masks)[:, 0]).weights
        curve = curves(weights, lambda wanted: ask(wanted)[:, 0])
        by_chance: Row = dict.fromkeys(("pointing_dilated", "mass_ratio", "agreement", "strength"))
        if variant[1] == DEFAULT_REPLACEMENT:
            random_weights, _, ask_random, _ = self.attribute(self.random_model, variant, self.batch_size)
            by_chance = {
                **self._hits(random_weights, ask_random),
                "agreement": rank_agreement(weights, random_weights),
                "strength": float(np.abs(random_weights).max() / max(np.abs(weights).max(), 1e-12)),
            }
        return {
            **self._hits(weights, ask),
            "seed_agreement": rank_agreement(weights, other),
            "deletion_auc": curve.deletion_auc,
            "insertion_auc": curve.insertion_auc,
            "r2": r2,
            "volumes": volumes,
            "seconds": seconds,
            "speed_ratio": baseline_seconds / max(seconds, 1e-9),
            **{f"random_{name}": value for name, value in by_chance.items()},
        }

    def attribute(
        self, model: Any, variant: tuple[str, str], batch_size: int
    ) -> tuple[Float, float, MaskScorer, float | None]:
        """Weights of the first target, seconds that they cost, what scored them, R²."""
        started = time.perf_counter()
        masks = self._masks(variant[0], self.seeds[0])
        ask = self._scorer(model, variant[1], batch_size)
        fit = method_named(variant[0]).fit(masks, ask(masks)[:, 0])
        return fit.weights, time.perf_counter() - started, ask, fit.r2

    def _hits(self, weights: Float, ask: MaskScorer) -> Row:
        """Where the map points, as it would be drawn."""
        trial = self.trial
        score, base_score = (float(s) for s in ask(np.array([[True], [False]]).repeat(len(weights), axis=1))[:, 0])
        change = relative_change(ask, trial.supervoxels, trial.prepared.grid_affine)
        found = Explanation(
            trial.supervoxels,
            weights,
            ExplainSettings(),
            finding_present=True,
            score=score,
            base_score=base_score,
            change=change,
        )
        saliency = found.saliency
        top = trial.supervoxels.labels == int(np.argmax(weights)) + 1
        return {
            "pointing": float(points_into(saliency, trial.lesion)),
            "pointing_dilated": float(points_into(saliency, trial.near)),
            "top_overlaps": float(bool(weights.max() > 0 and (top & trial.lesion).any())),
            "mass_ratio": mass_ratio(saliency, trial.near, trial.supervoxels.labels > 0),
        }

    def _masks(self, method: str, seed: int) -> Mask:
        return method_named(method).masks(len(self.trial.supervoxels.regions), self.samples, seed)

    def _scorer(self, model: Any, replacement: str, batch_size: int) -> MaskScorer:
        return mask_scorer(
            self.trial.supervoxels,
            self.trial.prepared.tensor.to(model.compute_device),
            self.trial.prepared.grid_affine,
            ModelScorer(model, self.trial.plan),
            replacement,
            ScoringSettings(batch_size),
        )


def _randomised(model: Any) -> Any:
    """A model of the same classes and sizes with random weights, the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        fresh = type(model)(copy.deepcopy(model.config), tokenizer=model.tokenizer)
    return fresh.to(model.compute_device).eval()


def _summary(rows: list[Row]) -> Row:
    """Mean (or median, see `MEDIANS`) of each measure over the cases where it is defined."""
    found: Row = {}
    for key in rows[0]:
        values = [v for row in rows if (v := row[key]) is not None]
        middle = np.median if key in MEDIANS else np.mean
        found[key] = float(middle(values)) if values else None
    return found


def _verdict(methods: dict[str, Row]) -> dict[str, Any]:
    """The default against LIME and against what an explanation must reach; nothing where one was not measured."""
    own = methods.get(f"{DEFAULT_METHOD}/{DEFAULT_REPLACEMENT}")
    lime = methods.get(f"lime/{DEFAULT_REPLACEMENT}")
    if own is None or lime is None:
        return {}
    least = {"pointing": 0.85, "mass_ratio": 4.0, "seed_agreement": 0.9, "speed_ratio": 3.0}
    targets = {
        name: {"found": own[name] or 0.0, "needed": f"at least {needed:g}", "met": (own[name] or 0.0) >= needed}
        for name, needed in least.items()
    }
    for name, met, needed in (
        ("pointing_against_lime", (own["pointing"] or 0) >= (lime["pointing"] or 0), f"LIME: {lime['pointing']:.3g}"),
        ("deletion_auc", (own["deletion_auc"] or 1) < (lime["deletion_auc"] or 0), f"LIME: {lime['deletion_auc']:.3g}"),
    ):
        targets[name] = {"found": own[name.removesuffix("_against_lime")] or 0.0, "needed": needed, "met": met}
    return {
        "ratios": {"speed_vs_lime_one_by_one": own["speed_ratio"], "mass_vs_share": own["mass_ratio"]},
        "targets": targets,
    }


def explain_cases(
    *, seed: int, count: int, folder: Path | None = None, insert: tuple[Path, ...] = ()
) -> Iterator[BenchCase]:
    """Cases with a lesion, each read or drawn when its turn comes.

    Args:
        seed: Of the first phantom, or of the first inserted lesion.
        count: Phantoms, or lesions in each scan of `insert`.
        folder: Cases as `braingemma phantom` writes them, in place of phantoms; those without a lesion are left out.
        insert: Real scans without a mass, in place of phantoms.

    Raises:
        DataError: both were given, or the folder holds no case.
        VolumeError: a picture cannot be read.
    """
    if folder is not None and insert:
        raise DataError("expected either a folder of cases or scans to insert lesions into, got both")
    if folder is not None:
        return _opened(folder_cases(folder))
    if insert:
        return _opened(inserted_cases(insert, count, seed))
    return _phantoms(seed, count)


def _phantoms(seed: int, count: int) -> Iterator[BenchCase]:
    for number in range(count):
        phantom = make_phantom(seed + number, with_lesion=True)
        yield from _case(phantom.volume, phantom.lesion)


def _opened(cases: list[EvaluationCase] | Iterator[EvaluationCase]) -> Iterator[BenchCase]:
    for case in cases:
        yield from _case(*case.open())


def _case(image: nibabel.Nifti1Image, mask: nibabel.Nifti1Image | None) -> Iterator[BenchCase]:
    """The case; nothing where there is no lesion."""
    lesion = None if mask is None else np.asarray(nibabel.as_closest_canonical(mask).dataobj) > 0
    if lesion is not None and lesion.any():
        yield BenchCase(image, lesion)
