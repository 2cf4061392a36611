"""The model: RAS NIfTI in, report, findings and saliency out. No DICOM here.

The names below are loaded when they are first used, so that `import braingemma` stays quick and needs no torch.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from braingemma.configuration import CANONICAL_PROMPT
    from braingemma.explain.run import run_interpretability
    from braingemma.model.braingemma3d import BrainGemma3D
    from braingemma.volume.preprocess import load_nifti_volume

__all__ = ["CANONICAL_PROMPT", "BrainGemma3D", "load_nifti_volume", "run_interpretability"]

_HOME = {
    "CANONICAL_PROMPT": "braingemma.configuration",
    "BrainGemma3D": "braingemma.model.braingemma3d",
    "load_nifti_volume": "braingemma.volume.preprocess",
    "run_interpretability": "braingemma.explain.run",
}


# On some processors bitsandbytes asks its user for a package that downloads native code. It is kept out, and not needed
# (see `braingemma.quantize.few_rows`): nobody is to be sent after it.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def __getattr__(name: str) -> Any:
    """Import the module that holds `name` (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'braingemma' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
