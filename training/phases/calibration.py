"""Calibrated probabilities of the findings head: Platt's scaling (1999), one scale and shift for each output."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from braingemma.model.braingemma3d import BrainGemma3D
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
