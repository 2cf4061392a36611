"""Which regions of the brain carry a report's findings, and how far that answer can be trusted.

`run_interpretability` is the model card's call: it explains one report of one volume and writes pictures, weights
and maps to a folder. The parts: supervoxels (where), targets (what is explained), perturbation (the volumes that
are scored), attribution (from scores to weights), faithfulness (is it true), plots (what one sees).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch
from nibabel.affines import voxel_sizes
from scipy import ndimage
from torch import Tensor

from braingemma.errors import ExplainError
from braingemma.explain.attribution import METHODS, method_named, whole_levels
from braingemma.explain.faithfulness import COARSE_STEPS, CURVE_STEPS, Curves, curve_steps, curves
from braingemma.explain.grounding import grounding_on_grid
from braingemma.explain.perturbation import (
    FILLINGS,
    MaskScorer,
    ReportScorer,
    ScoringSettings,
    filling_for,
)
from braingemma.explain.plots import SMALL_EFFECT
from braingemma.explain.record import (
    AskedRecord,
    ExplanationRecord,
    GroundingRecord,
    ShownRecord,
    SupervoxelRecord,
    TargetRecord,
)
from braingemma.explain.supervoxels import Supervoxels
from braingemma.explain.targets import ALL_FINDINGS, Target

Float = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]

DEFAULT_METHOD = "balanced"
"""LIME without chance: as good as KernelSHAP by `braingemma bench explain`, see docs/explanations.md."""
METHOD_TITLES = {
    "balanced": "LIME, balanced design",
    "lime": "LIME, random samples",
    "kernelshap": "KernelSHAP, paired coalitions",
    "leave_one_out": "Each region left out",
}
DEFAULT_REPLACEMENT = "mirror"
"""Ordinary tissue of the other side takes a lesion away and leaves a brain; the best by the same table."""
FOCUS = 0.08
"""Share of a weight that a voxel loses where replacing its supervoxel changes nothing, so that the map peaks at what
was taken away; a region stays above 0.9 of its peak, which is what a segmentation of the top region takes."""
FOCUS_MM = 5.0
"""Blur of that change, standard deviation: a peak is a place, not one noisy voxel."""


@dataclass(frozen=True)
class ExplainSettings:
    """How a report is explained.

    Attributes:
        method: One of `attribution.METHODS`.
        samples: Perturbed volumes that the method may ask for at most (leave-one-out has a fixed number).
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


FEWEST_REGIONS = 7
"""Its map's peak meets lesions as often as with 20 (docs/explanations.md), though the regions are coarser: from here on
an explanation takes longer than was allowed."""
FEWEST_SAMPLES = 20
"""Of a design that draws."""


@dataclass(frozen=True)
class Size:
    """How large an explanation is.

    Attributes:
        segments: Regions at most.
        samples: Volumes of the design at most.
        curve_points: Points of the deletion and of the insertion curve beside their ends.
    """

    segments: int
    samples: int
    curve_points: int = CURVE_STEPS


def fitting(settings: ExplainSettings, volumes: int) -> Size:
    """The most regions for which the whole design of a method and its curves need at most so many volumes.

    No design is cut short: fewer regions have a smaller one.
    """
    method, most = METHODS[method_named(settings.method).name], settings.segments
    if method.name == "lime":  # draws as many as it may, whatever the regions
        left = volumes - _curve_volumes(most, COARSE_STEPS)
        whole = settings.samples + _curve_volumes(most, CURVE_STEPS) <= volumes
        few = Size(most, min(settings.samples, max(left, FEWEST_SAMPLES)), COARSE_STEPS)
        return Size(most, settings.samples) if whole else few
    for regions in range(most, min(FEWEST_REGIONS, most) - 1, -1):
        levels = whole_levels(regions, settings.samples) if method.name == "kernelshap" else []
        for samples in levels or [settings.samples]:
            design = len(np.unique(method.masks(regions, samples, settings.seed), axis=0))
            for points in (CURVE_STEPS, COARSE_STEPS):
                if design + _curve_volumes(regions, points) <= volumes:
                    return Size(regions, samples, points)
    return Size(regions, samples, COARSE_STEPS)


