"""Which regions of the brain carry a report's findings, and how far that answer can be trusted.

`run_interpretability` is the model card's call: it explains one report of one volume and writes pictures, weights
and maps to a folder. The parts: supervoxels (where), targets (what is explained), perturbation (the volumes that
are scored), attribution (from scores to weights), faithfulness (is it true), plots (what one sees).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch
from nibabel.affines import voxel_sizes
from scipy import ndimage
from torch import Tensor

from braingemma.errors import ExplainError
from braingemma.explain.attribution import METHODS, method_named
from braingemma.explain.faithfulness import Curves, curve_steps, curves, rank_agreement
from braingemma.explain.perturbation import (
    FILLINGS,
    ExplainCancelled,
    MaskScorer,
    Progress,
    ReportScorer,
    ScoringSettings,
    filling_for,
)
from braingemma.explain.plots import SMALL_EFFECT, Scene, draw_grid, draw_overlay_slices, draw_top_supervoxels
from braingemma.explain.supervoxels import Supervoxels, segment
from braingemma.explain.targets import ALL_FINDINGS, ModelScorer, Target, plan_targets, present_spans
from braingemma.volume.preprocess import PreparedVolume, prepare_volume

__all__ = [
    "ExplainCancelled",
    "ExplainSettings",
    "Explanation",
    "explain_prepared",
    "explain_report",
    "mask_scorer",
    "run_interpretability",
]

Float = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]

DEFAULT_METHOD = "kernelshap"
"""The best by `braingemma bench explain`, see docs/explanations.md."""
DEFAULT_REPLACEMENT = "mirror"
"""Ordinary tissue of the other side takes a lesion away and leaves a brain; the best by the same table."""
FOCUS = 0.08
"""Share of a weight that a voxel loses where replacing its supervoxel changes nothing, so that the map peaks at what
was taken away; a region stays above 0.9 of its peak, which is what a segmentation of the top region takes."""
FOCUS_MM = 5.0
"""Blur of that change, standard deviation: a peak is a place, not one noisy voxel."""
BATCH_VOXELS = 2**23
"""Voxels of the perturbed volumes in memory at once, unless a batch size is asked for."""
METHOD_TITLES = {
    "balanced": "LIME by a balanced design",
    "lime": "LIME",
    "kernelshap": "Paired KernelSHAP",
    "leave_one_out": "Leave-one-out",
}
POOR_FIT = 0.3
"""R² below which an additive map says little about the model."""


@dataclass(frozen=True)
class ExplainSettings:
    """How a report is explained.

    Attributes:
        method: One of `attribution.METHODS`.
        samples: Perturbed volumes that the method may ask for (leave-one-out has a fixed number).
        segments: Supervoxels wanted.
        seed: Of the perturbations.
        replacement: What replaced supervoxels show, one of `perturbation.FILLINGS`.
        target: What is drawn: "findings", "report", "side", or the name of a finding.
        contrast: Add "why this side" (left against right) to the weights, where the report states one side.
        batch_size: Perturbed volumes in memory at once.
    """

    method: str = DEFAULT_METHOD
    samples: int = 100
    segments: int = 20
    seed: int = 42
    replacement: str = DEFAULT_REPLACEMENT
    target: str = ALL_FINDINGS
    contrast: bool = True
    batch_size: int = 8

    def __post_init__(self) -> None:
        """Refuse what no method can do."""
        method_named(self.method)
        if self.replacement not in FILLINGS:
            raise ExplainError(f"expected a replacement of {', '.join(FILLINGS)}, got {self.replacement!r}")
        for name, least in (("samples", 2), ("segments", 2), ("batch_size", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ExplainError(f"expected {name} of at least {least}, got {getattr(self, name)}")


@dataclass(frozen=True)
class Explanation:
    """Weights of supervoxels for what a report says.

    Attributes:
        supervoxels: The partition.
        weights: (F,) of the first target, nats per token; positive speaks for it.
        settings: How it was made.
        target: The first target; None where the report states no present finding.
        finding_present: Whether the report states a present finding; without one nothing is drawn.
        score: Mean log-probability of the target's tokens, original volume.
        base_score: The same with the whole brain replaced.
        r2: Of the additive model on the method's masks; None where nothing was fitted.
        curves: Deletion and insertion.
        by_target: Weights of all targets, each (F,).
        grounding: The model's own lesion map and how far the weights agree with it, see `grounding_agreement`;
            None where the weights have no such map.
        evaluations: Volumes that were scored.
        change: (X, Y, Z) how much replacing changes each voxel, see `relative_change`; None: not known.
        warnings: What a reader must know.
    """

    supervoxels: Supervoxels
    weights: Float
    settings: ExplainSettings
    target: Target | None = None
    finding_present: bool = False
    score: float | None = None
    base_score: float | None = None
    r2: float | None = None
    curves: Curves | None = None
    by_target: dict[str, Float] = field(default_factory=dict)
    grounding: dict[str, Any] | None = None
    evaluations: int = 0
    change: Float32 | None = field(default=None, repr=False)
    warnings: tuple[str, ...] = ()

    @property
    def drawn(self) -> bool:
        """Whether there is a region that supports a finding, and words that depend on the image at all.

        A model that does not look (random weights) gives weights near 0 whose order follows how much each replacement
        changes the picture: scaled up, they would point at the lesion.
        """
        return self.finding_present and not self.blind and bool(self.weights.max(initial=0) > 0)

    @property
    def blind(self) -> bool:
        """Whether neither the whole brain nor any region of it changes the words by more than is told from noise."""
        if self.score is None or self.base_score is None:
            return False
        return max(abs(self.score - self.base_score), float(np.abs(self.weights).max(initial=0))) < SMALL_EFFECT

    @property
    def saliency(self) -> Float32:
        """(X, Y, Z) on the RAS volume's grid; all 0 without a finding.

        Each voxel has the weight of its supervoxel, less up to FOCUS where replacing it changes little: what a
        perturbation leaves as it is cannot have carried its effect.
        """
        if not self.drawn:
            return np.zeros(self.supervoxels.labels.shape, np.float32)
        painted = self.supervoxels.paint(self.weights)
        return painted if self.change is None else (painted * (1 - FOCUS + FOCUS * self.change)).astype(np.float32)

    def to_json(self) -> dict[str, Any]:
        """As written to `lime_weights.json`."""
        asked = asdict(self.settings)
        return {
            "method": asked.pop("method"),
            "samples": asked.pop("samples"),
            "segments": len(self.weights),
            "evaluations": self.evaluations,
            "seed": asked.pop("seed"),
            "settings": asked,
            "explained": None if self.target is None else {"target": self.target.name, "words": self.target.words},
            "finding_present": self.finding_present,
            "drawn": self.drawn,
            "unit": "nats per token",
            "score": self.score,
            "base_score": self.base_score,
            "r2": self.r2,
            "faithfulness": None if self.curves is None else self.curves.to_json(),
            "grounding": self.grounding,
            "weights": self.weights.tolist(),
            "supervoxels": [self._supervoxel(n) for n in range(len(self.weights))],
            "warnings": list(self.warnings),
        }

    def _supervoxel(self, index: int) -> dict[str, Any]:
        by_target = {name: float(weights[index]) for name, weights in self.by_target.items()}
        return {"weight": float(self.weights[index]), "by_target": by_target, **asdict(self.supervoxels.regions[index])}


def explain_prepared(
    supervoxels: Supervoxels,
    volume: Tensor,
    grid_affine: Float,
    scorer: ReportScorer,
    settings: ExplainSettings,
    targets: tuple[Target, ...],
    scoring: ScoringSettings | None = None,
) -> Explanation:
    """Explain any scorer on one prepared volume.

    Args:
        supervoxels: On the volume's own grid.
        volume: (1, 1, D, H, W) as the scorer takes it.
        grid_affine: (4, 4) from the grid's voxel (w, h, d) to RAS mm.
        scorer: One column for each of `targets`.
        settings: Method, samples, seed, replacement.
        targets: Their names; the first is the one whose faithfulness is measured.
        scoring: Batches, progress, cancelling; None: from `settings`.
    """
    method, features = METHODS[method_named(settings.method).name], len(supervoxels.regions)
    masks = method.masks(features, settings.samples, settings.seed)
    ask = mask_scorer(
        supervoxels, volume, grid_affine, scorer, settings.replacement, scoring or ScoringSettings(settings.batch_size)
    )
    ask.planned = len(np.unique(masks, axis=0)) + 2 * len(curve_steps(features)) - 4
    scores = ask(masks)
    fits = [method.fit(masks, scores[:, column]) for column in range(scores.shape[1])]
    measured = curves(fits[0].weights, lambda wanted: ask(wanted)[:, 0])
    ends = ask(np.array([[True] * features, [False] * features]))[:, 0]
    found = Explanation(
        supervoxels,
        fits[0].weights,
        settings,
        target=targets[0],
        score=float(ends[0]),
        base_score=float(ends[1]),
        r2=fits[0].r2,
        curves=measured,
        by_target={t.name: f.weights for t, f in zip(targets, fits, strict=True)},
        evaluations=ask.evaluations,
        change=relative_change(ask, supervoxels, grid_affine),
    )
    return replace(found, warnings=_doubts(found))


def mask_scorer(
    supervoxels: Supervoxels,
    volume: Tensor,
    grid_affine: Float,
    scorer: ReportScorer,
    replacement: str,
    scoring: ScoringSettings,
) -> MaskScorer:
    """What scores masks over supervoxels of one prepared volume; arguments as for `explain_prepared`."""
    grid = tuple(volume.shape[2:])
    labels = supervoxels.on_grid((grid[0], grid[1], grid[2]), grid_affine)
    filling = filling_for(replacement, volume[0, 0].float().cpu().numpy(), labels, grid_affine)
    return MaskScorer(
        volume,
        torch.from_numpy(filling)[None, None].to(volume),
        torch.from_numpy(labels).long().to(volume.device),
        scorer,
        scoring,
    )


def relative_change(ask: MaskScorer, supervoxels: Supervoxels, grid_affine: Float) -> Float32:
    """How much replacing changes the picture at each voxel (X, Y, Z), 1 where it changes its supervoxel most."""
    change = (ask.volume - ask.filling).abs()[0, 0].float().cpu().numpy()
    blurred = ndimage.gaussian_filter(change, FOCUS_MM / voxel_sizes(grid_affine)[::-1]).astype(np.float32)
    image = nib.Nifti1Image(supervoxels.labels, supervoxels.affine)
    values, labels = grounding_on_grid(blurred, blurred.shape, grid_affine, image), supervoxels.labels
    most = np.asarray(ndimage.maximum(values, labels, np.arange(int(labels.max()) + 1)), np.float32)
    return np.where(labels > 0, values / np.maximum(most, 1e-6)[labels], 0).astype(np.float32)


def explain_report(
    model: Any,
    image: nib.Nifti1Image,
    prepared: PreparedVolume,
    report: str,
    settings: ExplainSettings,
    *,
    prompt: str | None = None,
    scoring: ScoringSettings | None = None,
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
    """
    supervoxels = segment(np.asarray(image.dataobj, dtype=np.float32), image.affine, settings.segments)
    plan = plan_targets(report, model.tokenizer, settings.target, contrast=settings.contrast)
    if not plan.targets:
        return _nothing_to_explain(supervoxels, settings)
    volume = prepared.tensor.to(model.compute_device)
    scorer = ModelScorer(model, plan, prompt)
    found = explain_prepared(supervoxels, volume, prepared.grid_affine, scorer, settings, plan.targets, scoring)
    return replace(found, finding_present=bool(present_spans(report)))


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
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> tuple[Float, Float32]:
    """Explain a report and write pictures, weights and maps.

    Writes `overlay_slices.png`, `lime_2x3_grid.png`, `lime_top_supervoxels_grid.png`, `lime_weights.json`,
    `saliency.nii.gz` and, where the weights ground, `grounding.nii.gz`, both on the grid of the RAS volume
    (the volume itself where it is stored R, A, S; else in nibabel's canonical order).

    Args:
        model: A `BrainGemma3D`.
        mri_path: NIfTI volume that the report is about.
        report: Its report, as the model wrote it.
        output_dir: Folder to write to; made where it is absent.
        lime_samples: Perturbed volumes that the method may score.
        n_segments: Supervoxels.
        alpha: Opacity of the strongest colour.
        clip_q: Quantile of |saliency| in the brain that gets the strongest colour.
        seed: Of the perturbations.
        prompt: None: the prompt of the weights.
        method: "balanced", "lime", "kernelshap" or "leave_one_out".
        replacement: What replaced tissue shows: "blur", "mirror" or "constant".
        target: "findings" (the words that carry a present finding), "report" (every word), "side" (why left and
            not right), or one finding: "lesion", "edema", "necrosis", "ventricular_compression".
        contrast: Add "side" to the weights of each supervoxel where the report states one side.
        batch_size: Perturbed volumes in memory at once; None: `default_batch_size` of the model's grid.
        banner: What must be said about the weights in each picture; None: the weights' own.
        progress: Called with (volumes scored, volumes planned).
        cancelled: Asked before each batch; True raises `ExplainCancelled` and nothing is written.

    Returns:
        Weights (supervoxels,) and saliency (X, Y, Z) on the RAS volume's grid; both 0 where the report states
        no present finding.

    Raises:
        ExplainError: The report or the volume cannot be explained, or an argument makes no sense.
        VolumeError: The volume cannot be read by the model.
    """
    at_once = default_batch_size(model.config.grid) if batch_size is None else batch_size
    settings = ExplainSettings(method, lime_samples, n_segments, seed, replacement, target, contrast, at_once)
    prepared = prepare_volume(mri_path, model.config)
    image = _ras_image(Path(mri_path))
    scoring = ScoringSettings(at_once, progress, cancelled)
    found = explain_report(model, image, prepared, report, settings, prompt=prompt, scoring=scoring)
    grounding = _grounding_on(image, model, prepared)
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
        alpha,
        clip_q,
    )
    _write(Path(output_dir), image, found, scene, grounding)
    return found.weights, scene.saliency


