"""Random weights in the published layout, as the checkpoint lies on the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny_models import tiny_config, tiny_tokenizer
from tokenizers import processors
from transformers import (
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    SiglipVisionConfig,
    SiglipVisionModel,
)

WIDTH, HIDDEN = 32, 64
GRID = (64, 128, 128)  # the published weights know no other


def vision_config() -> SiglipVisionConfig:
    # 14 does not divide 128: the public code drops two rows and columns.
    return SiglipVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=56,
        patch_size=14,
    )


def text_config() -> Gemma3TextConfig:
    """Rows of whole blocks of 64, which bitsandbytes' own packing needs."""
    changes = {"hidden_size": HIDDEN, "intermediate_size": 2 * HIDDEN, "num_attention_heads": 4}
    return Gemma3TextConfig(**{**tiny_config().text_config.to_dict(), **changes})


def gemma_like_tokenizer() -> Any:
    """The tiny tokenizer, which puts `<bos>` first as Gemma's does."""
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", tokenizer.bos_token_id)]
    )
    return tokenizer


def write_published(folder: Path, multimodal: bool = True, lora: bool = False) -> Path:
    """Random weights as the published checkpoint lies on the hub."""
    torch.manual_seed(7)
    vision = SiglipVisionModel(vision_config())
    for parameter in vision.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    vision.save_pretrained(folder / "vision_model")
    text = text_config()
    if multimodal:
        config = Gemma3Config(text_config=text, vision_config=vision_config(), mm_tokens_per_image=4)
        language: Any = Gemma3ForConditionalGeneration(config)
    else:
        language = Gemma3ForCausalLM(text)
    for name, parameter in language.named_parameters():
        if "vision" not in name:  # lively enough that the report is not one token repeated
            parameter.data.normal_(std=0.05 if "embed" in name else 1.0)
    language.save_pretrained(folder / "language_model")
    gemma_like_tokenizer().save_pretrained(folder / "language_model")
    projector = {
        "0.weight": torch.randn(HIDDEN, WIDTH) * 0.3,
        "0.bias": torch.randn(HIDDEN) * 0.1,
        "2.weight": torch.randn(HIDDEN, HIDDEN) * 0.3,
        "2.bias": torch.randn(HIDDEN) * 0.1,
    }
    content = {
        "vision_projector": {k: v.to(torch.bfloat16) for k, v in projector.items()},
        "vis_scale": torch.tensor(1.7, dtype=torch.bfloat16),
    }
    torch.save(content, folder / "projector_vis_scale.pt")
    return folder
