"""NF4 with double quantisation by bitsandbytes (QLoRA, arXiv 2305.14314), one tensor at a time, on CPU and CUDA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig

from braingemma.errors import CheckpointError
from braingemma.quantize import few_rows as native
from braingemma.quantize.library import bnb

STAT_MARK = ".weight."
"""Tensors that bitsandbytes writes beside a packed weight (`QuantState.as_dict`)."""
BLOCK_SIZES = (64, 32)
"""Block sizes of NF4 in the order of preference; the first is bitsandbytes' own choice."""
BLOCK_ELEMENTS = 1 << 22
"""Weights that are unpacked at once: 8 MB in bfloat16. With a quarter of that, the many small products cost more than
the cache spares; with four times as much, it is the other way round."""


def quantization_config(dtype: torch.dtype) -> BitsAndBytesConfig:
    """What `language_model/config.json` says about weights that are stored in four bits."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=["lm_head"],
    )


def fast_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 arithmetic is native on the device."""
    return device.type != "cpu" or bool(torch.cpu._is_avx512_bf16_supported())


def four_bit_works(device: torch.device) -> bool:
    """Whether bitsandbytes quantises on this device."""
    return device.type in ("cpu", "cuda")


def block_size(in_features: int) -> int | None:
    """Weights that share one scale; None where four bits are not to be had.

    bitsandbytes' CPU kernels (0.50.2) take the wrong scale where a row is not a whole number of blocks: a 160 x 160
    weight in blocks of 64 comes back with 25 % error in place of 9 % (measured). So the block must divide the row.
    """
    return next((size for size in BLOCK_SIZES if in_features % size == 0), None)


