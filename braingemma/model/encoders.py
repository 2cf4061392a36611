"""The encoders that a configuration can name: from voxels to patch features."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any, Final

from torch import nn

from braingemma.configuration import BrainGemmaConfig
from braingemma.errors import CheckpointError
from braingemma.model.published import PublishedVisionTower
from braingemma.model.vision import InflatedVisionTower

Encoder = Callable[[BrainGemmaConfig], nn.Module]
ENTRY_POINTS: Final = "braingemma.encoders"
"""Of installed packages: `[project.entry-points."braingemma.encoders"]`, name = "package.module:Class"."""
_ENCODERS: Final[dict[str, Encoder]] = {"siglip-3d": InflatedVisionTower}


def register_encoder(name: str) -> Callable[[Encoder], Encoder]:
    """Make an encoder known under `name`, for `encoder = name` in `[model]` and in `config.json`.

    It is made from the configuration and has what `InflatedVisionTower` has: `forward` from (B, 1, D, H, W) to
    (B, d, h, w, C), `patch`, `patch_grid`, `pad`, `on_grid`, `patch_embedding` and `inflate`; its C is
    `vision_config.hidden_size`. A subclass need only state what differs.

    Raises:
        CheckpointError: the name is taken.
    """
    if name in _ENCODERS:
        raise CheckpointError(f"an encoder is called {name} already")

    def register(encoder: Encoder) -> Encoder:
        _ENCODERS[name] = encoder
        return encoder

    return register


def make_encoder(config: BrainGemmaConfig) -> Any:
    """The encoder of these weights; the published layout has its own.

    Raises:
        CheckpointError: none of this name is registered or installed.
    """
    if config.published:
        return PublishedVisionTower(config)
    if config.encoder not in _ENCODERS:
        for entry in entry_points(group=ENTRY_POINTS, name=config.encoder):
            _ENCODERS.setdefault(config.encoder, entry.load())
    if config.encoder not in _ENCODERS:
        known = ", ".join(sorted(_ENCODERS))
        raise CheckpointError(f"config.json: no encoder is registered as {config.encoder!r}; registered: {known}")
    return _ENCODERS[config.encoder](config)
