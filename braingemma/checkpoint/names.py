"""Names of files and keys in a checkpoint, and of the parameters that they are."""

from __future__ import annotations

import re

import torch

from braingemma.checkpoint.tensors import Rename

ADAPTER_FILE = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


SIGLIP = "vision.siglip."
LANGUAGE = "language_model."


def vision_name(key: str) -> str | None:
    """Key of a SigLIP checkpoint (tower alone, or with its text tower) to a name of `SiglipVisionModel`."""
    key = key.removeprefix("vision_model.")
    if key.startswith(("text_model.", "head.", "logit_")) or key == "embeddings.position_ids":
        return None
    return key


def language_name(key: str) -> str | None:
    """Key of a Gemma 3 checkpoint (text or multimodal, of any transformers) to a name of `Gemma3ForCausalLM`."""
    if re.match(r"(model\.)?(vision_tower|multi_modal_projector)\.", key):
        return None
    key = re.sub(r"^model\.language_model\.", "model.", key)
    key = re.sub(r"^language_model\.(model\.)?", "model.", key)
    return re.sub(r"^model\.lm_head\.", "lm_head.", key)


def adapter_name(key: str) -> str | None:
    """Key of a PEFT file to a name of the adapted language model."""
    name = language_name(key.removeprefix("base_model.model."))
    return None if name is None else re.sub(r"\.(lora_[AB])\.weight$", r".\1.default.weight", name)


def prefixed(prefix: str, rename: Rename) -> Rename:
    """`rename`, its names below `prefix`."""

    def renamed(key: str) -> str | None:
        name = rename(key)
        return None if name is None else prefix + name

    return renamed
