"""The encoder's work on the many large volumes of an explanation, on a CPU: the C library of `_large_volume.c`.

Torch's kernels reach a third of what such a processor multiplies in bfloat16 where 5265 patches attend to each other,
and know its eight bits only with layers of their own. Here attention is of the same arithmetic as torch's (bfloat16
products, float32 sums), and linear layers meet inputs and weights in eight bits, which changes each of their results by
about a hundredth of its spread. So a volume takes two fifths of the time. A report is read by torch in bfloat16 all the
same: this is for the volumes of an explanation, of which only differences count.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
import platform
import weakref
from collections.abc import Iterator, MutableMapping
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "braingemma_large_volume"
"""What transformers calls the attention."""
DIMENSIONS = (64, 72)
"""Dimensions of a head that the library has been built for: those of SigLIP base and so400m."""
FEWEST_TOKENS = 2048
"""For fewer patches nothing is gained that would be worth another arithmetic."""
_GROUP = 64
"""Columns of a weight that lie together."""
_GELU = "gelu_pytorch_tanh"


def open_library(file: Path) -> ctypes.CDLL | None:
    """The library in a file; None where it does not load, or this processor lacks bfloat16 or eight bits (VNNI)."""
    try:
        opened = ctypes.CDLL(str(file))  # after torch, so that both share one pool of OpenMP threads
    except OSError:
        return None
    return opened if opened.works() else None


@functools.cache
def library() -> ctypes.CDLL | None:
    """The library that was built beside this file; None where there is none that runs here.

    Also None where the processor has matrix units (AMX): torch's own kernels use them, the library does not.
    """
    files = (Path(__file__).with_name(f"_large_volume{suffix}") for suffix in EXTENSION_SUFFIXES)
    file = next((f for f in files if f.exists()), None)
    if file is None or platform.system() != "Linux" or torch.cpu._is_amx_tile_supported():
        return None
    return open_library(file)


def attend(opened: ctypes.CDLL, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Attention without a mask.

    Args:
        opened: The library.
        query: (B, heads, T, dim) bfloat16 on the CPU, dim one of `DIMENSIONS`.
        key: As the query.
        value: As the query.
        scale: Of the products of query and key.

    Returns:
        (B, T, heads, dim) bfloat16, contiguous.
    """
    batch, heads, tokens, dim = query.shape
    for tensor in (query, key, value):
        if tensor.shape != query.shape or tensor.dtype != torch.bfloat16 or tensor.device.type != "cpu":
            raise ValueError(
                f"expected bfloat16 {tuple(query.shape)} on the CPU, got {tensor.dtype} {tuple(tensor.shape)} "
                f"on {tensor.device}"
            )
    if dim not in DIMENSIONS:
        raise ValueError(f"expected heads of {' or '.join(map(str, DIMENSIONS))} dimensions, got {dim}")
    if query.stride(3) != 1 or not query.stride() == key.stride() == value.stride():
        query, key, value = (tensor.contiguous() for tensor in (query, key, value))
    out = query.new_empty(batch, tokens, heads, dim)
    sizes = map(ctypes.c_int64, (*query.shape, *query.stride()[:3]))
    if opened.attention(*sizes, *_pointers(query, key, value, out), ctypes.c_float(scale), torch.get_num_threads()):
        raise MemoryError(f"no memory for the keys and values of {heads} heads and {tokens} tokens")
    return out


