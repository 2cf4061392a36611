"""Tiny random models of the real classes, made in milliseconds."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import Gemma3TextConfig, PreTrainedTokenizerFast, SiglipVisionConfig

from braingemma.configuration import BrainGemmaConfig
from braingemma.model.braingemma3d import BrainGemma3D


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Characters and a few words, with Gemma's special tokens."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    letters = [chr(c) for c in range(33, 127)] + ["\u0120", "\u010a"]
    pieces = [*special, *letters]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", unk_token="<unk>"
    )


def tiny_config(**changes: Any) -> BrainGemmaConfig:
    """A model of a few ten thousand parameters."""
    values: dict[str, Any] = {
        "vision_config": SiglipVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=32,
            patch_size=8,
            num_channels=3,
        ),
        "text_config": Gemma3TextConfig(
            vocab_size=128,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            query_pre_attn_scalar=16,
            sliding_window=512,
            max_position_embeddings=1024,
        ),
        "volume": {"grid": (12, 24, 20)},
        "patch_depth": 4,
        "resampler_heads": 4,
        "num_visual_tokens": 8,
    }
    return BrainGemmaConfig(**{**values, **changes})


def tiny_model(seed: int = 0, **changes: Any) -> BrainGemma3D:
    """Random weights, the same for the same seed; adapters are not zero, so that they show."""
    torch.manual_seed(seed)
    model = BrainGemma3D(tiny_config(**changes), tiny_tokenizer())
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model.eval()
