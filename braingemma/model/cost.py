"""What it takes a processor to encode a volume and to score a report after it, by the sizes of the weights.

Counted, not timed: the same machine gives the same answer, however busy it is.
"""

from __future__ import annotations

from typing import Any

import torch

from braingemma.model import large_volume

VISION_RATES = {"library": 0.22e12, "matrix units": 0.3e12, "plain": 0.08e12}
"""Operations a second of one thread for the encoder: by `large_volumes`; by torch where the processor has matrix units
(AMX); by torch else. The first and the last were measured on an EPYC 9004 (Zen 4), the second is a guess."""
TEXT_RATES = {True: 0.16e12, False: 0.08e12}
"""The same for the language model, with and without arithmetic in bfloat16."""


def volume_seconds(model: Any, grid: tuple[int, ...], text_tokens: int) -> float:
    """Seconds for one of many volumes on this machine's processor, with as many threads as torch uses.

    Args:
        model: A `BrainGemma3D`.
        grid: (D, H, W) of the volume; that of the weights, unless another size was asked for.
        text_tokens: Of the reports that are scored; the prompt with its visual tokens is added.
    """
    config, weight = model.config, model.projector.scale
    patches = large_volume.patches_of(model, grid)
    if large_volume.is_large(model, grid):
        rate = VISION_RATES["library"]
    else:
        matrix = weight.dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported()
        rate = VISION_RATES["matrix units" if matrix else "plain"]
    tokens = len(model._prompt_ids(None)) + text_tokens
    text_rate = TEXT_RATES[weight.dtype == torch.bfloat16 and bool(torch.cpu._is_avx512_bf16_supported())]
    work = vision_operations(config.vision_config, patches) / rate
    return (work + text_operations(config.text_config, tokens) / text_rate) / torch.get_num_threads()


def vision_operations(config: Any, patches: float) -> float:
    """Additions and multiplications of a SigLIP tower over so many patches."""
    width, inner = config.hidden_size, config.intermediate_size
    weights = 4 * width**2 + 2 * width * inner
    return 2.0 * config.num_hidden_layers * patches * (weights + 2 * patches * width)


def text_operations(config: Any, tokens: int) -> float:
    """Those of a Gemma 3 stack over so many tokens; its head meets few of them."""
    attended = config.head_dim * (2 * config.num_attention_heads + 2 * config.num_key_value_heads)
    return 2.0 * config.num_hidden_layers * tokens * config.hidden_size * (attended + 3 * config.intermediate_size)
