"""Every size and every choice that the weights depend on; saved as `config.json` beside them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args

from transformers import Gemma3TextConfig, PreTrainedConfig, SiglipVisionConfig

from braingemma.errors import CheckpointError
from braingemma.findings.vocabulary import FINDINGS, SITES

CANONICAL_PROMPT = "Generate a radiology report for this brain MRI FLAIR scan. \n"
"""The prompt of the published weights, to the letter (its trailing space and line end included)."""

FINDING_OUTPUTS = ("presence", "left", "right", *SITES)
"""What the findings head says about each finding, in the order of its outputs."""

__all__ = [
    "CANONICAL_PROMPT",
    "FINDINGS",
    "FINDING_OUTPUTS",
    "PUBLISHED_VOLUME",
    "SITES",
    "BrainGemmaConfig",
    "VolumeSettings",
]

Normalization = Literal["zscore", "unit"]
Extraction = Literal["auto", "none"]
Crop = Literal["field", "brain", "none"]
Reading = Literal["brain", "whole"]


def _require(field: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise CheckpointError(f"config.json: {field} must be one of {', '.join(allowed)}; got {value!r}")


@dataclass(frozen=True)
class VolumeSettings:
    """How a RAS volume becomes the tensor that these weights were trained on.

    Attributes:
        grid: Voxels of the tensor: (D inferior→superior, H posterior→anterior, W left→right).
        normalization: "zscore" (the card: p1–p99 clip, then z-score over the brain) or "unit" (the published
            code: p1–p99 clip, then [0, 1]).
        percentiles: Lower and upper clip, in percent of the voxels that `reading` names.
        zscore_clip: z-scores beyond ± this are cut, and ± this is mapped to ± 1 at the vision tower's entrance
            (SigLIP is trained on [-1, 1]). Voxels outside the brain get the lower end.
        brain_extraction: "auto": a volume that still has its skull is stripped; "none": taken as it is.
        crop: "field": the grid spans `field_of_view_mm`, centred on the brain (BraTS volumes come so); "brain": it
            spans the brain's box and a margin; "none": it spans the volume as it came.
        field_of_view_mm: (D, H, W) of "field"; grows along an axis where the brain is larger.
        crop_margin_mm: Free space that "brain" keeps on each side.
        reading: "brain": values by the brain's voxels, everything else is background, no detail falls between two
            voxels of the grid; "whole": what the public code does, to the digit: percentiles of all voxels with
            their background, nothing masked, clip, then torch's trilinear resize of the whole volume.
    """

    grid: tuple[int, int, int] = (64, 128, 128)
    normalization: Normalization = "zscore"
    percentiles: tuple[float, float] = (1.0, 99.0)
    zscore_clip: float = 3.0
    brain_extraction: Extraction = "auto"
    crop: Crop = "field"
    field_of_view_mm: tuple[float, float, float] = (155.0, 240.0, 240.0)
    crop_margin_mm: float = 4.0
    reading: Reading = "brain"

    def __post_init__(self) -> None:
        """Check what preprocessing takes for granted; JSON's lists become tuples."""
        object.__setattr__(self, "grid", tuple(int(n) for n in self.grid))
        object.__setattr__(self, "field_of_view_mm", tuple(float(n) for n in self.field_of_view_mm))
        object.__setattr__(self, "percentiles", tuple(float(p) for p in self.percentiles))
        if len(self.grid) != 3 or min(self.grid) < 1:
            raise CheckpointError(f"volume.grid must be three positive sizes (D, H, W), got {self.grid}")
        low, high = self.percentiles
        if not 0 <= low < high <= 100:
            raise CheckpointError(f"volume.percentiles must be 0 <= low < high <= 100, got {self.percentiles}")
        _require("volume.normalization", self.normalization, get_args(Normalization))
        _require("volume.brain_extraction", self.brain_extraction, get_args(Extraction))
        _require("volume.crop", self.crop, get_args(Crop))
        _require("volume.reading", self.reading, get_args(Reading))
        if self.reading == "whole":
            for name, only in (("normalization", "unit"), ("brain_extraction", "none"), ("crop", "none")):
                _require(f"volume.{name} with reading = whole", getattr(self, name), (only,))
        if self.zscore_clip <= 0:
            raise CheckpointError(f"volume.zscore_clip must be > 0, got {self.zscore_clip}")
        if len(self.field_of_view_mm) != 3 or min(self.field_of_view_mm) <= 0:
            raise CheckpointError(f"volume.field_of_view_mm must be three lengths > 0, got {self.field_of_view_mm}")

    @property
    def background(self) -> float:
        """Value of voxels outside the brain and outside the field of view."""
        return -self.zscore_clip if self.normalization == "zscore" else 0.0


DECODING = (
    "max_new_tokens",
    "min_new_tokens",
    "temperature",
    "top_k",
    "top_p",
    "repetition_penalty",
    "no_repeat_ngram_size",
)
"""Settings of writing that weights may bring with them, see `GenerationSettings`."""
PUBLISHED_VOLUME = VolumeSettings(normalization="unit", brain_extraction="none", crop="none", reading="whole")
"""How the public code reads a volume."""