class PackedLinear(bnb.nn.Linear4bit):
    """A `Linear4bit` that never unpacks its whole weight on a CPU, and never changes how it is packed.

    bitsandbytes' own forward does one or the other there, by the processor. Without avx512_bf16 it unpacks the weight
    into fresh memory for each token. With avx512_bf16 it packs the weight in another order at first use and rounds the
    scales to bfloat16, so that what is saved afterwards is not what was loaded, and it fails at a width that is no
    multiple of 32. Here a few rows go through `native`; many, or all where that is not built, meet the weight a few
    rows of it at a time, unpacked into a block that stays in the cache.
    """

    _expanded: tuple[Any, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) to (…, out)."""
        state = self.weight.quant_state
        needs_grad = torch.is_grad_enabled() and x.requires_grad
        if x.device.type != "cpu" or needs_grad or getattr(state, "packing_format_for_cpu", False):
            return super().forward(x)
        rows = x.reshape(-1, self.in_features)
        library = native.few_rows() if rows.shape[0] <= native.FEW and state.quant_type == "nf4" else None
        packed = self.weight.data.view(torch.uint8).view(self.out_features, -1)
        if library is None:
            out = self._by_blocks(rows, packed)
        else:
            out = library.nf4(rows, packed, self.scales(), state.blocksize)
        if self.bias is not None:
            out += self.bias
        return out.view(*x.shape[:-1], self.out_features).to(x.dtype)

    def scales(self) -> Tensor:
        """(out, in / block) float32: one scale for each block of weights, expanded once and kept."""
        state = self.weight.quant_state
        if self._expanded is None or self._expanded[0] is not state:
            flat = state.absmax
            if state.nested:
                flat = bnb.functional.dequantize_blockwise(state.absmax, state.state2) + state.offset
            self._expanded = state, flat.float().view(self.out_features, -1)
        return self._expanded[1]

    def _by_blocks(self, rows: Tensor, packed: Tensor) -> Tensor:
        """(M, in) to (M, out)."""
        state, scales = self.weight.quant_state, self.scales()
        dtype = torch.bfloat16 if rows.dtype == torch.bfloat16 and fast_bfloat16(rows.device) else torch.float32
        rows = rows.to(dtype)
        out = rows.new_empty(rows.shape[0], self.out_features)
        step = max(BLOCK_ELEMENTS // self.in_features, 1)
        for start in range(0, self.out_features, step):
            part = slice(start, min(start + step, self.out_features))
            shape = (part.stop - start, self.in_features)
            weight = torch.ops.bitsandbytes.dequantize_4bit(
                packed[part], scales[part], state.blocksize, state.quant_type, shape, dtype
            )
            torch.mm(rows, weight.T, out=out[:, part])
        return out


def make_linears_four_bit(stack: nn.Module, dtype: torch.dtype) -> None:
    """Swap every `Linear` of a stack (still without storage) for a `Linear4bit`, where its rows are whole blocks."""
    for path, module in list(stack.named_modules()):
        if type(module) is not nn.Linear or block_size(module.in_features) is None:
            continue
        parent, _, name = path.rpartition(".")
        swapped = PackedLinear(
            module.in_features,
            module.out_features,
            bias=module.bias is not None,
            compute_dtype=dtype,
            compress_statistics=True,
            quant_type="nf4",
            device="meta",
        )
        setattr(stack.get_submodule(parent), name, swapped)


def is_four_bit(module: nn.Module) -> bool:
    """Whether a module holds its weight in four bits."""
    return isinstance(module, bnb.nn.Linear4bit)


def put_quantized(linear: Any, weight: Tensor, device: torch.device) -> None:
    """Quantise `weight` (out, in) on `device` and make it the weight of a `Linear4bit`."""
    parameter = bnb.nn.Params4bit(
        weight,
        requires_grad=False,
        compress_statistics=True,
        quant_type="nf4",
        blocksize=block_size(linear.in_features),
        module=linear,
    )
    linear.weight = parameter.to(device)


def check_statistics(stats: Mapping[str, Tensor], where: str) -> None:
    """What bitsandbytes wrote beside a packed weight must be whole.

    Raises:
        CheckpointError: names what is missing or not finite.
    """
    states = [name for name in stats if name.startswith("quant_state.bitsandbytes__")]
    nested = any(name.startswith("nested_") for name in stats)
    needed = ["absmax", "quant_map", *(("nested_absmax", "nested_quant_map") if nested else ())]
    missing = [name for name in needed if name not in stats] + ([] if states else ["quant_state.bitsandbytes__nf4"])
    if missing:
        raise CheckpointError(f"{where}: packed in 4 bits, but {missing[0]} beside it is missing")
    broken = [name for name, value in stats.items() if not bool(value.float().isfinite().all())]
    if broken:
        raise CheckpointError(f"{where}: {broken[0]} beside it holds values that are not finite")


def put_packed(linear: Any, packed: Tensor, stats: Mapping[str, Tensor], device: torch.device) -> None:
    """Make a weight that came in four bits the weight of a `Linear4bit`."""
    state = bnb.functional.QuantState.from_dict(qs_dict=dict(stats), device=packed.device)
    if linear.in_features % state.blocksize:  # see `block_size`
        put_quantized(linear, unpack(packed, stats), device)
        return
    linear.weight = bnb.nn.Params4bit.from_prequantized(
        data=packed, quantized_stats=dict(stats), requires_grad=False, device=device, module=linear
    )


def unpack(packed: Tensor, stats: Mapping[str, Tensor]) -> Tensor:
    """A weight (out, in) that came in four bits, in full."""
    state = bnb.functional.QuantState.from_dict(qs_dict=dict(stats), device=packed.device)
    shape, state.shape = state.shape, torch.Size((1, state.shape.numel()))  # one row is whole blocks: `block_size`
    return bnb.functional.dequantize_4bit(packed, state).view(shape)


def packed_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Shape of a packed weight: two values to a byte, in one column."""
    count = 1
    for size in shape:
        count *= size
    return (count + 1) // 2, 1


def check_quantized_by_us(config: Mapping[str, Any], where: Any) -> bool:
    """Whether a language model's config says that its weights are stored by bitsandbytes in four bits.

    Raises:
        CheckpointError: they are quantised in another way.
    """
    stated = config.get("quantization_config")
    if not stated:
        return False
    if stated.get("quant_method") != "bitsandbytes" or not stated.get("load_in_4bit", stated.get("_load_in_4bit")):
        raise CheckpointError(f"{where}: expected weights in full or in bitsandbytes' 4 bit, got {stated}")
    return True
