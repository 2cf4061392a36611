"""Round a language model's weights to what its 4-bit form will hold, so that the phases train on what is served.

QLoRA (Dettmers et al., arXiv 2305.14314) trains adapters over a 4-bit base. Here the base is small: it is rounded to
NF4 and back once, stays float32 in memory, and the projector and adapters learn to steer exactly those weights.
"""

from __future__ import annotations

import bitsandbytes.functional as bnb
import torch
from torch import nn

from braingemma.quantize.nf4 import block_size


@torch.no_grad()
def round_to_nf4(language_model: nn.Module) -> int:
    """Round every linear layer that is served in four bits, in place; returns how many there were."""
    rounded = 0
    for name, module in language_model.named_modules():
        if not isinstance(module, nn.Linear) or name.endswith("lm_head") or "lora_" in name:
            continue
        size = block_size(module.in_features)
        if size is not None:
            weight = module.weight.data.contiguous()
            packed, state = bnb.quantize_4bit(weight, blocksize=size, quant_type="nf4", compress_statistics=True)
            module.weight.data.copy_(bnb.dequantize_4bit(packed, state).view_as(weight))
            rounded += 1
    return rounded