class EightBitLinear:
    """A `Linear` whose weight and inputs are rounded to eight bits.

    Attributes:
        opened: The library.
        gelu: Whether GELU (by tanh) is part of it.
    """

    def __init__(self, opened: ctypes.CDLL, linear: nn.Linear, *, gelu: bool = False) -> None:
        """Round the weight (N, K), both multiples of 16, once; its own values stay as they are."""
        self.opened, self.gelu = opened, gelu
        self.rows, self.width = linear.weight.shape
        if self.rows % 16 or self.width % 16:
            raise ValueError(f"expected a weight of multiples of 16, got {tuple(linear.weight.shape)}")
        weight = linear.weight.detach().float()
        steps = (weight.abs().amax(dim=1) / 127).clamp(min=torch.finfo(torch.float32).tiny)
        codes = (weight / steps[:, None]).round()
        missing = -self.rows % _GROUP
        self.zero = F.pad((128 * codes.sum(dim=1)).int(), (0, missing))
        self.steps = F.pad(steps, (0, missing))
        bias = torch.zeros(self.rows) if linear.bias is None else linear.bias.detach().float()
        self.bias = F.pad(bias, (0, missing))
        filled = F.pad(codes.to(torch.int8), (0, 0, 0, missing))
        self.codes = filled.view(-1, _GROUP, self.width // 4, 4).transpose(1, 2).contiguous()

    def __call__(self, x: Tensor) -> Tensor:
        """(…, K) bfloat16 on the CPU to (…, N) bfloat16."""
        if x.dtype != torch.bfloat16 or x.device.type != "cpu" or x.shape[-1] != self.width:
            raise ValueError(
                f"expected bfloat16 (…, {self.width}) on the CPU, got {x.dtype} {tuple(x.shape)} on {x.device}"
            )
        x = x.contiguous()
        out = x.new_empty(*x.shape[:-1], self.rows)
        sizes = map(ctypes.c_int64, (x.numel() // self.width, self.width, self.rows))
        pointers = _pointers(x, self.codes, self.steps, self.zero, self.bias, out)
        if self.opened.linear(*sizes, *pointers, int(self.gelu), torch.get_num_threads()):
            raise MemoryError(f"no memory for rows of {self.width} numbers")
        return out


def _pointers(*tensors: Tensor) -> Iterator[ctypes.c_void_p]:
    return (ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors)


def _suits(x: Tensor, tokens: int) -> bool:
    """Whether the library is for this input."""
    needs_grad = torch.is_grad_enabled() and x.requires_grad
    return x.dtype == torch.bfloat16 and x.device.type == "cpu" and tokens >= FEWEST_TOKENS and not needs_grad


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """As transformers calls an attention: the library where it can, torch's kernel else."""
    opened, (*_, tokens, dim) = library(), query.shape
    if opened is None or dim not in DIMENSIONS or attention_mask is not None or not _suits(query, tokens):
        plain = ALL_ATTENTION_FUNCTIONS["sdpa"]
        return plain(module, query, key, value, attention_mask, scaling=scaling, **others)
    return attend(opened, query, key, value, dim**-0.5 if scaling is None else scaling), None


AttentionInterface.register(NAME, _attention)


def is_large(model: Any, grid: tuple[int, ...]) -> bool:
    """Whether `large_volumes` changes how a `BrainGemma3D` reads a grid (D, H, W) on this machine."""
    weight: Tensor = model.projector.scale
    if not hasattr(model.vision, "siglip") or weight.dtype != torch.bfloat16 or weight.device.type != "cpu":
        return False
    return library() is not None and patches_of(model, grid) >= FEWEST_TOKENS


def patches_of(model: Any, grid: tuple[int, ...]) -> float:
    """Patches of a grid (D, H, W): as of the model's own grid, by their sizes."""
    return math.prod(model.vision.patch_grid) * math.prod(grid) / math.prod(model.config.grid)


@contextlib.contextmanager
def large_volumes(vision: nn.Module, *, eight_bits: bool = True) -> Iterator[None]:
    """Within, an encoder's SigLIP tower works by the library wherever that can; one without such a tower as before.

    Args:
        vision: The encoder.
        eight_bits: Linear layers too; without them the arithmetic is torch's.
    """
    tower = getattr(vision, "siglip", None)
    opened = library()
    if tower is None or opened is None or tower.config._attn_implementation != "sdpa":
        yield
        return
    changed: list[Any] = []
    tower.config._attn_implementation = NAME
    try:
        for layer in tower.encoder.layers if eight_bits else ():
            changed += _round_linears(opened, layer, gelu=tower.config.hidden_act == _GELU)
        yield
    finally:
        tower.config._attn_implementation = "sdpa"
        for module in changed:
            del module.forward


def _round_linears(opened: ctypes.CDLL, layer: Any, *, gelu: bool) -> list[nn.Module]:
    """Have the linear layers of one encoder layer work in eight bits; which modules were given another `forward`."""
    changed: list[nn.Module] = []
    for module in layer.modules():
        if type(module) is nn.Linear and not (module.in_features % 16 or module.out_features % 16):
            fused = gelu and module is layer.mlp.fc1
            module.forward = functools.partial(_linear, opened, module, fused)  # type: ignore[method-assign]
            changed.append(module)
            if fused:
                layer.mlp.activation_fn.forward = _as_it_is
                changed.append(layer.mlp.activation_fn)
    return changed


def _as_it_is(x: Tensor) -> Tensor:
    return x


def _linear(opened: ctypes.CDLL, linear: nn.Linear, gelu: bool, x: Tensor) -> Tensor:
    if not _suits(x, x.numel() // linear.in_features):
        out = F.linear(x, linear.weight, linear.bias)
        return F.gelu(out, approximate="tanh") if gelu else out
    return _rounded(opened, linear, gelu)(x)


_ROUNDED: MutableMapping[nn.Linear, tuple[Any, EightBitLinear]] = weakref.WeakKeyDictionary()
"""Layers in eight bits, each as long as its layer lives; beside the model, whose copies and files know nothing of
them."""


def _rounded(opened: ctypes.CDLL, linear: nn.Linear, gelu: bool) -> EightBitLinear:
    """The layer in eight bits: made at its first use and kept while its weight is the same."""
    weight = linear.weight
    state = weight.data_ptr(), 0 if weight.is_inference() else weight._version
    kept = _ROUNDED.get(linear)
    if kept is None or kept[0] != state:
        kept = _ROUNDED[linear] = state, EightBitLinear(opened, linear, gelu=gelu)
    return kept[1]
