"""Conversion held against other hands: dcm2niix, and the expected conversions that ship with the public data."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from second_opinion import assert_same_voxels, converted_by_dcm2niix
from series_factory import MARK_RAS, make_files, mark_in

from dicom_io.errors import ConversionError, DicomIoError, GeometryError
from dicom_io.select.selection import judge
from dicom_io.series.group import Series, scan_files, scan_folder
from dicom_io.volume.converters import by_dicom2nifti, by_highdicom
from dicom_io.volume.nifti import convert_series
from dicom_io.volume.pixels import SourcePixels
from dicom_io.volume.stack import series_geometry

pytestmark = pytest.mark.shared_data

VOLUMES = (
    "dcm_qa_xa30_BSD2/5_anat-T1w_acq-tfl",
    "dicom2nifti_MIT/ge/anatomical/001",
    "dicom2nifti_MIT/ge/anatomical/001_implicit",
    "dicom2nifti_MIT/generic/anatomical/001",
    "dicom2nifti_MIT/generic/anatomical/001_implicit",
    "dicom2nifti_MIT/generic/anatomical/002_non_isotropic",
    "dicom2nifti_MIT/generic/compressed/001",
    "dicom2nifti_MIT/generic/compressed_j2k/001",
    "dicom2nifti_MIT/generic/compressed_jpeg/001",
    "dicom2nifti_MIT/generic/compressed_jpegls/001",
    "dicom2nifti_MIT/generic/compressed_rle/001",
    "dicom2nifti_MIT/hitachi/anatomical/001",
    "dicom2nifti_MIT/hitachi/anatomical/001_implicit",
    "dicom2nifti_MIT/hyperfine/anatomical/001",
    "dicom2nifti_MIT/philips/anatomical/001",
    "dicom2nifti_MIT/philips/anatomical/001_implicit",
    "dicom2nifti_MIT/philips_enhanced/anatomical/001",
    "dicom2nifti_MIT/philips_enhanced/anatomical/001_implicit",
    "dicom2nifti_MIT/siemens/anatomical/001",
    "dicom2nifti_MIT/siemens/anatomical/001_implicit",
    "dicom2nifti_MIT/siemens_multiframe/anatomical/001",
)
"""Every folder of the public data that holds one volume."""

REFUSED = (
    ("dcm_qa_table_GE3plane_BSD2", GeometryError, "mixed orientations: .* got 3 orientations: 7 at"),
    ("dcm_qa_ts_BSD2", GeometryError, "mosaic"),
    ("pydicom-data_emri_MIT", GeometryError, "expected functional groups for its 10 frames, got none"),
    ("dicom2nifti_MIT/ge/anatomical/001_single_slice", GeometryError, "too few slices: expected at least 4, got 1"),
    ("dicom2nifti_MIT/generic/rgb/001", ConversionError, "expected a grayscale image, got RGB with 3 samples"),
    ("dicom2nifti_MIT/failing/gantrytilting/001", GeometryError, "gantry tilt: .* 14.0 degrees off"),
    ("dicom2nifti_MIT/failing/notavolume/001", GeometryError, "not a volume: all 4 images lie at"),
    ("dicom2nifti_MIT/failing/slicecount/001", GeometryError, "too few slices: expected at least 4, got 2"),
    (
        "dicom2nifti_MIT/failing/sliceincrement/001",
        GeometryError,
        r"missing slices: a stack every 5.000 mm lacks 1 of 5, at \(-123.50, -115.20, 33.11\)",
    ),
    (
        "dicom2nifti_MIT/failing/sliceincrement/002",
        GeometryError,
        r"missing slices: a stack every 0.750 mm lacks 1 of 5, at \(-130.74, -316.10, -50.36\)",
    ),
    ("dicom2nifti_MIT/failing/sliceorientation/001", GeometryError, "mixed orientations: .* got 2 orientations: 2 at"),
)


SLOPE_BY_SLICE = "dicom2nifti_MIT/generic/anatomical/002_non_isotropic"
"""RescaleSlope differs between slices: with `-p n` dcm2niix warns that it ignores this, with `-p y` it does not."""


def only_series(folder: Path) -> Series:
    [series] = scan_folder(folder).series
    return series


@pytest.mark.parametrize("name", VOLUMES)
def test_volume_agrees_with_dcm2niix(name: str, shared_dicom: Path, dcm2niix: str, tmp_path: Path) -> None:
    conversion = convert_series(only_series(shared_dicom / name), tmp_path / "volume.nii.gz")
    image = nib.load(conversion.volume_path)
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    precise = "y" if name == SLOPE_BY_SLICE else "n"
    assert_same_voxels(image, converted_by_dcm2niix(dcm2niix, shared_dicom / name, tmp_path / "other", precise))


@pytest.mark.parametrize("name", [n for n in VOLUMES if n.startswith("dicom2nifti")])
def test_volume_agrees_with_the_expected_conversion(name: str, shared_dicom: Path, tmp_path: Path) -> None:
    folder = shared_dicom / name
    convert_series(only_series(folder), tmp_path / "volume.nii.gz")
    expected = nib.load(folder.with_name(f"{folder.name}_ground_truth.nii.gz"))
    assert_same_voxels(nib.load(tmp_path / "volume.nii.gz"), expected)


def test_every_expected_conversion_is_of_a_listed_folder(shared_dicom: Path) -> None:
    suffix = "_ground_truth.nii.gz"
    paths = [p.relative_to(shared_dicom) for p in shared_dicom.rglob(f"*{suffix}")]
    truths = {p.with_name(p.name.removesuffix(suffix)).as_posix() for p in paths}
    assert truths - {name for name, *_ in REFUSED} == {n for n in VOLUMES if n.startswith("dicom2nifti")}


@pytest.mark.parametrize(("name", "error", "reason"), REFUSED, ids=[name for name, *_ in REFUSED])
def test_what_is_no_volume_is_refused_with_the_reason(
    name: str, error: type[DicomIoError], reason: str, shared_dicom: Path, tmp_path: Path
) -> None:
    series = only_series(shared_dicom / name)
    with pytest.raises(error, match=reason):
        convert_series(series, tmp_path / "volume.nii.gz")
    assert list(tmp_path.iterdir()) == []
    assert not judge(series).accepted


def test_several_temporal_positions_are_refused(shared_dicom: Path, tmp_path: Path) -> None:
    path = shared_dicom / "canon_enh_3000_BSD2.dcm"
    [series] = scan_files(path.parent, [path]).series
    with pytest.raises(GeometryError, match="520 images at 40 positions that differ in TemporalPositionIndex"):
        convert_series(series, tmp_path / "volume.nii.gz")


def test_the_truncated_file_is_a_problem(shared_dicom: Path) -> None:
    scan = scan_folder(shared_dicom / "pydicom-data_emri_MIT")
    reasons = {p.path.name: p.reason for p in scan.problems}
    assert reasons["emri_small_jpeg_2k_lossless_too_short.dcm"].startswith("truncated: the file ends after")
    assert len(scan.series) == 1


def test_every_folder_is_in_one_list(shared_dicom: Path) -> None:
    files = [p for p in shared_dicom.rglob("*") if p.is_file() and not p.name.endswith(".nii.gz")]
    listed = [*VOLUMES, *(name for name, *_ in REFUSED), "canon_enh_3000_BSD2.dcm"]
    places = [p.relative_to(shared_dicom).as_posix() for p in files]
    assert [p for p in places if not any(p == n or p.startswith(f"{n}/") for n in listed)] == []


@pytest.mark.parametrize("name", VOLUMES)
def test_both_converters_agree_where_both_work(name: str, shared_dicom: Path) -> None:
    series = only_series(shared_dicom / name)
    datasets = SourcePixels(series, series_geometry(series)).converted()
    try:
        first, second = by_dicom2nifti(datasets), by_highdicom(datasets)
    except ConversionError as refusal:
        pytest.skip(f"one refuses: {refusal}")
    assert_same_voxels(second, first)


def test_a_side_that_is_wrong_would_be_noticed(shared_dicom: Path, tmp_path: Path) -> None:
    """The comparison itself can fail: a mirrored volume is not the same."""
    series = only_series(shared_dicom / VOLUMES[1])
    image = nib.load(convert_series(series, tmp_path / "volume.nii.gz").volume_path)
    mirrored = nib.Nifti1Image(np.asanyarray(image.dataobj)[::-1], image.affine)
    with pytest.raises(AssertionError):
        assert_same_voxels(mirrored, image)


@pytest.mark.parametrize("degrees", [0.0, 15.0])
@pytest.mark.parametrize("plane", ["axial", "sagittal", "coronal"])
def test_a_written_series_means_the_same_to_dcm2niix(plane: str, degrees: float, dcm2niix: str, tmp_path: Path) -> None:
    """The mark is on the left for both: the writer and the reader of this package do not share one mistake."""
    make_files(tmp_path / "series", plane=plane, oblique_degrees=degrees)
    convert_series(only_series(tmp_path / "series"), tmp_path / "volume.nii.gz")
    ours = nib.load(tmp_path / "volume.nii.gz")
    theirs = converted_by_dcm2niix(dcm2niix, tmp_path / "series", tmp_path / "other")
    assert_same_voxels(ours, theirs)
    for image in (ours, theirs):
        assert np.allclose(mark_in(np.asarray(image.dataobj), image.affine), MARK_RAS, atol=4.0)
