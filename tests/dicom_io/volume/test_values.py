"""Stored bits to values: every trap of PS3.5 8.1 and PS3.3 C.7.6.3, with dcmtk (behind GDCM) as the second opinion."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom import Dataset
from pydicom.pixels import set_pixel_data
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless
from second_opinion import decompressed_by_gdcm, displayed_by_dcmtk
from series_factory import MARK_RAS, as_enhanced, brain, edit_files, make_files, mark_in, only_series

from dicom_io.errors import ConversionError
from dicom_io.volume.nifti import Conversion, convert_series

TRUTH = np.asarray(brain().dataobj)
"""Values below 4096."""
Edit = Callable[[Dataset, int], None]


def smooth() -> nib.Nifti1Image:
    """Like anatomy: a bright sphere of up to 4000 with soft edges on black."""
    grid = np.indices(TRUTH.shape, dtype=np.float64)
    radius = np.sqrt(sum(((g - n / 2) / (0.4 * n)) ** 2 for g, n in zip(grid, TRUTH.shape, strict=True)))
    return nib.Nifti1Image((4000 / (1 + np.exp(8 * (radius - 1)))).astype(np.int16), brain().affine)


def cells_of(dataset: Dataset) -> np.ndarray:
    return np.frombuffer(dataset.PixelData, "<u2").reshape(dataset.Rows, dataset.Columns).copy()


def with_overlay(cells: np.ndarray) -> np.ndarray:
    """An overlay in the unused bits 12 to 15."""
    plane = np.zeros_like(cells)
    plane[4:9, 6:30] = 1
    plane[20:23] = 5
    return np.asarray(cells | plane << 12)


def shifted_up(dataset: Dataset, _: int) -> None:
    dataset.PixelData = (cells_of(dataset) << 4 | 0x5).tobytes()
    dataset.HighBit = 15


def overlaid(dataset: Dataset, _: int) -> None:
    dataset.PixelData = with_overlay(cells_of(dataset)).tobytes()


def overlaid_in(syntax: pydicom.uid.UID) -> Edit:
    """As other toolkits write it: a codestream of whole cells, of which the header counts 12 bits."""

    def edit(dataset: Dataset, _: int) -> None:
        cells = with_overlay(cells_of(dataset))
        set_pixel_data(dataset, cells, "MONOCHROME2", 16, generate_instance_uid=False)
        dataset.compress(syntax, generate_instance_uid=False)
        dataset.BitsStored, dataset.HighBit = 12, 11

    return edit


def every_other_mirrored(dataset: Dataset, index: int) -> None:
    if index % 2:
        dataset.PixelData = (4095 - cells_of(dataset)).tobytes()
        dataset.PhotometricInterpretation = "MONOCHROME1"


def signed_without_sign_bits(dataset: Dataset, _: int) -> None:
    dataset.PixelData = ((cells_of(dataset).astype(np.int32) - 2048) & 0xFFF).astype("<u2").tobytes()
    dataset.PixelRepresentation, dataset.RescaleIntercept, dataset.RescaleSlope = 1, "2048", "1"


TRAPS = {
    "HighBit 15": shifted_up,
    "overlay, native": overlaid,
    "overlay, JPEG 2000": overlaid_in(JPEG2000Lossless),
    "overlay, JPEG-LS": overlaid_in(JPEGLSLossless),
    "MONOCHROME1 by slice": every_other_mirrored,
    "signed": signed_without_sign_bits,
}


def converted(folder: Path) -> tuple[Conversion, np.ndarray, np.ndarray]:
    conversion = convert_series(only_series(folder), folder.with_suffix(".nii.gz"))
    image = nib.load(conversion.volume_path)
    return conversion, np.asarray(image.dataobj), image.affine


@pytest.mark.parametrize("trap", TRAPS)
def test_the_values_are_those_that_dcmtk_shows(tmp_path: Path, trap: str) -> None:
    files = make_files(tmp_path / "s", edit=TRAPS[trap])
    conversion, volume, affine = converted(tmp_path / "s")
    assert np.array_equal(volume, TRUTH)
    assert np.allclose(mark_in(volume, affine), MARK_RAS, atol=4.5)
    if shutil.which("dcmj2pnm") is None:
        pytest.skip("dcmtk is not installed")
    path = files[10]
    if pydicom.dcmread(path).file_meta.TransferSyntaxUID != ExplicitVRLittleEndian:
        decompressed_by_gdcm(path)
        # GDCM counts all bits of a JPEG 2000 codestream as stored; how many are is what the header says
        edit_files([path], lambda d, _: [setattr(d, "BitsStored", 12), setattr(d, "HighBit", 11)])
    ours = TRUTH[::-1, ::-1, 10].T.astype(float)  # stored LPS
    ours = (ours - ours.min()) / (ours.max() - ours.min())
    assert np.abs(displayed_by_dcmtk(path) - ours).max() < 1e-3
    assert any("BitsStored" in w for w in conversion.warnings) == trap.startswith("overlay")


@pytest.mark.parametrize(
    ("bits", "signed", "value", "limit"),
    [(16, 0, 65535, None), (16, 0, -1, None), (16, 1, 32767, None), (16, 0, 60000, 65535), (12, 0, 65535, None),
     (16, 1, -32768, -32000)],
)  # fmt: skip
def test_padding_is_background(tmp_path: Path, bits: int, signed: int, value: int, limit: int | None) -> None:
    """Bright padding in a corner, declared in either sign, by a range, or with more bits than are stored."""

    def edit(dataset: Dataset, _: int) -> None:
        cells = cells_of(dataset)
        cells[:9, :9] = value & 0xFFFF
        dataset.PixelData = cells.tobytes()
        dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = bits, bits - 1, signed
        dataset.add_new("PixelPaddingValue", "SS" if value < 0 else "US", value)
        if limit is not None:
            dataset.add_new("PixelPaddingRangeLimit", "SS" if limit < 0 else "US", limit)

    make_files(tmp_path / "s", edit=edit)
    conversion, volume, affine = converted(tmp_path / "s")
    expected = TRUTH.copy()
    expected[-9:, -9:] = 0  # stored LPS: the first columns are the patient's right, the first rows the front
    assert np.array_equal(volume, expected)
    assert np.allclose(mark_in(volume, affine), MARK_RAS, atol=4.5)
    assert any(w.startswith(f"{21 * 81} pixels of padding") for w in conversion.warnings)


def test_padding_of_zero_changes_nothing(tmp_path: Path) -> None:
    make_files(tmp_path / "s", edit=lambda d, _: d.add_new("PixelPaddingValue", "US", 0))
    assert np.array_equal(converted(tmp_path / "s")[1], TRUTH)


def test_values_beyond_the_stored_bits_are_refused(tmp_path: Path) -> None:
    """Taken by the header alone, the brightest would come out dark."""
    make_files(tmp_path / "s", smooth(), edit=lambda d, _: setattr(d, "BitsStored", 11) or setattr(d, "HighBit", 10))
    with pytest.raises(ConversionError, match="do not fit the 11 bits"):
        converted(tmp_path / "s")


def test_overlay_bits_on_smooth_anatomy_are_no_overflow(tmp_path: Path) -> None:
    make_files(tmp_path / "s", smooth(), edit=overlaid)
    assert np.array_equal(converted(tmp_path / "s")[1], np.asarray(smooth().dataobj))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"HighBit": 15}, "HighBit 15 says that values lie in the upper bits"),
        ({"BitsStored": 14}, "contradict each other: BitsAllocated 16, BitsStored 14, HighBit 11"),
        ({"BitsAllocated": 1}, "expected BitsAllocated 8, 16 or 32, got 1"),
        ({"RescaleSlope": "0", "RescaleIntercept": "0"}, r"^0001.dcm: RescaleSlope is 0[^;]*$"),
        ({"RescaleSlope": "1e300", "RescaleIntercept": "1e300"}, "give no finite values"),
    ],
)
def test_what_cannot_be_trusted_is_refused_with_the_reason(tmp_path: Path, change: dict, reason: str) -> None:
    make_files(tmp_path / "s", edit=lambda d, _: [setattr(d, k, v) for k, v in change.items()])
    with pytest.raises(ConversionError, match=reason):
        converted(tmp_path / "s")
    assert not (tmp_path / "s.nii.gz").exists()


def test_a_codestream_of_another_size_is_not_decoded(tmp_path: Path) -> None:
    files = make_files(tmp_path / "s")
    for path in files:
        dataset = pydicom.dcmread(path)
        dataset.compress(JPEG2000Lossless, generate_instance_uid=False)
        dataset.Rows += 1
        dataset.save_as(path)
    with pytest.raises(ConversionError, match="expected compressed pixels of 41 x 36, got a codestream of 40 x 36"):
        converted(tmp_path / "s")


def mapped(files: list[Path], slope: Callable[[int], float], out: Path, *, rescaled: bool = False) -> None:
    """An enhanced instance whose frames carry Real World Value Mappings."""
    as_enhanced(files, out / "e.dcm", scramble=False, shared_rescale=rescaled)

    def edit(dataset: Dataset, _: int) -> None:
        for index, frame in enumerate(dataset.PerFrameFunctionalGroupsSequence):
            mapping = Dataset()
            mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept = slope(index), 3.0
            frame.RealWorldValueMappingSequence = Sequence([mapping])

    edit_files([out / "e.dcm"], edit)


def test_a_real_world_value_mapping_is_no_rescale(tmp_path: Path) -> None:
    files = make_files(tmp_path / "s")
    mapped(files, lambda _: 0.5, tmp_path / "e")
    assert np.array_equal(converted(tmp_path / "e")[1], TRUTH)
    mapped(files, lambda index: 0.5 + 0.1 * index, tmp_path / "r", rescaled=True)
    assert np.allclose(converted(tmp_path / "r")[1], TRUTH * 2.5 - 10)
    mapped(files, lambda index: 0.5 + 0.1 * index, tmp_path / "n")
    with pytest.raises(ConversionError, match=r"slope 0.5 to 2.5 and no rescale: their stored values have no common"):
        converted(tmp_path / "n")
