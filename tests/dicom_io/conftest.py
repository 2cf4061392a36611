"""What the tests of DICOM input share: the test data, series made in memory, and dcm2niix as the second opinion."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from series_factory import SHARED_DICOM, make_files


@pytest.fixture
def flair_files(tmp_path: Path) -> list[Path]:
    """A sound axial FLAIR series of 21 slices in `tmp_path / "series"`."""
    return make_files(tmp_path / "series")


@pytest.fixture(scope="session")
def shared_dicom() -> Path:
    """Folder of the public DICOM test data."""
    if not SHARED_DICOM.is_dir():
        pytest.skip("the shared DICOM data is not beside the checkout")
    return SHARED_DICOM


@pytest.fixture(scope="session")
def dcm2niix() -> str:
    """The dcm2niix binary."""
    found = shutil.which("dcm2niix", path=str(Path(sys.executable).parent)) or shutil.which("dcm2niix")
    if found is None:
        pytest.skip("dcm2niix (PyPI) is not installed")
    return found
