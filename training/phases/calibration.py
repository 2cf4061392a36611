"""What held-out cases say of the model's certainty.

Probabilities of the findings head: Platt's scaling (1999), one scale and shift for each output. The chance that a
statement of the report is wrong: a logistic regression over everything that speaks against it, written as serving does.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from braingemma.model.braingemma3d import BrainGemma3D
from braingemma.reading.candidates import write_candidates
from braingemma.reading.chance import ChanceOfError, features_of, fit_chance, statements_of
from braingemma.reading.doubts import doubts
from braingemma.reading.second_look import look_twice
from braingemma.volume.frame import STANDARD_HIGH, STANDARD_LOW
from braingemma.volume.preprocess import PreparedVolume
from training.data.cases import Cases, Stack
from training.data.targets import findings_weight
from training.errors import SettingsError


@torch.no_grad()
def predict_logits(model: BrainGemma3D, volumes: Tensor | Stack, batch: int = 32) -> Tensor:
    """(N, findings, outputs) uncalibrated logits of the findings head."""
    parts = []
    for start in range(0, len(volumes), batch):
        tokens = model.resample(model.patch_features(volumes[start : start + batch].float().to(model.compute_device)))
        logits = model.findings_logits(tokens)
        if logits is None:
            raise SettingsError("these weights have no findings head")
        parts.append(logits.float().cpu())
    return torch.cat(parts)


def calibrate(model: BrainGemma3D, cases: Cases, strength: float = 2.0) -> None:
    """Fit the findings head's scale and shift on held-out cases, in place.

    `strength` draws each output towards no change (scale 1, shift 0): rare outputs have few positive cases.
    """
    if model.findings_head is None:
        return
    logits = predict_logits(model, cases.volumes)
    targets = cases.targets.clone()
    weight = findings_weight(targets)
    targets = torch.nan_to_num(targets)
    log_scale = torch.zeros(logits.shape[1:], requires_grad=True)
    shift = torch.zeros(logits.shape[1:], requires_grad=True)
    optimiser = torch.optim.LBFGS([log_scale, shift], max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        raw = F.binary_cross_entropy_with_logits(logits * log_scale.exp() + shift, targets, reduction="none")
        loss = (raw * weight).sum() + strength * (log_scale.square().sum() + shift.square().sum())
        loss.backward()
        return loss

    optimiser.step(closure)
    model.findings_head.scale.copy_(log_scale.detach().exp())
    model.findings_head.shift.copy_(shift.detach())


CANDIDATES = 8
"""Texts at most for each case, as serving does by default."""


@torch.no_grad()
def fit_doubt(model: BrainGemma3D, cases: Cases) -> ChanceOfError | None:
    """The chance that a statement is wrong, fitted on held-out cases; it belongs to `config.doubt`.

    Returns:
        None where no statement has a known truth.
    """
    features: list[list[float]] = []
    wrong: list[bool] = []
    warned: list[bool] = []
    for number, truth in enumerate(cases.findings):
        prepared = _prepared(model, cases.volumes[number].float())
        volume = prepared.tensor.to(model.compute_device)
        found = model.finding_probabilities(volume)
        known = found if isinstance(found, dict) else None
        look = look_twice(model, prepared)
        settings = model.generation_settings(seed=0)
        written = write_candidates(model, volume, known, look, count=CANDIDATES, settings=settings)
        taken = next(candidate for candidate in written if candidate.taken)
        said = doubts(taken.findings, known, look)
        doubted = {(doubt.finding, doubt.about) for doubt in said}
        true = {finding.finding: finding for finding in truth}
        for stated in taken.findings:
            real = true.get(stated.finding)
            if real is None or real.presence == "undetermined":
                continue
            for about in statements_of(stated):
                if about == "side" and (real.presence != "present" or real.laterality is None):
                    continue
                differs = (
                    stated.presence != real.presence if about == "presence" else stated.laterality != real.laterality
                )
                features.append(features_of(stated, about, known, look, taken.unsure, said))
                wrong.append(differs)
                warned.append((stated.finding, about) in doubted)
    return fit_chance(features, wrong, warned) if features else None


def _prepared(model: BrainGemma3D, volume: Tensor) -> PreparedVolume:
    """A prepared case (1, D, H, W) as serving has it: what is background lies outside the brain.

    Its size in mm is not kept where the grid is cut to the brain: it gets that of the standard brain, so that its sides
    can be told as serving does.
    """
    settings = model.config.volume_settings
    foreground = volume[0].numpy() > settings.background + 0.01  # as half floats hold it
    shape = foreground.shape[::-1]
    size = np.array(STANDARD_HIGH) - STANDARD_LOW + 2 * settings.crop_margin_mm
    spacing = (np.array(settings.field_of_view_mm[::-1]) if settings.crop == "field" else size) / shape
    affine = np.diag([*spacing, 1.0])
    return PreparedVolume(
        tensor=volume[None],
        foreground=foreground,
        brain=np.ascontiguousarray(foreground.transpose(2, 1, 0)),
        grid_affine=affine,
        source_affine=affine,
        source_shape=(shape[0], shape[1], shape[2]),
        settings=settings,
        extraction="given",
        brain_volume_ml=float(foreground.sum() * np.prod(spacing)) / 1000,
        clip=(0.0, 1.0),
        warnings=(),
    )
