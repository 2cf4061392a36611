"""Weights on disk to a model in memory; strict, and never more than one tensor in full precision at a time.

This project's layout:

```
config.json                 every size and choice (`BrainGemmaConfig`)
vision_model/               the 2D SigLIP tower, as transformers writes it
language_model/             the Gemma 3 text stack and its tokenizer, as transformers writes them
braingemma.safetensors      3D patch embedding, depth positions, resampler, projector, heads
lora_adapters/              PEFT
checksums.json              sha256 of each file
```

The published layout has `projector_vis_scale.pt` in place of `braingemma.safetensors`, and no config of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import AutoTokenizer, Gemma3ForCausalLM

from braingemma.checkpoint.names import (
    ADAPTER_CONFIG,
    ADAPTER_FILE,
    DTYPES,
    LANGUAGE,
    SIGLIP,
    adapter_name,
    language_name,
    prefixed,
    vision_name,
)
from braingemma.checkpoint.published import published_config, published_projector
from braingemma.checkpoint.tensors import (
    Rename,
    StoredTensor,
    match,
    put,
    read_finite,
    read_pickled,
    shapes,
    stored_tensors,
    weight_files,
)
from braingemma.checkpoint.weights import (
    CONFIG_FILE,
    DELTA_FILE,
    LANGUAGE_FOLDER,
    LORA_FOLDER,
    MODEL_TYPE,
    PUBLISHED_PROJECTOR,
    VISION_FOLDER,
    WeightsInfo,
    describe_weights,
    published_name,
    read_json,
)
from braingemma.configuration import BrainGemmaConfig
from braingemma.errors import CheckpointError
from braingemma.quantize import nf4 as quantize
from braingemma.quantize.few_rows import EightBitHead, FewRowsLinear

FOREIGN_ADAPTERS = (
    "use_rslora",
    "use_dora",
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
    "bias",
    "fan_in_fan_out",
)
"""Settings of PEFT by which the same tensors would mean something else."""
EMBEDDING_PADDING = 64
"""Embeddings are padded to a multiple of this (Gemma 3: 262145 tokens in 262208 rows)."""
LARGE_EMBEDDINGS = 1 << 30
"""Bytes of float32 embeddings above which the language model stays in bfloat16 whatever the CPU."""


@dataclass(frozen=True)
class Part:
    """One folder or file of a checkpoint, and the parameters of the model that it must hold."""

    where: Path
    stored: Iterator[StoredTensor]
    rename: Rename
    expected: dict[str, tuple[int, ...]]

    def pairs(self) -> Iterator[tuple[str, StoredTensor]]:
        """(name of a parameter, stored tensor), all of them, or `CheckpointError`."""
        return match(self.expected, self.stored, self.rename, self.where)


# ---------------------------------------------------------------------- loading


def load(
    model_class: Callable[..., Any],
    ref: str | Path,
    *,
    device: str = "auto",
    quantization: str = "auto",
    dtype: torch.dtype | str | None = None,
    head_bits: int = 16,
) -> Any:
    """Load weights.

    Args:
        model_class: `BrainGemma3D`, which stands above this package: made with (config, tokenizer, language model).
        ref: "demo", a folder, or a hub id (`owner/name` or `owner/name@revision`).
        device: "auto" (CUDA where there is one), or a torch device.
        quantization: Of the language model: "4bit" (NF4, double quantisation), "none", or "auto": "4bit" where
            bitsandbytes works.
        dtype: Of everything that is not quantised. None: bfloat16; on a CPU without bfloat16 arithmetic float32,
            which is faster there, but for the language model where its embeddings alone would pass 1 GiB.
        head_bits: 8 rounds the output head, which halves its bytes and may change a text; 16 leaves it as it is.

    Raises:
        CheckpointError: names the file and the key that are missing, damaged or do not fit.
    """
    if head_bits not in (8, 16):
        raise CheckpointError(f"head_bits must be 8 or 16; got {head_bits!r}")
    info = describe_weights(str(ref))
    target = resolve_device(device)
    four_bit = resolve_quantization(quantization, target)
    config = read_config(info.folder)
    visual_dtype, text_dtype = resolve_dtypes(dtype, target, config)
    tokenizer = read_tokenizer(info.folder / LANGUAGE_FOLDER, config)
    language_model = load_language_model(
        info.folder / LANGUAGE_FOLDER, config.text_config, target, text_dtype, four_bit
    )
    with init_empty_weights(include_buffers=False):
        model = model_class(config, tokenizer, language_model)
    for part in visual_parts(info.folder, model):
        fill(model, part, visual_dtype, target)
    if not (info.folder / DELTA_FILE).exists():
        derive_patch_embedding(model, visual_dtype, target)
    if config.lora:
        fill(model, adapter_part(info.folder, model), torch.float32, target)
    buffers_to(model, target)
    if head_bits == 8:
        model.language_model.lm_head = EightBitHead.of(model.language_model.lm_head.weight)
    model.quantization, model.head_bits = "4bit" if four_bit else "none", head_bits
    model.weights_info = info
    return model.eval()


def _check(model_class: Callable[..., Any], folder: Path) -> None:
    """Read every tensor once and match it with the model, without keeping any.

    Raises:
        CheckpointError: see `load`.
    """
    config = read_config(folder)
    read_tokenizer(folder / LANGUAGE_FOLDER, config)
    with init_empty_weights(include_buffers=False):
        model = model_class(config)
        plain = Gemma3ForCausalLM(config.text_config)  # without adapters
    parts = [*visual_parts(folder, model), _language_part(folder / LANGUAGE_FOLDER, plain)[0]]
    if config.lora:
        parts.append(adapter_part(folder, model))
    for part in parts:
        for _, tensor in part.pairs():
            read_finite(tensor)


def read_config(folder: Path) -> BrainGemmaConfig:
    """The configuration of either layout."""
    stated = read_json(folder / CONFIG_FILE) if (folder / CONFIG_FILE).exists() else {}
    if stated.get("model_type") == MODEL_TYPE:
        try:
            config = BrainGemmaConfig.from_dict(stated)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{folder / CONFIG_FILE}: {error}") from error
    else:
        config = published_config(folder / VISION_FOLDER, folder / LANGUAGE_FOLDER, published_name(folder))
    if (folder / LORA_FOLDER / ADAPTER_CONFIG).exists():
        config.lora, (config.lora_rank, config.lora_alpha, targets) = True, _adapter_settings(folder / LORA_FOLDER)
        if set(targets) != set(config.lora_targets):
            config.lora_targets = sorted(targets)
    elif config.lora:
        raise CheckpointError(
            f"{folder / LORA_FOLDER / ADAPTER_CONFIG} is missing: config.json says there are adapters"
        )
    return config


def _adapter_settings(folder: Path) -> tuple[int, int, list[str]]:
    """(rank, alpha, names of the adapted projections) of PEFT adapters.

    Raises:
        CheckpointError: names the setting that is missing, or by which the tensors would mean something else.
    """
    file = folder / ADAPTER_CONFIG
    stated = read_json(file)
    missing = [key for key in ("r", "lora_alpha", "target_modules") if key not in stated]
    if missing:
        raise CheckpointError(f"{file}: {missing[0]} is missing")
    if not isinstance(stated["target_modules"], list):
        raise CheckpointError(f"{file}: expected target_modules as a list, got {stated['target_modules']!r}")
    for key in FOREIGN_ADAPTERS:
        if stated.get(key) not in (None, False, {}, [], "none"):
            raise CheckpointError(f"{file}: expected plain LoRA, got {key} = {stated[key]!r}")
    return stated["r"], stated["lora_alpha"], stated["target_modules"]


def read_tokenizer(folder: Path, config: BrainGemmaConfig) -> Any:
    """The tokenizer beside the language model, which must be of its embeddings.

    Raises:
        CheckpointError: it cannot be read, has another size than the embeddings, or knows no word of the prompt.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)  # a folder: nothing is downloaded
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder}: no readable tokenizer: {' '.join(str(error).split())[:200]}") from error
    known, rows = len(tokenizer), int(config.text_config.vocab_size)
    if known > rows or (config.published and rows - known >= EMBEDDING_PADDING):
        raise CheckpointError(
            f"{folder}: the tokenizer has {known} tokens, but the embeddings {rows}: they are not of one model"
        )
    words = tokenizer(config.prompt, add_special_tokens=False)["input_ids"]
    if all(token == tokenizer.unk_token_id for token in words):
        raise CheckpointError(f"{folder}: the tokenizer knows no word of the prompt {config.prompt!r}")
    return tokenizer


