"""bitsandbytes, loaded without torch's compiler.

Its fallbacks in plain torch are handed to `torch.compile` while it is imported, which loads the compiler: a quarter of
the time that the model's modules take to load. Processors and CUDA have kernels of their own, so nothing that we call
is ever compiled. What its user compiles elsewhere is not touched.
"""

from __future__ import annotations

import os
from typing import Any

_SWITCH = "TORCHDYNAMO_DISABLE"


def _load() -> Any:
    before = os.environ.get(_SWITCH)
    os.environ[_SWITCH] = "1"
    try:
        import bitsandbytes
    finally:
        if before is None:
            del os.environ[_SWITCH]
        else:
            os.environ[_SWITCH] = before
    return bitsandbytes


bnb = _load()
