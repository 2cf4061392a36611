"""Files that survive a power cut."""

from __future__ import annotations

import os
from pathlib import Path

from pydicom import Dataset


def save_durably(dataset: Dataset, path: Path) -> None:
    """Write a dataset as a DICOM file (PS3.10) and return when it is on disk."""
    dataset.save_as(path, enforce_file_format=True)
    sync(path)


def sync(path: Path) -> None:
    """Make a file or a folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