def default_batch_size(grid: tuple[int, int, int]) -> int:
    """Volumes in memory at once: 8 on the card's grid, up to 32 on smaller ones, where one at a time wastes a CPU."""
    return int(np.clip(BATCH_VOXELS // int(np.prod(grid)), 1, 32))


def grounding_on_grid(grounding: Float32, grid: tuple[int, ...], grid_affine: Float, image: nib.Nifti1Image) -> Float32:
    """Patch values on the voxels of a RAS volume, linear between the patches' centres, 0 outside their field.

    Args:
        grounding: (d, h, w), one value for each patch of the grid.
        grid: (D, H, W) of the model's grid.
        grid_affine: (4, 4) from the grid's voxel (w, h, d) to RAS mm.
        image: Its shape and affine are the target.

    Returns:
        (X, Y, Z) float32.
    """
    size = np.array(grid[::-1]) / np.array(grounding.shape[::-1])  # voxels of a patch along (w, h, d)
    to_grid = np.diag([*size, 1.0])
    to_grid[:3, 3] = (size - 1) / 2  # the centre of the first patch
    to_patch = np.linalg.inv(grid_affine @ to_grid) @ image.affine
    patches = np.ascontiguousarray(grounding.transpose(2, 1, 0))
    # Half a patch lies between the outermost centres and the border of the field.
    return np.asarray(
        ndimage.affine_transform(
            np.pad(patches, 1, mode="edge"),
            to_patch[:3, :3],
            to_patch[:3, 3] + 1,
            output_shape=image.shape,
            order=1,
            mode="constant",
            cval=0.0,
        ),
        dtype=np.float32,
    )


def grounding_agreement(found: Explanation, grounding: Float32) -> dict[str, Any]:
    """What the model's own lesion map (X, Y, Z) shows, and how far the weights agree with it.

    Returns:
        peak: Highest value of the map; side, site: of the supervoxel whose mean is highest; rank_correlation:
        Spearman's, over supervoxels, of weight and mean (None where one is flat); same_top: whether both put the same
        supervoxel first (None where no finding is explained).
    """
    regions = found.supervoxels.regions
    labels = found.supervoxels.labels
    means = np.asarray(ndimage.mean(grounding, labels, [r.label for r in regions]))
    top = int(np.argmax(means))
    return {
        "peak": float(grounding.max()),
        "side": regions[top].side,
        "site": regions[top].site,
        "rank_correlation": rank_agreement(found.weights, means),
        "same_top": top == int(np.argmax(found.weights)) if found.drawn else None,
    }


def _grounding_on(image: nib.Nifti1Image, model: Any, prepared: PreparedVolume) -> Float32 | None:
    """The model's lesion map on the RAS volume's grid; None where the weights have no grounding head."""
    patches = model.ground(prepared.tensor.to(model.compute_device))
    if patches is None:
        return None
    values = patches[0].float().cpu().numpy()
    return grounding_on_grid(values, tuple(prepared.tensor.shape[2:]), prepared.grid_affine, image)


def _ras_image(path: Path) -> nib.Nifti1Image:
    """The volume in canonical order; `prepare_volume` has refused what is not one finite 3D volume."""
    return nib.as_closest_canonical(nib.load(path))


def _nothing_to_explain(supervoxels: Supervoxels, settings: ExplainSettings) -> Explanation:
    """The report states no present finding: weights of 0, and a word why."""
    reason = "The report states no present finding, so there is nothing that a region could support."
    return Explanation(supervoxels, np.zeros(len(supervoxels.regions)), settings, warnings=(reason,))


def _doubts(found: Explanation) -> tuple[str, ...]:
    """Reasons to distrust a map."""
    doubts = []
    if found.blind and found.score is not None and found.base_score is not None:
        doubts.append(
            f"The words explained hardly depend on the image: replacing the whole brain changes their "
            f"log-probability by {found.score - found.base_score:+.3f} nats per token."
        )
    if found.r2 is not None and found.r2 < POOR_FIT:
        doubts.append(f"The additive model fits poorly (R² {found.r2:.2f}): weights of regions say little.")
    return tuple(doubts)


def _title(found: Explanation) -> str:
    """First lines of the pictures."""
    if found.target is None:
        return "The report states no present finding."
    name = METHOD_TITLES[found.settings.method]
    words = ", ".join(dict.fromkeys(w.lower() for w in found.target.words))
    fit = "" if found.r2 is None else f", R² {found.r2:.2f}"
    return f"{name}, {found.evaluations} volumes{fit}. Explained: {words}. {' '.join(found.warnings)}".strip()


def _write(folder: Path, image: nib.Nifti1Image, found: Explanation, scene: Scene, grounding: Float32 | None) -> None:
    """All files of one explanation."""
    folder.mkdir(parents=True, exist_ok=True)
    record = found.to_json()
    record["settings"] |= {"alpha": scene.alpha, "clip_q": scene.clip_q}
    _save_map(scene.saliency, image, folder / "saliency.nii.gz", "saliency, nats per token")
    (folder / "grounding.nii.gz").unlink(missing_ok=True)
    if grounding is not None:
        _save_map(grounding, image, folder / "grounding.nii.gz", "lesion share of each patch")
    draw_overlay_slices(scene, folder / "overlay_slices.png")
    draw_grid(scene, folder / "lime_2x3_grid.png")
    draw_top_supervoxels(scene, folder / "lime_top_supervoxels_grid.png")
    (folder / "lime_weights.json").write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _save_map(values: Float32, image: nib.Nifti1Image, path: Path, description: str) -> None:
    """A float map with the shape, affine and header codes of the volume."""
    saved = nib.Nifti1Image(values, image.affine, image.header)
    saved.set_data_dtype(np.float32)
    saved.header["descrip"] = description.encode()
    saved.header["cal_min"], saved.header["cal_max"] = 0, 0
    nib.save(saved, path)
