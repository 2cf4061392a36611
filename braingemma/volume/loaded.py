"""A volume as a tensor that knows how it was read, so that weights which need another reading refuse it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from braingemma.configuration import VolumeSettings
from braingemma.errors import VolumeError

KEPT_BY = frozenset(
    {
        *(Tensor.to, Tensor.cpu, Tensor.cuda, Tensor.pin_memory, Tensor.float, Tensor.half, Tensor.bfloat16),
        *(Tensor.double, Tensor.clone, Tensor.detach, Tensor.contiguous, Tensor.unsqueeze, torch.unsqueeze),
        *(torch.clone, torch.detach, torch.cat, torch.concat),
    }
)
"""What changes neither the order of the voxels nor what their values mean. Everything else gives a plain tensor."""


class LoadedVolume(Tensor):
    """(B, 1, D, H, W) voxels with the settings that they were read by; otherwise a tensor like any other."""

    settings: VolumeSettings

    @classmethod
    def of(cls, tensor: Tensor, settings: VolumeSettings) -> LoadedVolume:
        """`tensor` (its own memory) with its settings."""
        loaded = tensor.as_subclass(cls)
        loaded.settings = settings
        return loaded

    @property
    def plain(self) -> Tensor:
        """The same memory as an ordinary tensor."""
        return self.as_subclass(Tensor)

    def __deepcopy__(self, memo: dict[int, Any]) -> LoadedVolume:
        memo[id(self)] = copied = LoadedVolume.of(self.plain.clone(), self.settings)
        return copied

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Compute as if nothing was recorded, and hand the record on where it still holds."""
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
        if func not in KEPT_BY or not isinstance(result, Tensor):
            return result
        parts = args[0] if isinstance(args[0], list | tuple) else args[:1]
        known = [getattr(part, "settings", None) for part in parts]
        return result if known[0] is None or any(k != known[0] for k in known) else cls.of(result, known[0])


def checked(volume: Tensor, needed: VolumeSettings, *, any_grid: bool = False) -> Tensor:
    """The plain tensor of a volume, if it was read as some weights need it, or if nobody says how it was read.

    Args:
        volume: (B, 1, D, H, W).
        needed: The settings of the weights.
        any_grid: Whether these weights take any size.

    Raises:
        VolumeError: names each setting by which it was read otherwise.
    """
    if not isinstance(volume, LoadedVolume):
        return volume
    got, want = dataclasses.asdict(volume.settings), dataclasses.asdict(needed)
    if any_grid:
        got.pop("grid")
    other = [name for name in got if got[name] != want[name]]
    if other:
        was, wants = (", ".join(f"{name} {facts[name]}" for name in other) for facts in (got, want))
        raise VolumeError(
            f"this volume was read with {was}, but these weights need {wants}: read it by "
            "load_nifti_volume(path, config=model.config)"
        )
    return volume.plain
