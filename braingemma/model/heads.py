"""Two small heads beside the report: where the lesion is, and what the findings are.

The report's text is checked against them; weights without them (the published ones) work without them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from braingemma.configuration import FINDING_OUTPUTS, FINDINGS, BrainGemmaConfig


class GroundingHead(nn.Module):
    """Patch features to the share of each patch that is lesion, as logits."""

    def __init__(self, config: BrainGemmaConfig) -> None:
        super().__init__()
        width = config.vision_config.hidden_size
        self.mlp = nn.Sequential(nn.Linear(width, width // 2), nn.GELU(), nn.Linear(width // 2, 1))

    def forward(self, features: Tensor) -> Tensor:
        """(B, d, h, w, C) to logits (B, d, h, w)."""
        return self.mlp(features).squeeze(-1)


class FindingsHead(nn.Module):
    """Resampler tokens to presence, sides and sites of each finding, as logits.

    `scale` and `shift` are Platt's calibration (1999), fitted on validation data after training; both are buffers, so
    no optimiser touches them.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, config: BrainGemmaConfig, input_dim: int, token_width: int = 32) -> None:
        super().__init__()
        outputs = (len(FINDINGS), len(FINDING_OUTPUTS))
        self.reduce = nn.Linear(input_dim, token_width)
        self.classify = nn.Linear(config.num_visual_tokens * token_width, outputs[0] * outputs[1])
        self.register_buffer("scale", torch.ones(outputs))
        self.register_buffer("shift", torch.zeros(outputs))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, dim) to uncalibrated logits (B, findings, outputs) in the order of FINDINGS and FINDING_OUTPUTS."""
        hidden = nn.functional.gelu(self.reduce(tokens)).flatten(1)
        return self.classify(hidden).view(-1, len(FINDINGS), len(FINDING_OUTPUTS))

    def probabilities(self, logits: Tensor) -> Tensor:
        """Calibrated probabilities in [0, 1], of the logits' shape."""
        return torch.sigmoid(logits.float() * self.scale.float() + self.shift.float())
