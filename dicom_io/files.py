"""Files and folders: all that lie below one; written whole or not at all, so that they survive a power cut."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydicom import Dataset


NOWHERE = "a link that leads nowhere"


def files_below(
    folder: Path, leave_out: Callable[[Path], bool] = lambda _: False
) -> tuple[list[Path], list[tuple[Path, str]]]:
    """Every file below a folder; links are followed, and a folder to which several lead is gone through once.

    Args:
        folder: Any nesting.
        leave_out: Asked of each folder below it; where it says yes, nothing in that one is looked at.

    Returns:
        The files, and (path, reason) of what cannot be looked at: folders that may not be read, links that lead
        nowhere; both in the order of their paths.
    """
    files: list[Path] = []
    problems: list[tuple[Path, str]] = []

    def told(error: OSError) -> None:
        problems.append((Path(error.filename), f"cannot be read: {error.strerror}"))

    seen = {str(above) for above in Path(os.path.realpath(folder)).parents}  # a link to one of them is a circle
    waiting = [folder]
    while waiting:  # folders before links to them, so that a link changes no path
        for root, folders, names in os.walk(waiting.pop(0), onerror=told):
            if (place := os.path.realpath(root)) in seen:
                folders.clear()
                continue
            seen.add(place)
            folders[:] = sorted(name for name in folders if not leave_out(Path(root, name)))
            # os.path: a folder may be listed without the right to look at what it names
            waiting += [path for name in folders if os.path.islink(path := Path(root, name))]  # noqa: PTH114
            for path in (Path(root, name) for name in names):
                try:
                    if stat.S_ISREG(path.stat().st_mode):
                        files.append(path)
                except OSError as error:
                    nowhere = error.errno in (errno.ENOENT, errno.ELOOP)
                    problems.append((path, NOWHERE if nowhere else f"cannot be read: {error.strerror}"))
    return sorted(files), sorted(problems)


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
