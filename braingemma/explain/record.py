"""`lime_weights.json`: how an explanation was made, how well it fits, each supervoxel's weight, what is shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError

from braingemma.errors import ExplainError

Float32 = npt.NDArray[np.float32]

SUPERVOXELS = "supervoxels.nii.gz"
"""Beside the record: the label of each voxel's supervoxel, 0 outside the brain."""
LEAST_COLOUR = 0.4
"""Share of full colour below which nothing is coloured: faint tints over half the brain say nothing."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class AskedRecord(_Part):
    """What was asked beside method, samples and seed; see `ExplainSettings`."""

    segments: int
    replacement: str
    target: str
    contrast: bool
    batch_size: int
    alpha: float
    clip_q: float


class TargetRecord(_Part):
    """The words that are explained, and what they state."""

    target: str
    words: tuple[str, ...]


class CurvesRecord(_Part):
    """Deletion and insertion: areas, and the curves' points at so many supervoxels."""

    deletion_auc: float
    insertion_auc: float
    steps: tuple[int, ...]
    deletion: tuple[float, ...]
    insertion: tuple[float, ...]


class GroundingRecord(_Part):
    """What the model's own lesion map shows, and how far the weights agree with it.

    Attributes:
        peak: Highest value of the map.
        side: Of the supervoxel whose mean is highest.
        site: Of the same.
        rank_correlation: Spearman's, over supervoxels, of weight and mean; None where one is flat.
        same_top: Whether both put the same supervoxel first; None where no finding is explained.
    """

    peak: float
    side: str
    site: str
    rank_correlation: float | None
    same_top: bool | None


class SupervoxelRecord(_Part):
    """One supervoxel; see `supervoxels.Region`. Weights in nats per token, for what is drawn and by target."""

    weight: float
    by_target: dict[str, float]
    label: int
    size_ml: float
    centroid_mm: tuple[float, float, float]
    right_mm: float
    side: str
    site: str


class ShownRecord(_Part):
    """What is shown of a map, by whoever draws it: pictures, overlay, segmentation and page agree.

    Attributes:
        limit: Saliency of full colour, either way; 0 where nothing is coloured.
        least_share: Share of it below which nothing is coloured.
        regions: Labels of the outlined supervoxels, the strongest first: the one that speaks most for the finding, of
            each side where the report states both.
    """

    limit: float
    least_share: float
    regions: tuple[int, ...]

    def strength(self, saliency: Float32) -> Float32:
        """Share of full colour with the sign of the saliency, in [-1, 1]; 0 where nothing is coloured."""
        if self.limit <= 0:
            return np.zeros_like(saliency)
        share = np.clip(saliency / np.float32(self.limit), -1, 1)
        return np.where(np.abs(share) >= self.least_share, share, np.float32(0)).astype(np.float32)

    @classmethod
    def read_if_there(cls, folder: Path) -> Self | None:
        """Read it from the folder of an explanation; None where there is none, or one of before it was kept.

        Raises:
            ExplainError: what is there is no such record.
        """
        path = folder / ExplanationRecord.FILE
        try:
            kept = json.loads(path.read_bytes()).get("shown")
            return None if kept is None else cls.model_validate(kept)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, AttributeError) as error:  # ValidationError is a ValueError
            raise ExplainError(f"{path}: expected the weights of an explanation: {error}") from error


class ExplanationRecord(_Part):
    """The file as a whole; `score` and `base_score` are those of the whole and of the replaced brain.

    `shown`: null in records of before it was kept.
    `rounding`: what reading volumes in eight bits changed of `score`; null where they were read as for the report.
    """

    FILE: ClassVar[str] = "lime_weights.json"

    method: str
    description: str
    samples: int
    samples_at_most: int
    segments: int
    evaluations: int
    seed: int
    settings: AskedRecord
    explained: TargetRecord | None
    finding_present: bool
    drawn: bool
    shown: ShownRecord | None = None
    unit: str
    score: float | None
    base_score: float | None
    rounding: float | None = None
    r2: float | None
    faithfulness: CurvesRecord | None
    grounding: GroundingRecord | None
    weights: tuple[float, ...]
    supervoxels: tuple[SupervoxelRecord, ...]
    warnings: tuple[str, ...]

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read it from the folder of an explanation.

        Raises:
            ExplainError: there is none, or it is not such a file; the text names the fields and what came.
        """
        path = folder / cls.FILE
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise ExplainError(f"{path}: expected the weights of an explanation: {error.strerror}") from error
        except ValidationError as error:
            faults = "; ".join(f"{'.'.join(map(str, f['loc']))}: {f['msg']}" for f in error.errors())
            raise ExplainError(f"{path}: expected the weights of an explanation; {faults}") from error

    def write(self, folder: Path) -> None:
        """Write it; NaN is an error, since other languages cannot read it."""
        text = json.dumps(self.model_dump(mode="json"), indent=2, allow_nan=False)
        (folder / self.FILE).write_text(text + "\n", encoding="utf-8")
