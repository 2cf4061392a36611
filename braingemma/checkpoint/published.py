"""The published layout of a checkpoint: its configuration and projector, as our own."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from braingemma.checkpoint.weights import CONFIG_FILE, read_json
from braingemma.configuration import KERNEL_DEPTH, PUBLISHED_VOLUME, BrainGemmaConfig
from braingemma.errors import CheckpointError

PUBLISHED_DECODING = {
    "max_new_tokens": 128,
    "min_new_tokens": 10,
    "temperature": 0.1,
    "top_p": 0.9,
    "repetition_penalty": 1.2,
    "no_repeat_ngram_size": 3,
}
"""How the public code writes (the defaults of its `generate_report`)."""
DEFAULT_TOP_K = 50
"""What transformers' `generate` takes where neither its caller nor the checkpoint says."""
GENERATION_CONFIG = "generation_config.json"


def published_config(vision_folder: Path, language_folder: Path, name: str) -> BrainGemmaConfig:
    """The configuration of a checkpoint in the published layout, which states none of its own."""
    vision = read_json(vision_folder / CONFIG_FILE)
    language = read_json(language_folder / CONFIG_FILE)
    vision_config = vision.get("vision_config", vision)
    text_config = language.get("text_config", language)
    for folder, config in ((vision_folder, vision_config), (language_folder, text_config)):
        if "hidden_size" not in config:
            raise CheckpointError(f"{folder / CONFIG_FILE}: hidden_size is missing")
    return BrainGemmaConfig(
        vision_config=vision_config,
        text_config=text_config,
        volume=dataclasses.asdict(PUBLISHED_VOLUME),
        decoding={**PUBLISHED_DECODING, "top_k": _top_k(language_folder)},
        weights_format="published",
        patch_depth=KERNEL_DEPTH,
        inflation="mean",
        name=name,
        training_domain="BraTS 2020 FLAIR with TextBraTS reports, MPI-Leipzig healthy controls (as its card states)",
    )


def _top_k(folder: Path) -> int:
    """The public code names none: transformers takes the checkpoint's, else its own."""
    file = folder / GENERATION_CONFIG
    stated = read_json(file).get("top_k") if file.exists() else None
    if not isinstance(stated, int | None):
        raise CheckpointError(f"{file}: expected top_k as a whole number, got {stated!r}")
    return DEFAULT_TOP_K if stated is None else stated


def published_projector(content: Any, file: Path) -> dict[str, Tensor]:
    """`projector_vis_scale.pt` as the names of this project: `mlp.…` and `scale`.

    Raises:
        CheckpointError: the file holds something else.
    """
    if not isinstance(content, dict) or not isinstance(content.get("vision_projector"), dict):
        raise CheckpointError(f"{file}: expected a vision_projector with its tensors")
    named = {f"mlp.{key}": value for key, value in content["vision_projector"].items()}
    wrong = [key for key, value in named.items() if not isinstance(value, Tensor)]
    if wrong:
        raise CheckpointError(f"{file}: key {wrong[0]}: expected a tensor")
    named["scale"] = _scale(content.get("vis_scale"), file)
    return named


def _scale(stated: Any, file: Path) -> Tensor:
    """`vis_scale` as one number; 1 where none is stated."""
    if stated is None:
        return torch.ones(())
    if isinstance(stated, bool) or not isinstance(stated, int | float | Tensor):
        raise CheckpointError(f"{file}: key vis_scale: expected one number, got {type(stated).__name__}")
    scale = torch.as_tensor(float(stated) if isinstance(stated, int) else stated).detach()
    if scale.numel() != 1 or not scale.is_floating_point():
        raise CheckpointError(f"{file}: key vis_scale: expected one number, got {tuple(scale.shape)} of {scale.dtype}")
    return scale.reshape(())
