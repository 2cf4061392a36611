from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread
from results_factory import default_pack, flair_header

from dicom_io.content.equipment import is_own_result


@pytest.fixture(scope="module")
def headers() -> list[Dataset]:
    _, pack = default_pack()
    first_of_kind = {item.kind: item.path for item in reversed(pack.objects)}
    assert set(first_of_kind) == {"sr", "sc", "pm", "seg", "tid1500"}
    return [dcmread(path, stop_before_pixels=True) for path in first_of_kind.values()]


def test_each_of_our_objects_is_recognised(headers: list[Dataset]) -> None:
    assert all(is_own_result(header) for header in headers)


def test_it_is_recognised_after_a_pacs_changed_one_of_the_marks(headers: list[Dataset]) -> None:
    for header in headers:
        coerced = Dataset()
        coerced.update(header)
        del coerced.Manufacturer
        coerced.Manufacturer = "PACS VENDOR"
        assert is_own_result(coerced)
        stripped = Dataset()
        stripped.update(header)
        del stripped.ContributingEquipmentSequence
        assert is_own_result(stripped)


def test_a_received_image_is_not_ours() -> None:
    assert not is_own_result(flair_header(0))
    assert not is_own_result(Dataset())
    empty = Dataset()
    empty.ContributingEquipmentSequence = None
    assert not is_own_result(empty)


def test_it_loads_no_imaging_library() -> None:
    program = "import sys, dicom_io.content.equipment; sys.exit('highdicom' in sys.modules)"
    root = Path(__file__).parents[3]
    assert subprocess.run([sys.executable, "-c", program], cwd=root, check=False).returncode == 0