def visual_parts(folder: Path, model: Any) -> list[Part]:
    """The parts that hold everything but the language model."""
    parts = [vision_part(folder / VISION_FOLDER, model)]
    rest = {name: shape for name, shape in _visual_shapes(model).items() if not name.startswith(SIGLIP)}
    delta = folder / DELTA_FILE
    if delta.exists():
        parts.append(Part(delta, stored_tensors([delta]), lambda key: key, rest))
        return parts
    file = folder / PUBLISHED_PROJECTOR
    tensors = published_projector(read_pickled(file), file)
    stored = (StoredTensor(file, key, tuple(t.shape), t.detach) for key, t in tensors.items())
    projector = {name: shape for name, shape in rest.items() if name.startswith("projector.")}
    parts.append(Part(file, stored, prefixed("projector.", lambda key: key), projector))
    return parts


def vision_part(folder: Path, model: Any) -> Part:
    """The 2D tower."""
    tower = {name: shape for name, shape in _visual_shapes(model).items() if name.startswith(SIGLIP)}
    return Part(folder, stored_tensors(weight_files(folder)), prefixed(SIGLIP, vision_name), tower)


def _visual_shapes(model: Any) -> dict[str, tuple[int, ...]]:
    return {name: shape for name, shape in shapes(model).items() if not name.startswith(LANGUAGE)}


