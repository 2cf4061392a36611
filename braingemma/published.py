"""The names of the public BrainGemma3D code, so that what was written for it runs here: the card's Quick Start does.

```python
from braingemma.published import MedGemma3D, load_nifti_volume, CANONICAL_PROMPT
from braingemma.published import run_interpretability
```

`BrainGemma3D.from_pretrained` loads the same weights from a folder or the hub, checks every file, and takes four bits.
Source: arXiv 2602.22098 and its model card.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from accelerate import init_empty_weights

from braingemma.checkpoint import load as checkpoint
from braingemma.checkpoint.published import published_config
from braingemma.checkpoint.weights import CONFIG_FILE, read_json
from braingemma.configuration import CANONICAL_PROMPT, KERNEL_DEPTH, PUBLISHED_VOLUME
from braingemma.errors import CheckpointError
from braingemma.explain.run import run_interpretability
from braingemma.model.braingemma3d import BrainGemma3D
from braingemma.model.projector import Projector
from braingemma.volume import preprocess
from braingemma.volume.loaded import LoadedVolume

__all__ = ["CANONICAL_PROMPT", "MedGemma3D", "load_nifti_volume", "run_interpretability"]


def load_nifti_volume(path: str | Path, target_size: tuple[int, int, int] = (64, 128, 128)) -> LoadedVolume:
    """Read a brain FLAIR as the public code does, whatever the file is called.

    Args:
        path: NIfTI file; its header says the orientation.
        target_size: (D, H, W), any size.

    Returns:
        (1, 1, D, H, W) float32 in [0, 1].

    Raises:
        VolumeError: the file is not one finite 3D volume of at least 10 slices along each axis.
    """
    return preprocess.load_nifti_volume(path, target_size, config=PUBLISHED_VOLUME)


def MedGemma3D(
    vision_model_dir: str | Path,
    language_model_dir: str | Path,
    depth: int = KERNEL_DEPTH,
    num_vision_tokens: int = 32,
    freeze_vision: bool = True,
    freeze_language: bool = True,
    device_map: Mapping[str, int | str] | str | None = None,
    quantization: str = "none",
    dtype: torch.dtype | str | None = None,
) -> BrainGemma3D:
    """The public model with its two towers loaded, and a projector that is still to be loaded.

    Args:
        vision_model_dir: A SigLIP checkpoint.
        language_model_dir: A Gemma 3 checkpoint with its tokenizer.
        depth: Planes of the 3D kernel: 2.
        num_vision_tokens: Tokens that the language model gets.
        freeze_vision: Whether the vision tower takes no gradients.
        freeze_language: Whether the language model takes none.
        device_map: `{"": device}`, "auto" (CUDA where there is one), or None: the CPU.
        quantization: See `BrainGemma3D.from_pretrained`; the public code loads what lies there.
        dtype: None: as the language model is stored, but for bfloat16 on a CPU that has none, see `from_pretrained`.

    Raises:
        CheckpointError: a folder lacks a file, or a key, a shape or the tokenizer does not fit.
    """
    if depth != KERNEL_DEPTH:
        raise CheckpointError(f"depth must be {KERNEL_DEPTH}, as in the published weights; got {depth}")
    vision, language = Path(vision_model_dir), Path(language_model_dir)
    config = published_config(vision, language, name=language.resolve().parent.name)
    config.num_visual_tokens = num_vision_tokens
    device = checkpoint.resolve_device(_device(device_map))
    visual_dtype, text_dtype = checkpoint.resolve_dtypes(dtype or _stored_float32(language), device, config)
    tokenizer = checkpoint.read_tokenizer(language, config)
    four_bit = checkpoint.resolve_quantization(quantization, device)
    text = checkpoint.load_language_model(language, config.text_config, device, text_dtype, four_bit)
    with init_empty_weights(include_buffers=False):
        model = BrainGemma3D(config, tokenizer, text)
    checkpoint.fill(model, checkpoint.vision_part(vision, model), visual_dtype, device)
    checkpoint.derive_patch_embedding(model, visual_dtype, device)
    model.projector = Projector(config.vision_config.hidden_size, config.text_config.hidden_size)
    model.projector.to(device, visual_dtype)
    checkpoint.buffers_to(model, device)
    model.quantization = "4bit" if four_bit else "none"
    for part, frozen in (("vision", freeze_vision), ("language", freeze_language)):
        for parameter in model.component_parameters(part):
            parameter.requires_grad_(not frozen and parameter.is_floating_point())
    return model


def _device(device_map: Mapping[str, int | str] | str | None) -> str:
    """The one device of a map."""
    if isinstance(device_map, Mapping):
        if set(device_map) != {""}:
            raise CheckpointError(f'device_map must be {{"": device}}, "auto" or None; got {dict(device_map)}')
        device = device_map[""]
        return f"cuda:{device}" if isinstance(device, int) else device
    return device_map or "cpu"


def _stored_float32(language: Path) -> str | None:
    """The type "float32" where the language model is stored so: it is then taken as it is."""
    stated = read_json(language / CONFIG_FILE)
    text = stated.get("text_config", stated)
    kind = stated.get("dtype") or stated.get("torch_dtype") or text.get("dtype") or text.get("torch_dtype")
    return "float32" if kind == "float32" else None
