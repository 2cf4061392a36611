"""Explain one report of one volume, and write the maps and pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy import ndimage

from braingemma.explain.explanation import (
    DEFAULT_METHOD,
    DEFAULT_REPLACEMENT,
    ExplainSettings,
    Explanation,
    Float,
    Float32,
    Size,
    explain_prepared,
    fitting,
)
from braingemma.explain.faithfulness import rank_agreement
from braingemma.explain.grounding import grounding_on
from braingemma.explain.perturbation import Progress, ScoringSettings
from braingemma.explain.plots import SMALL_EFFECT, Scene, draw_grid, draw_overlay_slices, draw_top_supervoxels
from braingemma.explain.record import SUPERVOXELS, GroundingRecord
from braingemma.explain.supervoxels import Labels, Supervoxels, segment
from braingemma.explain.targets import ALL_FINDINGS, ModelScorer, TargetPlan, plan_targets, present_spans
from braingemma.findings.text import findings_from_text
from braingemma.findings.vocabulary import FINDINGS
from braingemma.model.cost import volume_seconds
from braingemma.model.large_volume import is_large
from braingemma.volume.brain import BrainMask
from braingemma.volume.preprocess import PreparedVolume, prepare_volume

CPU_MINUTES = 8.0
"""What an explanation on a processor may take unless another time is given."""
ROUNDING_SHARE = 0.1
"""Share of the effect of replacing the brain above which what eight bits change is told."""
BATCH_VOXELS = 2**23
"""Voxels of the perturbed volumes in memory at once, unless a batch size is asked for."""


def explain_report(
    model: Any,
    image: nib.Nifti1Image,
    prepared: PreparedVolume,
    report: str,
    settings: ExplainSettings,
    *,
    prompt: str | None = None,
    scoring: ScoringSettings | None = None,
    cpu_minutes: float = CPU_MINUTES,
) -> Explanation:
    """Explain one report of one volume; nothing is written.

    Args:
        model: A `BrainGemma3D`.
        image: The RAS volume.
        prepared: The same volume on the model's grid.
        report: The model's report.
        settings: Method, samples, seed, target.
        prompt: None: the prompt of the weights.
        scoring: Batches, progress, cancelling.
        cpu_minutes: See `run_interpretability`.
    """
    volume = np.asarray(image.dataobj, dtype=np.float32)
    plan = plan_targets(report, model.tokenizer, settings.target, contrast=settings.contrast)
    grid = tuple(prepared.tensor.shape[2:])
    eight_bits = bool(cpu_minutes) and is_large(model, grid)
    size = affordable(model, plan, settings, cpu_minutes, grid)
    supervoxels = segment(volume, image.affine, size.segments, prepared.brain, prepared.frame)
    if not plan.targets:
        return _nothing_to_explain(supervoxels, settings)
    tensor = prepared.tensor.to(model.compute_device)
    found = explain_prepared(
        supervoxels,
        tensor,
        prepared.grid_affine,
        ModelScorer(model, plan, prompt, "eight bits" if eight_bits else "exact"),
        replace(settings, samples=size.samples),
        plan.targets,
        scoring,
        size.curve_points,
    )
    found = replace(found, settings=settings)
    if eight_bits:
        found = with_rounding(found, float(ModelScorer(model, plan, prompt, "bfloat16").score(tensor)[0, 0]))
    found = replace(found, finding_present=bool(present_spans(report)))
    return replace(found, warnings=(*found.warnings, *other_side(found, report)))


def run_interpretability(
    *,
    model: Any,
    mri_path: str | Path,
    report: str,
    output_dir: str | Path,
    lime_samples: int = 100,
    n_segments: int = 20,
    alpha: float = 0.45,
    clip_q: float = 0.99,
    seed: int = 42,
    prompt: str | None = None,
    method: str = DEFAULT_METHOD,
    replacement: str = DEFAULT_REPLACEMENT,
    target: str = ALL_FINDINGS,
    contrast: bool = True,
    batch_size: int | None = None,
    banner: str | None = None,
    brain: BrainMask | None = None,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
    cpu_minutes: float = CPU_MINUTES,
    target_size: tuple[int, int, int] | None = None,
    load_nifti_volume: Callable[..., Any] | None = None,  # noqa: ARG001 - as the card calls it
    CANONICAL_PROMPT: str | None = None,
) -> tuple[Float, Float32]:
    """Explain a report and write pictures, weights and maps.

    Writes `overlay_slices.png`, `lime_2x3_grid.png`, `lime_top_supervoxels_grid.png`, `lime_weights.json`,
    `saliency.nii.gz`, `supervoxels.nii.gz` (their labels) and, where the weights ground, `grounding.nii.gz`, all on the
    grid of the RAS volume (the volume itself where it is stored R, A, S; else in nibabel's canonical order).

    Args:
        model: A `BrainGemma3D`.
        mri_path: NIfTI volume that the report is about.
        report: Its report, as the model wrote it.
        output_dir: Folder to write to; made where it is absent.
        lime_samples: Perturbed volumes that the method may score at most.
        n_segments: Supervoxels at most.
        alpha: Opacity of the strongest colour.
        clip_q: Quantile of |saliency| in the brain that gets the strongest colour.
        seed: Of the perturbations.
        prompt: None: the prompt of the weights.
        method: "balanced" (LIME on an orthogonal design), "lime" (the model card's random samples), "kernelshap" or
            "leave_one_out".
        replacement: What replaced tissue shows: "blur", "mirror" or "constant".
        target: "findings" (the words that carry a present finding), "report" (every word), "side" (why left and
            not right), or one finding: "lesion", "edema", "necrosis", "ventricular_compression".
        contrast: Add "side" to the weights of each supervoxel where the report states one side.
        batch_size: Perturbed volumes in memory at once; None: `default_batch_size` of the model's grid.
        banner: What must be said about the weights in each picture; None: the weights' own.
        brain: Where the brain is, on the RAS volume's grid; None: it is looked for.
        progress: Called with (volumes scored, volumes planned).
        cancelled: Asked before each batch; True raises `ExplainCancelled` and nothing is written.
        cpu_minutes: On a processor about the longest that it may take: large volumes are encoded in eight bits where
            the processor can (`large_volumes`), and there are fewer supervoxels where even so they take too long
            (`affordable`). 0: neither.
        target_size: (D, H, W) on which the volume is read; None: the grid of the weights.
        load_nifti_volume: As the card passes it; the volume is read as the weights need it all the same, because
            the maps need the place of its grid too.
        CANONICAL_PROMPT: As the card passes it: `prompt` by another name.

    Returns:
        Weights (supervoxels,) and saliency (X, Y, Z) on the RAS volume's grid; both 0 where the report states
        no present finding.

    Raises:
        ExplainError: The report or the volume cannot be explained, or an argument makes no sense.
        VolumeError: The volume cannot be read by the model.
    """
    prompt = CANONICAL_PROMPT if prompt is None else prompt
    at_once = default_batch_size(target_size or model.config.grid) if batch_size is None else batch_size
    settings = ExplainSettings(method, lime_samples, n_segments, seed, replacement, target, contrast, at_once)
    prepared = prepare_volume(mri_path, model.config, target_size, brain=brain)
    image = _ras_image(Path(mri_path))
    scoring = ScoringSettings(at_once, progress, cancelled)
    found = explain_report(
        model, image, prepared, report, settings, prompt=prompt, scoring=scoring, cpu_minutes=cpu_minutes
    )
    grounding = grounding_on(image, model, prepared)
    if grounding is not None:
        found = replace(found, grounding=grounding_agreement(found, grounding))
    scene = Scene(
        np.asarray(image.dataobj, dtype=np.float32),
        found.saliency,
        found.supervoxels,
        found.weights,
        found.drawn,
        _title(found),
        banner if banner is not None else model.config.banner,
        grounding,
        _both_sides(report),
        alpha,
        clip_q,
    )
    _write(Path(output_dir), image, found, scene, grounding)
    return found.weights, scene.saliency


def affordable(model: Any, plan: TargetPlan, settings: ExplainSettings, minutes: float, grid: tuple[int, ...]) -> Size:
    """The largest explanation, up to what was asked for, that takes a processor about so many minutes.

    Args:
        model: A `BrainGemma3D`.
        plan: What is scored.
        settings: What was asked for.
        minutes: 0: whatever it takes, as on a GPU, which reads a volume in a fraction of a second.
        grid: (D, H, W) of the volume.
    """
    if not minutes or model.compute_device.type != "cpu" or not plan.targets:
        return Size(settings.segments, settings.samples)
    volumes = int(minutes * 60 / volume_seconds(model, grid, plan.tokens_read))
    # One is read once more, in bfloat16, to see what eight bits change: about as long as two.
    return fitting(settings, volumes - 2 if is_large(model, grid) else volumes)


def with_rounding(found: Explanation, score: float) -> Explanation:
    """What eight bits change of the original volume's score, given that in bfloat16; a warning where it is much."""
    if found.score is None or found.base_score is None:
        return found
    rounding, effect = found.score - score, found.score - found.base_score
    found = replace(found, rounding=rounding)
    if abs(rounding) <= max(ROUNDING_SHARE * abs(effect), SMALL_EFFECT):
        return found
    share = "more than" if abs(rounding) > abs(effect) else f"{abs(rounding / effect):.0%} of what"
    reason = (
        f"Reading volumes in eight bits changes how likely the words are by {share} replacing the whole brain does: "
        "with [explain] cpu_minutes = 0 they are read in full precision."
    )
    return replace(found, warnings=(*found.warnings, reason))


def default_batch_size(grid: tuple[int, int, int]) -> int:
    """Volumes in memory at once: 8 on the card's grid, up to 32 on smaller ones, where one at a time wastes a CPU."""
    return int(np.clip(BATCH_VOXELS // int(np.prod(grid)), 1, 32))


def grounding_agreement(found: Explanation, grounding: Float32) -> GroundingRecord:
    """What the model's own lesion map (X, Y, Z) shows, and how far the weights agree with it."""
    regions = found.supervoxels.regions
    labels = found.supervoxels.labels
    means = np.asarray(ndimage.mean(grounding, labels, [r.label for r in regions]))
    top = int(np.argmax(means))
    return GroundingRecord(
        peak=float(grounding.max()),
        side=regions[top].side,
        site=regions[top].site,
        rank_correlation=rank_agreement(found.weights, means),
        same_top=top == int(np.argmax(found.weights)) if found.drawn else None,
    )


def other_side(found: Explanation, report: str) -> tuple[str, ...]:
    """A warning where the strongest region lies on the other side than the lesion that the report states."""
    name = found.settings.target if found.settings.target in FINDINGS else "lesion"
    stated = next((f for f in findings_from_text(report) if f.finding == name), None)
    if stated is None or stated.laterality is None or not found.drawn:
        return ()
    top = found.supervoxels.regions[int(np.argmax(found.weights))]
    if {stated.laterality, top.side} != {"left", "right"}:
        return ()
    return (
        f"The text places {name.replace('_', ' ')} on the {stated.laterality}, but the region that speaks most for the "
        f"words (saliency) lies on the {top.side}, {top.site}: check the side.",
    )


def _both_sides(report: str) -> bool:
    """Whether the report states a lesion on both sides."""
    return any(f.finding == "lesion" and f.laterality == "bilateral" for f in findings_from_text(report))


def _ras_image(path: Path) -> nib.Nifti1Image:
    """The volume in canonical order; `prepare_volume` has refused what is not one finite 3D volume."""
    return nib.as_closest_canonical(nib.load(path))


def _nothing_to_explain(supervoxels: Supervoxels, settings: ExplainSettings) -> Explanation:
    """The report states no present finding: weights of 0. Record and pictures say so; it is nothing to be warned of."""
    return Explanation(supervoxels, np.zeros(len(supervoxels.regions)), settings)


def _title(found: Explanation) -> str:
    """First lines of the pictures."""
    if found.target is None:
        return "The report states no present finding."
    words = ", ".join(dict.fromkeys(w.lower() for w in found.target.words))
    return f"{found.description}. Explained: {words}. {' '.join(found.warnings)}".strip()


def _write(folder: Path, image: nib.Nifti1Image, found: Explanation, scene: Scene, grounding: Float32 | None) -> None:
    """All files of one explanation."""
    folder.mkdir(parents=True, exist_ok=True)
    _save_map(scene.saliency, image, folder / "saliency.nii.gz", "saliency, nats per token")
    _save_map(scene.supervoxels.labels, image, folder / SUPERVOXELS, "labels of lime_weights.json")
    (folder / "grounding.nii.gz").unlink(missing_ok=True)
    if grounding is not None:
        _save_map(grounding, image, folder / "grounding.nii.gz", "lesion share of each patch")
    draw_overlay_slices(scene, folder / "overlay_slices.png")
    draw_grid(scene, folder / "lime_2x3_grid.png")
    draw_top_supervoxels(scene, folder / "lime_top_supervoxels_grid.png")
    found.record(alpha=scene.alpha, clip_q=scene.clip_q, shown=scene.shown).write(folder)


def _save_map(values: Float32 | Labels, image: nib.Nifti1Image, path: Path, description: str) -> None:
    """A map with the shape, affine and header codes of the volume."""
    saved = nib.Nifti1Image(values, image.affine, image.header)
    saved.set_data_dtype(values.dtype)
    saved.header.set_slope_inter(1, 0)
    saved.header["descrip"] = description.encode()
    saved.header["cal_min"], saved.header["cal_max"] = 0, 0
    nib.save(saved, path)
