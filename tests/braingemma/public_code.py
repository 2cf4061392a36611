"""The public code of arXiv 2602.22098, written anew from its description, sharing no code with the package.

What it does to a file, to the tensor and to the tokens, with transformers' own `generate`.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoTokenizer, Gemma3ForCausalLM, Gemma3ForConditionalGeneration, SiglipVisionModel

PROMPT = "Generate a radiology report for this brain MRI FLAIR scan. \n"


def public_volume(path: Path, target_size: tuple[int, int, int] = (64, 128, 128)) -> torch.Tensor:
    """(1, 1, D, H, W): percentiles of all voxels, clip, then resize."""
    data = nibabel.as_closest_canonical(nibabel.load(path)).get_fdata().astype(np.float32)
    data = np.transpose(data, (2, 1, 0))
    first, last = np.percentile(data, 1), np.percentile(data, 99)
    data = np.zeros_like(data) if last == first else np.clip((data - first) / (last - first), 0, 1)
    whole = torch.from_numpy(np.ascontiguousarray(data, dtype=np.float32))[None, None]
    return F.interpolate(whole, size=target_size, mode="trilinear", align_corners=False)


@torch.no_grad()
def public_tokens(folder: Path, volume: torch.Tensor) -> torch.Tensor:
    """(1, 1, D, H, W) to 32 visual tokens (1, 32, E)."""
    siglip = SiglipVisionModel.from_pretrained(folder / "vision_model", dtype=torch.float32).eval()
    content = torch.load(folder / "projector_vis_scale.pt", weights_only=False)
    kernel = siglip.embeddings.patch_embedding.weight.mean(1, keepdim=True)  # RGB averaged
    kernel = torch.stack((kernel, kernel), dim=2) / 2  # repeated over depth 2, divided by it
    bias = siglip.embeddings.patch_embedding.bias
    x = F.conv3d(volume, kernel, bias, stride=(1, 14, 14), padding=(1, 0, 0))  # (B, C, D + 1, H // 14, W // 14)
    assert x.shape[2:] == (volume.shape[2] + 1, volume.shape[3] // 14, volume.shape[4] // 14)
    _, channels, planes, rows, columns = x.shape
    tokens = x.permute(0, 2, 3, 4, 1).clone()
    for z in range(planes):
        tokens[:, z] += -1 + 2 * z / (planes - 1)
    for y in range(rows):
        tokens[:, :, y, :, 0] += -1 + 2 * y / (rows - 1)
    for i in range(columns):
        tokens[:, :, :, i, 1] += -1 + 2 * i / (columns - 1)
    hidden = siglip.encoder(inputs_embeds=tokens.reshape(-1, planes * rows * columns, channels)).last_hidden_state
    hidden = siglip.post_layernorm(hidden)
    pooled = F.adaptive_avg_pool1d(hidden.transpose(1, 2), 32).transpose(1, 2)
    p = {k: v.float() for k, v in content["vision_projector"].items()}
    hidden = F.gelu(F.linear(pooled, p["0.weight"], p["0.bias"]))
    scale = content.get("vis_scale")
    return F.linear(hidden, p["2.weight"], p["2.bias"]) * (1.0 if scale is None else float(scale))


@torch.no_grad()
def public_report(folder: Path, volume: torch.Tensor, seed: int = 0, **settings: Any) -> str:
    """The text, by the defaults of the public code's `generate_report` and `settings` in their place."""
    chosen: dict[str, Any] = {
        "max_new_tokens": 128,
        "min_new_tokens": 10,
        "temperature": 0.1,
        "top_p": 0.9,
        "repetition_penalty": 1.2,
        "no_repeat_ngram_size": 3,
        **settings,
    }
    if not chosen["temperature"]:
        del chosen["temperature"], chosen["top_p"]
    whole = Gemma3ForConditionalGeneration.from_pretrained(folder / "language_model", dtype=torch.float32).eval()
    text = Gemma3ForCausalLM(whole.config.text_config).eval()  # the multimodal class generates from no embeddings
    text.model, text.lm_head = whole.model.language_model, whole.lm_head
    text.generation_config = whole.generation_config
    tokenizer = AutoTokenizer.from_pretrained(folder / "language_model")
    ids = tokenizer(PROMPT, return_tensors="pt", truncation=True, max_length=256)["input_ids"]
    embeddings = torch.cat((public_tokens(folder, volume), whole.get_input_embeddings()(ids)), dim=1)
    torch.manual_seed(seed)  # here: making a model draws numbers too
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Passing .* with `inputs_embeds`", UserWarning)
        warnings.filterwarnings("ignore", "Unfeasible length", UserWarning)
        written = text.generate(
            inputs_embeds=embeddings,
            attention_mask=torch.ones(embeddings.shape[:2], dtype=torch.long),
            do_sample="temperature" in chosen,
            pad_token_id=tokenizer.pad_token_id,
            **chosen,
        )
    decoded = tokenizer.decode(written[0], skip_special_tokens=True)
    return str(decoded.split(PROMPT)[-1]).strip()
