import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from second_opinion import assert_same_voxels, converted_by_dcm2niix
from series_factory import MARK_RAS as BRAIN_MARK
from series_factory import SHARED_DATA, brain, only_series
from series_factory import mark_in as brain_mark

from dicom_io.select.selection import SelectionRules, judge
from dicom_io.series.group import scan_folder
from dicom_io.series_writer import write_series
from dicom_io.volume.nifti import convert_series

MARK_RAS = np.array([-40.0, 30.0, 20.0])
"""In the left frontal region."""


def head() -> nib.Nifti1Image:
    """A head of 2 x 2 x 3 mm with a bright mark on the patient's left, in front, above."""
    rng = np.random.default_rng(1)
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    affine[:3, 3] = (-79.0, -98.0, -60.0)
    voxels = rng.integers(50, 400, (80, 99, 45)).astype(np.int16)
    i, j, k = np.rint(np.linalg.inv(affine) @ np.append(MARK_RAS, 1)).astype(int)[:3]
    voxels[i - 2 : i + 3, j - 2 : j + 3, k - 1 : k + 2] = 4000
    return nib.Nifti1Image(voxels, affine)


def mark_in(image: nib.Nifti1Image) -> np.ndarray:
    """Centre of the bright mark, RAS mm."""
    voxels = np.asarray(image.dataobj, dtype=float)
    centre = np.argwhere(voxels > 0.9 * voxels.max()).mean(axis=0)
    return (image.affine @ np.append(centre, 1))[:3]


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
@pytest.mark.parametrize("degrees", [0.0, 12.0])
@pytest.mark.parametrize("stored", ["RAS", "LPI", "PSR"])
def test_the_mark_stays_where_it_was(tmp_path: Path, plane: str, degrees: float, stored: str) -> None:
    source = head()
    order = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(source.affine), nib.orientations.axcodes2ornt(stored)
    )
    write_series(source.as_reoriented(order), tmp_path / "series", plane=plane, oblique_degrees=degrees)
    [series] = scan_folder(tmp_path / "series").series
    verdict = judge(series, SelectionRules())
    assert verdict.accepted, [str(r) for r in verdict.reasons]
    converted = nib.load(convert_series(series, tmp_path / "volume.nii.gz").volume_path)
    assert nib.aff2axcodes(converted.affine) == ("R", "A", "S")
    assert np.allclose(mark_in(converted), MARK_RAS, atol=2.0)
    if degrees == 0:
        assert np.array_equal(np.asarray(converted.dataobj), np.asarray(source.dataobj))
        assert np.allclose(converted.affine, source.affine, atol=1e-4)


def test_dciodvfy_finds_no_error(tmp_path: Path) -> None:
    files = write_series(head(), tmp_path)
    tool = shutil.which("dciodvfy", path=str(Path(sys.executable).parent)) or shutil.which("dciodvfy")
    if tool is None:
        pytest.skip("dciodvfy is not installed")
    said = subprocess.run([tool, str(files[20])], capture_output=True, text=True, check=False)
    assert "MRImage" in said.stderr + said.stdout
    assert not [line for line in (said.stdout + said.stderr).splitlines() if line.startswith("Error")]


def test_overrides_replace_and_remove(tmp_path: Path) -> None:
    import pydicom

    files = write_series(head(), tmp_path, overrides={"SeriesDescription": "t1_mprage", "InversionTime": None})
    dataset = pydicom.dcmread(files[0])
    assert dataset.SeriesDescription == "t1_mprage"
    assert "InversionTime" not in dataset


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
@pytest.mark.parametrize("degrees", [0.0, 21.0])
def test_dcm2niix_reads_the_same_places(tmp_path: Path, dcm2niix: str, plane: str, degrees: float) -> None:
    write_series(brain(), tmp_path / "series", plane=plane, oblique_degrees=degrees)
    conversion = convert_series(only_series(tmp_path / "series"), tmp_path / "volume.nii.gz")
    theirs = converted_by_dcm2niix(dcm2niix, tmp_path / "series", tmp_path / "other")
    assert_same_voxels(nib.load(conversion.volume_path), theirs)
    values = np.asanyarray(theirs.dataobj)
    assert np.allclose(brain_mark(values, theirs.affine), BRAIN_MARK, atol=5)  # by their reading alone


def test_different_volumes_get_different_uids(tmp_path: Path) -> None:
    other = nib.Nifti1Image(np.asanyarray(brain().dataobj)[::-1], brain().affine)
    write_series(brain(), tmp_path / "a")
    write_series(other, tmp_path / "b")
    assert len({s.series_uid for s in scan_folder(tmp_path).series}) == 2


@pytest.mark.slow
@pytest.mark.shared_data
@pytest.mark.parametrize("volume", sorted((SHARED_DATA / "nifti").rglob("*.nii.gz")), ids=lambda p: p.name)
@pytest.mark.parametrize("plane", ["axial", "sagittal"])
def test_real_volumes_survive_the_way_through_dicom(volume: Path, plane: str, tmp_path: Path) -> None:
    write_series(volume, tmp_path / "series", plane=plane)
    conversion = convert_series(only_series(tmp_path / "series"), tmp_path / "volume.nii.gz")
    assert_same_voxels(nib.load(conversion.volume_path), nib.load(volume))
