"""The lesion map of a picture and of the same picture with its bright tissue stretched: what is faint shows there.

A lesion that is hardly brighter than the brain leaves the map low. Stretching everything above the brain's median makes
it as bright as those that the weights were trained on; ordinary tissue stays below that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from torch import Tensor

from braingemma.explain.grounding import LIKELY, Float32, LesionEstimate, estimate_lesion, within_brain
from braingemma.volume.preprocess import PreparedVolume

STRETCH: Final = 1.5
"""Brightness above the brain's median times this; found on faded tumours, and silent on scans without a mass."""

Certainty = Literal["likely", "possible", "none"]


@dataclass(frozen=True)
class LesionLook:
    """The lesion by the map.

    Attributes:
        patches: (d, h, w) lesion share of each patch of the picture as it is.
        first: The estimate on it.
        second: The estimate with brightness stretched.
    """

    patches: Float32
    first: LesionEstimate
    second: LesionEstimate

    @property
    def certainty(self) -> Certainty:
        """Whether the map shows a lesion ("likely"), only the second look does ("possible"), or neither."""
        if self.first.peak >= LIKELY:
            return "likely"
        return "possible" if self.second.peak >= LIKELY else "none"

    @property
    def estimate(self) -> LesionEstimate:
        """What is reported: the second look's where only that shows a lesion."""
        return self.second if self.certainty == "possible" else self.first

    def to_json(self) -> dict[str, Any]:
        """`lesion_estimate` of `report.json`."""
        return {
            **self.estimate.to_json(),
            "certainty": self.certainty,
            "peak": round(self.first.peak, 4),
            "second_look_peak": round(self.second.peak, 4),
        }


def stretched(prepared: PreparedVolume) -> Tensor:
    """The tensor (1, 1, D, H, W) with what is brighter than the brain's median made brighter by `STRETCH`."""
    volume = prepared.tensor
    middle = volume[0, 0][torch.from_numpy(prepared.foreground)].median()
    bright = middle + STRETCH * (volume - middle)
    top = 1.0 if prepared.settings.normalization == "unit" else prepared.settings.zscore_clip
    return torch.where(volume > middle, bright.clamp(max=top), volume)


def look_twice(model: Any, prepared: PreparedVolume) -> LesionLook | None:
    """Both maps by one batch; None where the weights have no grounding head.

    Args:
        model: A `BrainGemma3D`.
        prepared: A volume as the model takes it.
    """
    if model.grounding_head is None:
        return None
    both = torch.cat([prepared.tensor, stretched(prepared)])
    shares = model.ground(both.to(model.compute_device)).float().cpu().numpy()
    first, second = (within_brain(patches, prepared) for patches in shares)
    return LesionLook(first, estimate_lesion(first, prepared), estimate_lesion(second, prepared))