class BrainGemmaConfig(PreTrainedConfig):
    """Configuration of `BrainGemma3D`; the defaults are the card's.

    Attributes:
        vision_config: Any `SiglipVisionConfig` (as object or dict).
        text_config: Any `Gemma3TextConfig` (as object or dict).
        volume: `VolumeSettings` as a dict.
        weights_format: "braingemma" (this project's layout and forward) or "published" (the public code's forward).
        encoder: Name under which the encoder is registered (`braingemma.model.encoders`); "siglip-3d" comes along.
        patch_depth: Voxels of one patch along D.
        inflation: "center" (the 2D kernel in the middle plane) or "mean" (spread evenly over the planes).
        num_visual_tokens: Tokens that the language model gets.
        resampler_layers: Perceiver layers.
        resampler_heads: Attention heads of each.
        resampler_dim: Their width; None: the vision tower's.
        resampler_mlp_ratio: Width of their MLP over their own.
        lora_rank: Rank of the adapters on the language model.
        lora_alpha: Their scale times their rank.
        lora_targets: Names of the adapted projections.
        lora: Whether adapters are attached.
        grounding_head: Whether a head tells each patch's lesion share.
        findings_head: Whether a head tells the findings' probabilities.
        prompt: What the language model is asked.
        decoding: How these weights write where the caller does not say: some of `DECODING`; None: greedy.
        doubt: The chance that a statement is wrong, as training fitted it, see `braingemma.reading.chance`; None: not.
        name: Name of the weights.
        version: Version of the weights.
        synthetic_only: Whether they were trained on synthetic images only.
        training_domain: What they were trained on, for a reader.
        banner: One line that every result must carry; None for none.
        storage_dtype: Type of the numbers on disk: "float32", "bfloat16" or "float16".
        pretrained_revision: Revision of the hub repository that the weights come from, where known.
    """

    model_type = "braingemma3d"
    sub_configs_defaults = {"vision_config": SiglipVisionConfig, "text_config": Gemma3TextConfig}  # noqa: RUF012

    vision_config: Any = None
    text_config: Any = None
    volume: dict | None = None
    weights_format: str = "braingemma"
    encoder: str = "siglip-3d"
    patch_depth: int = 2
    inflation: str = "center"
    num_visual_tokens: int = 32
    resampler_layers: int = 2
    resampler_heads: int = 8
    resampler_dim: int | None = None
    resampler_mlp_ratio: int = 4
    lora_rank: int = 4
    lora_alpha: int = 8
    lora_targets: tuple | list = ("q_proj", "k_proj", "v_proj", "o_proj")
    lora: bool = False
    grounding_head: bool = False
    findings_head: bool = False
    prompt: str = CANONICAL_PROMPT
    decoding: dict | None = None
    doubt: dict | None = None
    name: str = "BrainGemma3D"
    version: str = "0"
    synthetic_only: bool = False
    training_domain: str = ""
    banner: str | None = None
    storage_dtype: str = "float32"
    pretrained_revision: str | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Fill in the defaults and check that the parts fit each other."""
        super().__post_init__(**kwargs)
        self.vision_config = _as_config(self.vision_config, SiglipVisionConfig)
        self.text_config = _as_config(self.text_config, Gemma3TextConfig)
        # The pooling head of SigLIP has no part in this model: every patch goes on to the resampler.
        self.vision_config.vision_use_head = False
        self.volume = dataclasses.asdict(VolumeSettings(**(self.volume or {})))
        self.lora_targets = list(self.lora_targets)
        for name in self.decoding or {}:
            _require("decoding", name, DECODING)
        if self.resampler_dim is None:
            self.resampler_dim = int(self.vision_config.hidden_size)
        _require("weights_format", self.weights_format, ("braingemma", "published"))
        _require("inflation", self.inflation, ("center", "mean"))
        _require("storage_dtype", self.storage_dtype, ("float32", "bfloat16", "float16"))
        if self.resampler_dim % self.resampler_heads:
            raise CheckpointError(
                f"resampler_dim ({self.resampler_dim}) must be a multiple of resampler_heads ({self.resampler_heads})"
            )

    @property
    def volume_settings(self) -> VolumeSettings:
        """The preprocessing of these weights as a value object."""
        return VolumeSettings(**(self.volume or {}))

    @property
    def resampler_width(self) -> int:
        """Width R of the resampler's tokens."""
        return int(self.resampler_dim or self.vision_config.hidden_size)

    @property
    def grid(self) -> tuple[int, int, int]:
        """(D, H, W): voxels of the tensor that the model takes."""
        return self.volume_settings.grid

    @property
    def normalization(self) -> str:
        """How the voxels of that tensor are scaled: "zscore" or "unit"."""
        return self.volume_settings.normalization

    @property
    def published(self) -> bool:
        """Whether the public code's forward is to be reproduced."""
        return self.weights_format == "published"


def _as_config(value: Any, kind: Any) -> Any:
    """`kind` from an object of it, a dict, or nothing (the defaults)."""
    if isinstance(value, kind):
        return value
    return kind(**{k: v for k, v in (value or {}).items() if k != "model_type"})


KERNEL_DEPTH = 2
"""Planes of the public code's 3D kernel; its stride is 1 and its padding 1, so D planes become D + 1."""
