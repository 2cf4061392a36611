"""Findings as the numbers that the heads learn: presence, sides and sites of each finding, and lesion shares."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from braingemma.configuration import FINDING_OUTPUTS, FINDINGS
from braingemma.findings.vocabulary import Finding

_SIDES = {"left": ("left",), "right": ("right",), "bilateral": ("left", "right")}


def findings_target(findings: Sequence[Finding]) -> Tensor:
    """(findings, outputs) of 0 and 1 in the order of FINDINGS and FINDING_OUTPUTS; NaN where it is undetermined."""
    target = torch.zeros(len(FINDINGS), len(FINDING_OUTPUTS))
    by_name = {finding.finding: finding for finding in findings}
    for row, name in enumerate(FINDINGS):
        finding = by_name.get(name)
        if finding is None or finding.presence == "undetermined":
            target[row] = torch.nan
            continue
        if finding.presence == "absent":
            continue
        for output in ("presence", *_SIDES.get(finding.laterality or "", ()), *finding.sites):
            target[row, FINDING_OUTPUTS.index(output)] = 1.0
    return target


def mirrored_target(target: Tensor) -> Tensor:
    """(..., findings, outputs) with left and right exchanged."""
    order = list(range(len(FINDING_OUTPUTS)))
    left, right = FINDING_OUTPUTS.index("left"), FINDING_OUTPUTS.index("right")
    order[left], order[right] = right, left
    return target[..., order]


def findings_weight(target: Tensor) -> Tensor:
    """Weights of the same shape: sides and sites count only where the finding is present, NaN never does."""
    weight = torch.ones_like(target)
    present = torch.nan_to_num(target[..., :1])
    weight[..., 1:] = present.expand_as(weight[..., 1:])
    return weight * (~target.isnan())
