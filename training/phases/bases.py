"""A new model from the two that the card builds on: a 2D SigLIP tower, inflated, and a Gemma 3 language model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from braingemma.checkpoint.load import Part, load_language_model, read_tokenizer, resolve_quantization
from braingemma.checkpoint.names import SIGLIP, vision_name
from braingemma.checkpoint.tensors import put, read_finite, shapes, stored_tensors, weight_files
from braingemma.checkpoint.weights import CONFIG_FILE, FETCHED, read_json
from braingemma.configuration import BrainGemmaConfig
from braingemma.model.braingemma3d import BrainGemma3D
from training.errors import SettingsError
from training.phases.tokenizer import build_tokenizer
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
        **{**heads(settings), **rest},
    )
    four_bit = resolve_quantization(settings.quantization, device)
    dtype = torch.bfloat16 if settings.precision == "bf16" else torch.float32
    language_model = load_language_model(text, config.text_config, device, dtype, four_bit)
    torch.manual_seed(0)
    model = BrainGemma3D(config, read_tokenizer(text, config), language_model)
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


def demo_config(settings: TrainingSettings) -> BrainGemmaConfig:
    """The demo model's configuration from the `[model]` table."""
    if "vision" not in settings.model or "text" not in settings.model:
        raise SettingsError("[model] needs the tables vision and text to make a model from nothing")
    rest = {k: v for k, v in settings.model.items() if k not in ("vision", "text")}
    return BrainGemmaConfig(
        vision_config=settings.model["vision"],
        text_config={**settings.model["text"], "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
        **{**heads(settings), **rest},
    )


def heads(settings: TrainingSettings) -> dict[str, bool]:
    """Which heads a new model has: those that a phase trains."""
    trained = {part for phase in settings.phases for part in phase.trainable}
    return {"grounding_head": "grounding" in trained, "findings_head": "findings" in trained}


def new_model(settings: TrainingSettings, seed: int = 0) -> BrainGemma3D:
    """A model with random weights and the demo's tokenizer."""
    torch.manual_seed(seed)
    config = demo_config(settings)
    return BrainGemma3D(config, tokenizer=build_tokenizer(config.text_config.vocab_size))
