"""A few rows times a weight that stays packed, on a CPU: the C library of `_few_rows.c`, where it could be built.

It is built at installation where there is a C compiler (`optional` in pyproject.toml) and called through ctypes.
Without it, or on a processor without AVX2, `few_rows` gives None, and who asks goes on with torch and bitsandbytes: the
same result within rounding, but several times slower for one row.
"""

from __future__ import annotations

import ctypes
import functools
import platform
from dataclasses import dataclass
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVELS = {1: "AVX2", 2: "AVX-512", 3: "AVX-512 with bfloat16"}
"""What the library calls a processor's abilities, in its own numbers."""
_FLOAT32_LEVEL = 2
FEW = 12
"""For more rows than this, unpacking the weight once for all of them is quicker."""
ROWS_AT_ONCE = 1 << 13
"""Rows of an output head that are rounded, or unpacked, at once."""


@dataclass(frozen=True)
class FewRows:
    """The library, as it runs on this processor.

    Attributes:
        library: `_few_rows.c`, compiled.
        level: One of `LEVELS`.
    """

    library: ctypes.CDLL
    level: int

    def nf4(self, x: Tensor, packed: Tensor, scales: Tensor, block: int) -> Tensor:
        """Multiply by a weight in NF4.

        Args:
            x: (M, K) float32 or bfloat16; for bfloat16 the codes may be rounded to it too.
            packed: (N, K / 2) uint8, two codes to a byte, the first in the upper half, as bitsandbytes packs them.
            scales: (N, K / block) float32.
            block: Values that share a scale: 32, 64, or a multiple of 128.

        Returns:
            (M, N) float32.
        """
        (m, k), n = x.shape, packed.shape[0]
        if block not in (32, 64) and block % 128:
            raise ValueError(f"block must be 32, 64 or a multiple of 128, got {block}")
        level = self.level if x.dtype == torch.bfloat16 else min(self.level, _FLOAT32_LEVEL)
        x = x.float().contiguous()
        _check("x", x, torch.float32, (m, k))
        _check("packed", packed, torch.uint8, (n, k // 2))
        _check("scales", scales, torch.float32, (n, k // block))
        out = torch.empty(m, n)
        self._call(self.library.nf4_product, (m, n, k, block), (x, packed, scales, out), level)
        return out

    def bf16(self, x: Tensor, weight: Tensor) -> Tensor:
        """Multiply (M, K) float32 or bfloat16 by a weight (N, K) in bfloat16, K even; (M, N) float32."""
        (m, k), n = x.shape, weight.shape[0]
        x = x.float().contiguous()
        if k % 2:
            raise ValueError(f"rows must be of even length, got {k}")
        _check("x", x, torch.float32, (m, k))
        _check("weight", weight, torch.bfloat16, (n, k))
        out = torch.empty(m, n)
        self._call(self.library.bf16_product, (m, n, k), (x, weight, out), self.level)
        return out

    @property
    def has_int8(self) -> bool:
        """False for a library that was built before there was `int8`: install again to be quicker."""
        return hasattr(self.library, "int8_product")

    def int8(self, x: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
        """Multiply (M, K) float32 or bfloat16 by int8 codes (N, K) with a float32 scale for each row (N,), K % 32 = 0.

        Returns:
            (M, N) float32.
        """
        (m, k), n = x.shape, codes.shape[0]
        x = x.float().contiguous()
        if k % 32:
            raise ValueError(f"rows must be a multiple of 32 long, got {k}")
        _check("x", x, torch.float32, (m, k))
        _check("codes", codes, torch.int8, (n, k))
        _check("scales", scales, torch.float32, (n,))
        out = torch.empty(m, n)
        self._call(self.library.int8_product, (m, n, k), (x, codes, scales, out), self.level)
        return out

    def _call(self, function: Any, sizes: tuple[int, ...], tensors: tuple[Tensor, ...], level: int) -> None:
        pointers = (ctypes.c_void_p(t.data_ptr()) for t in tensors)
        if function(*map(ctypes.c_int64, sizes), *pointers, torch.get_num_threads(), level):
            raise MemoryError(f"no memory for {sizes[0]} rows of {sizes[2]} numbers")


def _check(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """C reads what it is told to read: nothing of another type, shape or order may reach it."""
    if tensor.dtype != dtype or tuple(tensor.shape) != shape or not tensor.is_contiguous() or tensor.is_cuda:
        raise ValueError(
            f"{name} must be contiguous {dtype} of shape {shape} on the CPU, "
            f"got {tensor.dtype} of shape {tuple(tensor.shape)} on {tensor.device}"
        )


def open_library(file: Path, level: int | None = None) -> FewRows | None:
    """The library in a file; None where it does not load, or this processor has none of `LEVELS`.

    Args:
        file: A shared library of `_few_rows.c`.
        level: One of `LEVELS` in place of the best that the processor has.
    """
    try:
        library = ctypes.CDLL(str(file))  # after torch, so that both share one pool of OpenMP threads
    except OSError:  # such as an OpenMP runtime that is gone: the way without the library is open
        return None
    best = library.best_level()
    return FewRows(library, min(level or best, best)) if best in LEVELS else None


@functools.cache
def few_rows() -> FewRows | None:
    """The library that was built beside this file; None where there is none that runs here."""
    files = (Path(__file__).with_name(f"_few_rows{suffix}") for suffix in EXTENSION_SUFFIXES)
    file = next((f for f in files if f.exists()), None)
    return None if file is None or platform.system() != "Linux" else open_library(file)


class EightBitHead(nn.Module):
    """An output head in eight bits: int8 codes with one scale for each token, half the bytes of bfloat16.

    Of the full-size model the head is 43 % of what a token reads (in four bits otherwise). Rounding changes each logit
    by about one part in 400 of its spread, so a text may differ from that of the head in full: it is asked for.
    """

    def __init__(self, codes: Tensor, scales: Tensor) -> None:
        super().__init__()
        self.out_features, self.in_features = codes.shape
        self.register_buffer("codes", codes, persistent=False)
        self.register_buffer("scales", scales, persistent=False)
        self.codes: Tensor
        self.scales: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, weight: Tensor) -> EightBitHead:
        """Round a weight (N, K), some rows at a time; its own values stay as they are."""
        codes = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
        scales = torch.empty(weight.shape[0], device=weight.device)
        for start in range(0, weight.shape[0], ROWS_AT_ONCE):
            part = weight[start : start + ROWS_AT_ONCE].float()
            scale = (part.abs().amax(dim=1) / 127).clamp(min=torch.finfo(torch.float32).tiny)
            scales[start : start + ROWS_AT_ONCE] = scale
            codes[start : start + ROWS_AT_ONCE] = (part / scale[:, None]).round().to(torch.int8)
        return cls(codes, scales)

    @property
    def nbytes(self) -> int:
        """Bytes that one token reads."""
        return self.codes.nbytes + self.scales.nbytes

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) to (…, out), in the type of x."""
        library, rows = few_rows(), x.reshape(-1, self.in_features)
        few = rows.shape[0] <= FEW and x.device.type == "cpu" and self.in_features % 32 == 0
        if library is not None and few and library.has_int8:
            out = library.int8(rows, self.codes, self.scales)
        else:
            parts = zip(self.codes.split(ROWS_AT_ONCE), self.scales.split(ROWS_AT_ONCE), strict=True)
            out = torch.cat([F.linear(rows, codes.to(rows.dtype)) * scales for codes, scales in parts], dim=1)
        return out.to(x.dtype).view(*x.shape[:-1], self.out_features)


class FewRowsLinear(nn.Linear):
    """A `Linear` whose bfloat16 weight a few rows meet at the speed of memory, whatever the CPU knows of bfloat16."""

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) to (…, out), in the type of x."""
        library, rows = few_rows(), x.reshape(-1, self.in_features)
        bias: Tensor | None = self.bias
        needs_grad = torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad)
        if (
            library is None
            or needs_grad
            or rows.shape[0] > FEW
            or bias is not None
            or self.in_features % 2
            or not x.dtype == self.weight.dtype == torch.bfloat16
            or x.device.type != "cpu"
        ):
            return F.linear(x, self.weight, self.bias)
        out = library.bf16(rows, self.weight)
        return out.view(*x.shape[:-1], self.out_features).to(x.dtype)
