"""A model in memory to this project's layout on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor

from braingemma.checkpoint.names import ADAPTER_CONFIG, ADAPTER_FILE, DTYPES, LANGUAGE, SIGLIP
from braingemma.checkpoint.weights import DELTA_FILE, LANGUAGE_FOLDER, LORA_FOLDER, VISION_FOLDER, read_json, write_sums
from braingemma.errors import CheckpointError
from braingemma.quantize import nf4 as quantize


def save(model: Any, folder: Path) -> None:
    """Write a model in this project's layout; numbers of 32 bits are stored as `config.storage_dtype`.

    Raises:
        CheckpointError: the model has no tokenizer, or its head is not what was loaded.
    """
    if model.tokenizer is None:
        raise CheckpointError("this model has no tokenizer: weights without one cannot be used")
    if model.head_bits == 8:
        raise CheckpointError("the output head was rounded to 8 bits: load with head_bits=16 to save")
    for part in (folder, folder / VISION_FOLDER, folder / LANGUAGE_FOLDER):
        part.mkdir(parents=True, exist_ok=True)
    config = model.config
    store = DTYPES[config.storage_dtype]
    state = {name: value for name, value in model.state_dict().items() if not name.startswith(LANGUAGE)}
    _write(state, folder / VISION_FOLDER / "model.safetensors", store, SIGLIP)
    delta = {name: value for name, value in state.items() if not name.startswith(SIGLIP)}
    _write(delta, folder / DELTA_FILE, store)
    _write_config(config.vision_config, folder / VISION_FOLDER, "SiglipVisionModel")
    _save_language(model, folder, store)
    model.tokenizer.save_pretrained(folder / LANGUAGE_FOLDER)
    config.save_pretrained(folder)
    write_sums(folder)


def _save_language(model: Any, folder: Path, store: torch.dtype) -> None:
    """The text stack without its adapters, and the adapters in PEFT's format."""
    language = model.language_model
    state = {name.replace(".base_layer.", "."): value for name, value in language.state_dict().items()}
    base = {name: value for name, value in state.items() if ".lora_" not in name}
    if model.config.text_config.tie_word_embeddings:
        base.pop("lm_head.weight", None)
    _write(base, folder / LANGUAGE_FOLDER / "model.safetensors", store)
    quantized = quantize.quantization_config(language.dtype) if model.quantization == "4bit" else None
    _write_config(model.config.text_config, folder / LANGUAGE_FOLDER, "Gemma3ForCausalLM", quantized)
    if not model.config.lora:
        return
    (folder / LORA_FOLDER).mkdir(exist_ok=True)
    adapters = {
        "base_model.model." + name.replace(".default.", "."): value for name, value in state.items() if ".lora_" in name
    }
    _write(adapters, folder / LORA_FOLDER / ADAPTER_FILE, torch.float32)
    stated: LoraConfig = language.peft_config["default"]
    stated.save_pretrained(folder / LORA_FOLDER)
    # PEFT writes a set in the order of its hashes: sorted, the same weights have the same digest in every process.
    written = read_json(folder / LORA_FOLDER / ADAPTER_CONFIG)
    written["target_modules"] = sorted(written["target_modules"])
    (folder / LORA_FOLDER / ADAPTER_CONFIG).write_text(json.dumps(written, indent=2), encoding="utf-8")


def _write(state: dict[str, Tensor], file: Path, store: torch.dtype, prefix: str = "") -> None:
    """Write the tensors whose names start with `prefix`, without it."""
    tensors = {
        name.removeprefix(prefix): (value.to(store) if value.dtype == torch.float32 else value)
        .detach()
        .cpu()
        .contiguous()
        for name, value in state.items()
        if name.startswith(prefix)
    }
    save_file(tensors, file, metadata={"format": "pt"})


def _write_config(config: Any, folder: Path, architecture: str, quantization: Any = None) -> None:
    """Write one part's own configuration, so that other tools load it as what it is."""
    copy = type(config).from_dict(config.to_dict())
    copy.architectures = [architecture]
    if quantization is not None:
        copy.quantization_config = quantization.to_dict()
    copy.save_pretrained(folder)
