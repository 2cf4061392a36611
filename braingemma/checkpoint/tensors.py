"""Named tensors in files, read one at a time and matched strictly with what a module needs."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from braingemma.checkpoint.weights import read_json
from braingemma.errors import CheckpointError

CHECKED_AT_ONCE = 1 << 24
"""Numbers that are checked at once."""
Rename = Callable[[str], str | None]
"""A key of a file to the name of a parameter; None: a tensor that this model has no use for."""


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of one file, not read yet."""

    file: Path
    key: str
    shape: tuple[int, ...]
    read: Callable[[], Tensor]


def weight_files(folder: Path) -> list[Path]:
    """The files of a folder that hold its tensors: safetensors where there are any, else `.bin`."""
    for pattern in ("*.safetensors", "*.bin"):
        indexes = sorted(folder.glob(f"{pattern}.index.json"))
        if indexes:
            return [folder / name for name in sorted(set(read_json(indexes[0])["weight_map"].values()))]
        files = sorted(folder.glob(pattern))
        if files:
            return files
    raise CheckpointError(f"{folder}: no weights found: expected *.safetensors")


def stored_tensors(files: list[Path]) -> Iterator[StoredTensor]:
    """All tensors of some files, file by file."""
    for file in files:
        yield from _safetensors(file) if file.suffix == ".safetensors" else _pickled(file)


def _safetensors(file: Path) -> Iterator[StoredTensor]:
    try:
        with safe_open(file, framework="pt") as handle:
            for key in handle.keys():  # noqa: SIM118  (the handle is no dict)
                shape = tuple(handle.get_slice(key).get_shape())
                yield StoredTensor(file, key, shape, partial(handle.get_tensor, key))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: not readable as safetensors: {error}") from error


def read_pickled(file: Path) -> Any:
    """What a `.pt` or `.bin` file holds; only tensors and plain containers are let in."""
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{file}: not readable as tensors alone: {' '.join(str(error).split())[:200]}") from error


def _pickled(file: Path) -> Iterator[StoredTensor]:
    content = read_pickled(file)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{file}: expected named tensors, got {type(content).__name__}")
    for key, value in content.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{file}: key {key}: expected a tensor, got {type(value).__name__}")
        yield StoredTensor(file, str(key), tuple(value.shape), value.detach)


def match(
    expected: Mapping[str, tuple[int, ...]], stored: Iterator[StoredTensor], rename: Rename, where: Path
) -> Iterator[tuple[str, StoredTensor]]:
    """Pair each stored tensor with the parameter it is for; every parameter exactly once, of its very shape.

    Args:
        expected: Shape of each parameter that must be there.
        stored: What the files hold.
        rename: See `Rename`.
        where: What a message about missing keys names.

    Raises:
        CheckpointError: names the file and the key.
    """
    seen: set[str] = set()
    for tensor in stored:
        name = rename(tensor.key)
        if name is None:
            continue
        if name not in expected:
            raise CheckpointError(f"{tensor.file}: key {tensor.key} is unexpected: the model has no {name}")
        if name in seen:
            raise CheckpointError(f"{tensor.file}: key {tensor.key}: {name} is there twice")
        if tensor.shape != expected[name]:
            raise CheckpointError(
                f"{tensor.file}: key {tensor.key}: expected shape {expected[name]}, got {tensor.shape}"
            )
        seen.add(name)
        yield name, tensor
    missing = sorted(expected.keys() - seen)
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise CheckpointError(f"{where}: missing keys: {', '.join(missing[:5])}{more}")


def read_finite(tensor: StoredTensor) -> Tensor:
    """Read a tensor.

    Raises:
        CheckpointError: it cannot be read, or holds NaN or infinite values.
    """
    try:
        value = tensor.read()
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{tensor.file}: key {tensor.key}: not readable: {error}") from error
    # In parts: of the embeddings of a large vocabulary the answer alone would take 0.7 GB, and what leads to it 3 GB.
    if value.is_floating_point() and not all(bool(p.isfinite().all()) for p in value.flatten().split(CHECKED_AT_ONCE)):
        raise CheckpointError(f"{tensor.file}: key {tensor.key}: holds values that are not finite")
    return value


def put(module: nn.Module, name: str, value: Tensor) -> None:
    """Make `value` the parameter or buffer `name` of a module, in place of a placeholder without storage."""
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    if leaf in owner._buffers:
        owner._buffers[leaf] = value
        return
    trainable = owner._parameters[leaf].requires_grad  # type: ignore[union-attr]
    owner._parameters[leaf] = nn.Parameter(value, requires_grad=trainable and value.is_floating_point())


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of a module's state; a tied parameter counts once, under its first name."""
    names = {name for name, _ in module.named_parameters()} | {name for name, _ in module.named_buffers()}
    return {name: tuple(value.shape) for name, value in module.state_dict().items() if name in names}
