from pathlib import Path

import pytest
from series_factory import SHARED_DICOM, make_files


@pytest.fixture
def flair_files(tmp_path: Path) -> list[Path]:
    """A sound axial FLAIR series of 21 slices in `tmp_path / "series"`."""
    return make_files(tmp_path / "series")


@pytest.fixture(scope="session")
def shared_dicom() -> Path:
    """Folder of public DICOM files beside the checkout; skips where it is absent."""
    if not SHARED_DICOM.is_dir():
        pytest.skip("the shared test data are not beside this checkout")
    return SHARED_DICOM
