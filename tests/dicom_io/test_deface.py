"""Pixels outside a mask go from received instances, on the right side, and every other bit stays."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom import Dataset
from pydicom.uid import RLELossless

from dicom_io.deface import deface_instances, shows_no_face
from dicom_io.errors import ConversionError
from dicom_io.series.group import scan_folder
from dicom_io.series_writer import write_series
from dicom_io.volume.nifti import convert_series

AFFINE = np.diag([6.0, 6.0, 12.0, 1.0])


def series(folder: Path, *, compressed: bool = False) -> list[Path]:
    values = np.random.default_rng(3).integers(1, 900, (20, 24, 6)).astype(np.int16)
    values[[0, -1]], values[:, [0, -1]] = 5, 5  # background
    files = write_series(nib.Nifti1Image(values, AFFINE), folder)
    for file in files:
        dataset = pydicom.dcmread(file)
        icon = Dataset()
        icon.Rows, icon.Columns, icon.BitsAllocated, icon.PixelData = 2, 2, 8, b"FACE"
        dataset.IconImageSequence = [icon]
        dataset.add_new(0x60000010, "US", 24)
        dataset.add_new(0x60003000, "OW", b"\1" * 64)
        dataset.private_block(0x0019, "ACME", create=True).add_new(1, "OB", b"\7" * 1000)
        dataset.private_block(0x0019, "ACME").add_new(2, "OB", b"\7" * 8)
        if compressed:
            dataset.compress(RLELossless, generate_instance_uid=False)
        dataset.save_as(file)
    return files


def mask_of(folder: Path, tmp_path: Path) -> tuple[Path, np.ndarray]:
    """Everything but the patient's right half below the third slice; (X, Y, Z) in RAS order."""
    [one] = scan_folder(folder).series
    volume = nib.load(convert_series(one, tmp_path / "whole.nii").volume_path)
    x = (np.indices(volume.shape)[0] * volume.affine[0, 0]) + volume.affine[0, 3]
    keep = ~((x > np.median(x)) & (np.indices(volume.shape)[2] < 3))
    nib.save(nib.Nifti1Image(keep.astype(np.uint8), volume.affine), tmp_path / "keep.nii")
    return tmp_path / "keep.nii", keep


@pytest.mark.parametrize("compressed", [False, True])
def test_what_lies_outside_goes_and_nothing_else(tmp_path: Path, *, compressed: bool) -> None:
    files = series(tmp_path / "in", compressed=compressed)
    keep_path, keep = mask_of(tmp_path / "in", tmp_path)
    [one] = scan_folder(tmp_path / "in").series
    geometry = convert_series(one, tmp_path / "v.nii").geometry
    (tmp_path / "out").mkdir()
    written = deface_instances(one.files, geometry, keep_path, tmp_path / "out")
    assert sorted(written.values()) == sorted(files)
    [after] = scan_folder(tmp_path / "out").series
    defaced = convert_series(after, tmp_path / "after.nii")
    before, now = (np.asarray(nib.load(tmp_path / name).dataobj) for name in ("whole.nii", "after.nii"))
    assert np.array_equal(now[keep], before[keep])
    assert set(np.unique(now[~keep])) == {5}
    assert np.allclose(defaced.geometry.affine_ras, geometry.affine_ras)


def test_instances_get_uids_of_their_own_and_no_other_picture_is_left(tmp_path: Path) -> None:
    series(tmp_path / "in")
    keep_path, _ = mask_of(tmp_path / "in", tmp_path)
    [one] = scan_folder(tmp_path / "in").series
    geometry = convert_series(one, tmp_path / "v.nii").geometry
    (tmp_path / "out").mkdir()
    for new, old in deface_instances(one.files, geometry, keep_path, tmp_path / "out").items():
        after, before = pydicom.dcmread(new), pydicom.dcmread(old)
        assert after.SOPInstanceUID == after.file_meta.MediaStorageSOPInstanceUID != before.SOPInstanceUID
        assert after.SeriesInstanceUID != before.SeriesInstanceUID
        assert after.StudyInstanceUID == before.StudyInstanceUID
        assert after.FrameOfReferenceUID == before.FrameOfReferenceUID
        assert after.RecognizableVisualFeatures == "NO"
        assert "IconImageSequence" not in after
        assert not [e for e in after if e.tag.group == 0x6000]
        assert [len(e.value) for e in after if e.tag.is_private and e.VR == "OB"] == [8]
        assert shows_no_face(after)
        assert not shows_no_face(before)


def test_what_has_no_picture_needs_nothing_done() -> None:
    report = Dataset()
    report.SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.22"
    assert shows_no_face(report)
    report.EncapsulatedDocument = b"%PDF"
    assert not shows_no_face(report)


def test_colour_pictures_are_refused(tmp_path: Path) -> None:
    files = series(tmp_path / "in")
    keep_path, _ = mask_of(tmp_path / "in", tmp_path)
    [one] = scan_folder(tmp_path / "in").series
    geometry = convert_series(one, tmp_path / "v.nii").geometry
    dataset = pydicom.dcmread(files[0])
    dataset.SamplesPerPixel = 3
    dataset.save_as(files[0])
    (tmp_path / "out").mkdir()
    with pytest.raises(ConversionError, match="expected one sample"):
        deface_instances(one.files, geometry, keep_path, tmp_path / "out")
