"""A new model from the two that the card builds on: a 2D SigLIP tower, inflated, and a Gemma 3 language model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from braingemma.checkpoint.load import (
    SIGLIP,
    Part,
    load_language_model,
    read_tokenizer,
    resolve_quantization,
    vision_name,
)
from braingemma.checkpoint.tensors import put, read_finite, shapes, stored_tensors, weight_files
from braingemma.checkpoint.weights import CONFIG_FILE, FETCHED, read_json
from braingemma.configuration import BrainGemmaConfig
from braingemma.model.braingemma3d import BrainGemma3D
from training.errors import SettingsError
from training.settings import TrainingSettings


def compose_model(settings: TrainingSettings, device: torch.device) -> BrainGemma3D:
    """The model of `[model]` with `vision` and `text` as folders or hub ids; resampler, projector and heads are new.

    Raises:
        SettingsError: one of the two cannot be found.
        CheckpointError: its files do not fit.
    """
    vision, text = (_folder(str(settings.model[name])) for name in ("vision", "text"))
    vision_config, text_config = (read_json(folder / CONFIG_FILE) for folder in (vision, text))
    rest = {name: value for name, value in settings.model.items() if name not in ("vision", "text")}
    config = BrainGemmaConfig(
        vision_config=vision_config.get("vision_config", vision_config),
        text_config=text_config.get("text_config", text_config),
        **rest,
    )
    four_bit = resolve_quantization(settings.quantization, device)
    dtype = torch.bfloat16 if settings.precision == "bf16" else torch.float32
    language_model = load_language_model(text, config.text_config, device, dtype, four_bit)
    torch.manual_seed(0)
    model = BrainGemma3D(config, read_tokenizer(text), language_model)
    _load_tower(model, vision)
    model.quantization = "4bit" if four_bit else "none"
    for part in (model.vision, model.resampler, model.projector, model.grounding_head, model.findings_head):
        if part is not None:
            part.to(device)
    return model


def _load_tower(model: BrainGemma3D, folder: Path) -> None:
    """The 2D weights, float32, then the 3D kernel that follows from them."""
    tower = {name: shape for name, shape in shapes(model).items() if name.startswith(SIGLIP)}

    def rename(key: str) -> str | None:
        name = vision_name(key)
        return None if name is None else SIGLIP + name

    part: Any = Part(folder, stored_tensors(weight_files(folder)), rename, tower)
    for name, tensor in part.pairs():
        put(model, name, read_finite(tensor).float())
    model.vision.inflate()


def _folder(ref: str) -> Path:
    if Path(ref).is_dir():
        return Path(ref)
    try:
        return Path(snapshot_download(ref, allow_patterns=list(FETCHED)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise SettingsError(f"[model]: {ref} is neither a folder nor a model that the hub gives: {error}") from error