def adapter_part(folder: Path, model: Any) -> Part:
    """The adapters of the language model."""
    file = folder / LORA_FOLDER / ADAPTER_FILE
    adapters = {name: shape for name, shape in shapes(model.language_model).items() if ".lora_" in name}
    expected = {LANGUAGE + name: shape for name, shape in adapters.items()}
    stored = stored_tensors([file] if file.exists() else weight_files(file.parent))
    return Part(file, stored, prefixed(LANGUAGE, adapter_name), expected)


def fill(model: Any, part: Part, dtype: torch.dtype, device: torch.device) -> None:
    """Read a part of a checkpoint into a model that has no storage yet."""
    for name, tensor in part.pairs():
        put(model, name, _own(read_finite(tensor), dtype, device))


def derive_patch_embedding(model: Any, dtype: torch.dtype, device: torch.device) -> None:
    """The 3D patch embedding that the published layout leaves out."""
    embedding = model.vision.patch_embedding
    for name, value in list(embedding.named_parameters()):
        put(embedding, name, torch.empty(value.shape, dtype=dtype, device=device))
    model.vision.inflate()


def _own(value: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A copy of its own: a tensor as read is a window on its file, and one small one would keep all of it mapped."""
    return value.to(device, dtype if value.is_floating_point() else value.dtype, copy=True)


def buffers_to(model: nn.Module, device: torch.device) -> None:
    """Move what is no parameter."""
    for module in model.modules():
        for name, value in module._buffers.items():
            if value is not None:
                module._buffers[name] = value.to(device)


# ---------------------------------------------------------------------- the language model


def load_language_model(
    folder: Path, config: Any, device: torch.device, dtype: torch.dtype, four_bit: bool
) -> Gemma3ForCausalLM:
    """The text stack of a Gemma 3 checkpoint, tensor by tensor.

    Args:
        folder: A text or multimodal checkpoint, in full precision or in bitsandbytes' four bits.
        config: Its `Gemma3TextConfig`.
        device: Where to.
        dtype: Of what is not quantised, and of the arithmetic.
        four_bit: Whether the linear layers are held in four bits.
    """
    with init_empty_weights(include_buffers=False):
        model = Gemma3ForCausalLM(config)
        model.lm_head = FewRowsLinear(config.hidden_size, config.vocab_size, bias=False)
    part, stats = _language_part(folder, model)
    if four_bit:
        quantize.make_linears_four_bit(model.model.layers, dtype)
        model.is_loaded_in_4bit = True
    for name, tensor in part.pairs():
        owner = model.get_submodule(name.rpartition(".")[0])
        value = read_finite(tensor)
        if name in stats and quantize.is_four_bit(owner):
            quantize.put_packed(owner, value, stats[name], device)
        elif quantize.is_four_bit(owner) and name.endswith(".weight"):
            quantize.put_quantized(owner, value.to(dtype), device)
        else:
            put(model, name, _own(quantize.unpack(value, stats[name]) if name in stats else value, dtype, device))
    if config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    buffers_to(model, device)
    return model.eval()


def _language_part(folder: Path, model: Gemma3ForCausalLM) -> tuple[Part, dict[str, dict[str, Tensor]]]:
    """What the language model needs, and the statistics of the weights that come in four bits."""
    expected = shapes(model)
    tied = bool(model.config.tie_word_embeddings)
    if tied:
        expected.pop("lm_head.weight", None)
    stats: dict[str, dict[str, Tensor]] = {}
    files = weight_files(folder)
    if quantize.check_quantized_by_us(read_json(folder / CONFIG_FILE), folder / CONFIG_FILE):
        stats = _packed_statistics(files)
        expected |= {name: quantize.packed_shape(expected[name]) for name in stats if name in expected}

    def rename(key: str) -> str | None:
        name = language_name(key)
        if name is None or quantize.STAT_MARK in name or (tied and name == "lm_head.weight"):
            return None
        return name

    return Part(folder, stored_tensors(files), rename, expected), stats


def _packed_statistics(files: list[Path]) -> dict[str, dict[str, Tensor]]:
    """For each weight in four bits, what bitsandbytes needs to read it; all of it, or `CheckpointError`."""
    stats: dict[str, dict[str, Tensor]] = {}
    where: dict[str, Path] = {}
    for tensor in stored_tensors(files):
        name = language_name(tensor.key)
        if name is not None and quantize.STAT_MARK in name:
            base, _, stat = name.partition(quantize.STAT_MARK)
            stats.setdefault(f"{base}.weight", {})[stat] = tensor.read()
            where[f"{base}.weight"] = tensor.file
    for weight, found in stats.items():
        quantize.check_statistics(found, f"{where[weight]}: key {weight}")
    return stats


# ---------------------------------------------------------------------- choices


def resolve_device(device: str) -> torch.device:
    """CUDA where there is one for "auto", else the device that is named."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise CheckpointError(f"device must be auto, cpu, cuda or cuda:N; got {device!r}") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise CheckpointError("device cuda was asked for, but torch sees no CUDA device here")
    return chosen


def resolve_quantization(quantization: str, device: torch.device) -> bool:
    """Whether the language model is held in four bits."""
    if quantization not in ("auto", "4bit", "none"):
        raise CheckpointError(f"quantization must be auto, 4bit or none; got {quantization!r}")
    works = quantize.four_bit_works(device)
    if quantization == "4bit" and not works:
        raise CheckpointError(f"4 bit was asked for, but bitsandbytes does not work on {device.type}")
    return quantization != "none" and works


def resolve_dtype(dtype: torch.dtype | str | None) -> torch.dtype:
    """A torch type from itself, its name, or None (bfloat16)."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype is None or dtype == "auto":
        return torch.bfloat16
    if dtype not in DTYPES:
        raise CheckpointError(f"dtype must be one of {', '.join(DTYPES)}; got {dtype!r}")
    return DTYPES[dtype]


def resolve_dtypes(
    dtype: torch.dtype | str | None, device: torch.device, config: BrainGemmaConfig
) -> tuple[torch.dtype, torch.dtype]:
    """(visual part, language model): see `load`."""
    chosen = resolve_dtype(dtype)
    if dtype is not None or quantize.fast_bfloat16(device):
        return chosen, chosen
    text = config.text_config
    large = text.vocab_size * text.hidden_size * torch.float32.itemsize > LARGE_EMBEDDINGS
    return torch.float32, chosen if large else torch.float32


# ---------------------------------------------------------------------- saving


def verify(model_class: Callable[..., Any], folder: str | Path) -> WeightsInfo:
    """Check that every file, key and shape is as the model needs it, without building the model in memory.

    Raises:
        CheckpointError: names the first file and key that is missing, damaged, superfluous or of another shape.
    """
    info = describe_weights(str(folder))
    _check(model_class, info.folder)
    return info