def _curve_volumes(regions: int, points: int) -> int:
    """Volumes of both curves beside their ends, which are part of a design."""
    return 2 * len(curve_steps(regions, points)) - 4


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
        samples: Volumes of the method's design, as run.
        evaluations: Volumes that were scored in all, those of the curves included.
        rounding: What reading in eight bits changes of `score`; None where volumes were read as for the report.
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
    grounding: GroundingRecord | None = None
    samples: int = 0
    evaluations: int = 0
    rounding: float | None = None
    change: Float32 | None = field(default=None, repr=False)
    warnings: tuple[str, ...] = ()

    @property
    def description(self) -> str:
        """The method and what it cost, for a reader."""
        return f"{METHOD_TITLES[self.settings.method]}, {self.samples} volumes"

    @property
    def drawn(self) -> bool:
        """Whether there is a region that supports a finding by more than is told from noise.

        A model that does not look (random weights) gives weights near 0 whose order follows how much each replacement
        changes the picture: scaled up, they would point at the lesion.
        """
        return self.finding_present and bool(self.weights.max(initial=0) >= SMALL_EFFECT)

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

    def record(self, *, alpha: float, clip_q: float, shown: ShownRecord) -> ExplanationRecord:
        """What the file beside the pictures says, which show this with this opacity and cut at this quantile."""
        asked = asdict(self.settings)
        return ExplanationRecord(
            method=asked.pop("method"),
            description=self.description,
            samples=self.samples,
            samples_at_most=asked.pop("samples"),
            segments=len(self.weights),
            evaluations=self.evaluations,
            seed=asked.pop("seed"),
            settings=AskedRecord(**asked, alpha=alpha, clip_q=clip_q),
            explained=None if self.target is None else TargetRecord(target=self.target.name, words=self.target.words),
            finding_present=self.finding_present,
            drawn=self.drawn,
            shown=shown,
            unit="nats per token",
            score=self.score,
            base_score=self.base_score,
            rounding=self.rounding,
            r2=self.r2,
            faithfulness=None if self.curves is None else self.curves.record(),
            grounding=self.grounding,
            weights=tuple(self.weights.tolist()),
            supervoxels=tuple(self._supervoxel(n) for n in range(len(self.weights))),
            warnings=self.warnings,
        )

    def _supervoxel(self, index: int) -> SupervoxelRecord:
        by_target = {name: float(weights[index]) for name, weights in self.by_target.items()}
        region = asdict(self.supervoxels.regions[index])
        return SupervoxelRecord(weight=float(self.weights[index]), by_target=by_target, **region)


def explain_prepared(
    supervoxels: Supervoxels,
    volume: Tensor,
    grid_affine: Float,
    scorer: ReportScorer,
    settings: ExplainSettings,
    targets: tuple[Target, ...],
    scoring: ScoringSettings | None = None,
    curve_points: int = CURVE_STEPS,
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
        curve_points: Of the deletion and of the insertion curve, beside their ends.
    """
    method, features = METHODS[method_named(settings.method).name], len(supervoxels.regions)
    masks = method.masks(features, settings.samples, settings.seed)
    ask = mask_scorer(
        supervoxels, volume, grid_affine, scorer, settings.replacement, scoring or ScoringSettings(settings.batch_size)
    )
    samples = len(np.unique(masks, axis=0))
    ask.planned = samples + _curve_volumes(features, curve_points)
    scores = ask(masks)
    fits = [method.fit(masks, scores[:, column]) for column in range(scores.shape[1])]
    measured = curves(fits[0].weights, lambda wanted: ask(wanted)[:, 0], curve_points)
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
        samples=samples,
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


POOR_FIT = 0.3
"""R² below which an additive map says little about the model."""


def _doubts(found: Explanation) -> tuple[str, ...]:
    """Reasons to distrust a map."""
    doubts = []
    if found.blind:
        doubts.append(
            "The words explained hardly depend on the image: with the whole brain replaced they are about as likely."
        )
    elif found.weights.max(initial=0) < SMALL_EFFECT:
        doubts.append("No region (saliency) speaks for the words by more than noise does: no map is drawn.")
    if found.r2 is not None and found.r2 < POOR_FIT:
        doubts.append("What regions do together is not the sum of what each does (poor fit): their weights say little.")
    return tuple(doubts)
