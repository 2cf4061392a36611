"""The published layout of a checkpoint: its configuration and projector, as our own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from braingemma.checkpoint.weights import CONFIG_FILE, LANGUAGE_FOLDER, VISION_FOLDER, published_name, read_json
from braingemma.configuration import KERNEL_DEPTH, BrainGemmaConfig
from braingemma.errors import CheckpointError


def published_config(folder: Path) -> BrainGemmaConfig:
    """The configuration of a checkpoint in the published layout, which states none of its own."""
    vision = read_json(folder / VISION_FOLDER / CONFIG_FILE)
    language = read_json(folder / LANGUAGE_FOLDER / CONFIG_FILE)
    vision_config = vision.get("vision_config", vision)
    text_config = language.get("text_config", language)
    for part, config in ((VISION_FOLDER, vision_config), (LANGUAGE_FOLDER, text_config)):
        if "hidden_size" not in config:
            raise CheckpointError(f"{folder / part / CONFIG_FILE}: hidden_size is missing")
    return BrainGemmaConfig(
        vision_config=vision_config,
        text_config=text_config,
        volume={"normalization": "unit"},
        weights_format="published",
        patch_depth=KERNEL_DEPTH,
        inflation="mean",
        name=published_name(folder),
        training_domain="BraTS 2020 FLAIR with TextBraTS reports, MPI-Leipzig healthy controls (as its card states)",
    )


def published_projector(content: Any, file: Path) -> dict[str, Tensor]:
    """`projector_vis_scale.pt` as the names of this project: `mlp.…` and `scale`.

    Raises:
        CheckpointError: the file holds something else.
    """
    if not isinstance(content, dict) or not isinstance(content.get("vision_projector"), dict):
        raise CheckpointError(f"{file}: expected a vision_projector with its tensors")
    named = {f"mlp.{key}": value for key, value in content["vision_projector"].items()}
    scale = content.get("vis_scale")
    named["scale"] = torch.as_tensor(1.0 if scale is None else scale).reshape(())
    wrong = [key for key, value in named.items() if not isinstance(value, Tensor)]
    if wrong:
        raise CheckpointError(f"{file}: key {wrong[0]}: expected a tensor")
    return named
