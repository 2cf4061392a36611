"""`lime_weights.json`: how an explanation was made, how well it fits, and the weight of each supervoxel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from braingemma.errors import ExplainError


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


class ExplanationRecord(_Part):
    """The file as a whole; `score` and `base_score` are those of the whole and of the replaced brain.

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
