"""Files and folders that are there whole or not at all, and survive a power cut."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydicom import Dataset


@contextmanager
def whole(path: Path, *, alone: bool = True) -> Iterator[Path]:
    """A place to write a file or a folder, which becomes `path` if all goes well and vanishes otherwise.

    The place is beside `path`, with the same ending; nothing is there yet, and the caller makes it a file or a folder.
    When the block ends it is made durable, takes the name, and replaces what had the name before.

    Args:
        path: What is written.
        alone: Nobody else writes it meanwhile, so what lies in the place was left by a run that was killed.
    """
    draft = path.with_name(f".part-{path.name}" if alone else f".part-{uuid.uuid4().hex}-{path.name}")
    _remove(draft)
    try:
        yield draft
        for inside in draft.rglob("*") if draft.is_dir() else ():
            sync(inside)
        sync(draft)
        if path.is_dir():
            shutil.rmtree(path)
        draft.rename(path)
        sync(path.parent)
    finally:
        _remove(draft)


def save_durably(dataset: Dataset, path: Path) -> None:
    """Write a dataset as a DICOM file (PS3.10) and return when it is on disk, whole."""
    with whole(path) as draft:
        dataset.save_as(draft, enforce_file_format=True)


def sync(path: Path) -> None:
    """Make a file or a folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    """Remove a file or a folder that may be there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
