"""Overlays taken apart without being decoded: what is read of them is what pydicom reads."""

from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.uid import ImplicitVRLittleEndian
from results_factory import default_pack

from dicom_io.errors import PackError
from dicom_io.objects.kinds import SC
from dicom_io.pack.alike import apart


def overlays() -> tuple[Path, Path]:
    first, *_, last = default_pack()[1].of_kind("sc")
    return first.path, last.path


def test_own_and_shared_are_all_that_pydicom_reads() -> None:
    (own, shared), (other, others_shared) = (apart(path, SC.own) for path in overlays())
    for path, found in zip(overlays(), (own, other), strict=True):
        header = dcmread(path, stop_before_pixels=True)
        assert all(found[keyword] == header[keyword] for keyword in SC.own - {"PixelData"})
        elements = {*header.keys(), *header.file_meta.keys()} - {0x00020000, 0x00020003}
        assert {*found.keys(), *shared} == elements
    assert own.SOPInstanceUID != other.SOPInstanceUID
    assert shared == others_shared


@pytest.mark.parametrize("kept", [200, -1_000_000])
def test_a_file_that_is_cut_off_is_said_so(kept: int, tmp_path: Path) -> None:
    content = overlays()[0].read_bytes()
    end = kept if kept > 0 else content.rindex(b"\xe0\x7f\x10\x00OB")
    (tmp_path / "cut.dcm").write_bytes(content[:end])
    with pytest.raises(PackError, match=r"cut\.dcm: expected a whole DICOM file"):
        apart(tmp_path / "cut.dcm", SC.own)


def test_another_encoding_is_not_guessed_at(tmp_path: Path) -> None:
    header = dcmread(overlays()[0])
    header.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    header.save_as(tmp_path / "implicit.dcm", implicit_vr=True)
    with pytest.raises(PackError, match=r"implicit\.dcm: expected"):
        apart(tmp_path / "implicit.dcm", SC.own)
