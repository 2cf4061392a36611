"""What a trained folder says of itself: it follows from what was trained, and on which data."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from braingemma.model.braingemma3d import BrainGemma3D
from training.data.cases import Cases
from training.phases.run_folder import RunFolder

THEN: Final = "; then "
"""Between what weights were trained on first and what next; the same twice in a row is said once."""
BANNER: Final = "Demo weights, trained on synthetic images only: not a statement about any patient."


@dataclass(frozen=True)
class TrainingData:
    """Cases, and what they are.

    Attributes:
        training: To learn from.
        validation: To decide when a phase ends.
        description: In words, for the weights' `training_domain`.
    """

    training: Cases
    validation: Cases
    description: str


def describe(model: BrainGemma3D, data: TrainingData, *, begun_from_weights: bool) -> None:
    """Set domain, banner and `synthetic_only` in the model's configuration.

    Weights that go on from others were trained on both: they are synthetic only where both are.
    """
    config = model.config
    stages = config.training_domain.split(THEN) if begun_from_weights and config.training_domain else []
    if stages[-1:] != [data.description]:
        stages.append(data.description)
    config.training_domain = THEN.join(stages)
    config.synthetic_only = data.training.synthetic and (config.synthetic_only or not begun_from_weights)
    config.banner = BANNER if config.synthetic_only else None


def drop_untrained_heads(model: BrainGemma3D, trained: Collection[str]) -> list[str]:
    """Take off the heads that no phase has trained, in place: what they say would be chance. Returns their names."""
    dropped = []
    if model.grounding_head is not None and "grounding" not in trained:
        model.grounding_head, model.config.grounding_head = None, False
        dropped.append("grounding")
    if model.findings_head is not None and "findings" not in trained:
        model.findings_head, model.config.findings_head = None, False
        dropped.append("findings")
    return dropped


def save_weights(model: BrainGemma3D, folder: RunFolder) -> None:
    """Write the weights whole or not at all, in place of those of an earlier start."""
    part = folder.weights.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    model.save_pretrained(part)
    shutil.rmtree(folder.weights, ignore_errors=True)
    part.rename(folder.weights)
