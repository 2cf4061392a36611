"""Files that others wrote: bounded where they inflate, read past value representations that are none."""

from __future__ import annotations

import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import DeflatedExplicitVRLittleEndian, RLELossless
from series_factory import MARK_RAS, edit_files, make_files, mark_in, only_series, recode

import dicom_io.reading
from dicom_io.content.sources import read_sources
from dicom_io.deidentify import Deidentifier, deidentify_file
from dicom_io.errors import DicomIoError
from dicom_io.reading import read_dataset
from dicom_io.select.selection import judge
from dicom_io.series.file import read_header
from dicom_io.series.group import scan_folder
from dicom_io.series.identities import identities
from dicom_io.volume.nifti import convert_series


def with_odd_representation(path: Path, element: bytes) -> None:
    raw = path.read_bytes()
    at = raw.index(element)
    path.write_bytes(raw[: at + 4] + b"??" + raw[at + 6 :])


@pytest.mark.parametrize(
    ("element", "name"),
    [(b"\x08\x00\x90\x10LO", "ManufacturerModelName"), (b"\x18\x00\x87\x00DS", "MagneticFieldStrength"),
     (b"\x08\x00\x04\x01LO", "CodeMeaning")],
)  # fmt: skip
def test_an_element_without_a_value_representation(tmp_path: Path, element: bytes, name: str) -> None:
    def edit(dataset: Dataset, _: int) -> None:
        code = Dataset()
        code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "T-A0100", "SRT", "Brain"
        dataset.AnatomicRegionSequence = Sequence([code])

    files = make_files(tmp_path / "s", edit=edit)
    whole = read_header(files[3])
    for path in files:
        with_odd_representation(path, element)
    read = read_header(files[3])
    assert read == whole
    series = only_series(tmp_path / "s")
    assert judge(series).accepted
    conversion = convert_series(series, tmp_path / "v.nii.gz")
    assert conversion.warnings == (f"elements without a value representation were read by the dictionary: {name}",)
    image = nib.load(conversion.volume_path)
    assert np.allclose(mark_in(np.asarray(image.dataobj), image.affine), MARK_RAS, atol=4.5)
    assert read_sources(files, conversion.geometry).header.PatientID == "PHANTOM"
    deidentify_file(Deidentifier(bytes(32)), files[3], tmp_path / "d.dcm")
    assert pydicom.dcmread(tmp_path / "d.dcm").Rows == whole.Rows


def bomb(path: Path, zeros: int) -> None:
    """A deflated instance whose header goes on in a private element of zeros."""
    recode([path], DeflatedExplicitVRLittleEndian)
    content = path.read_bytes()
    start = 132 + 12 + int(pydicom.filereader.read_file_meta_info(path).FileMetaInformationGroupLength)
    plain = zlib.decompress(content[start:], -zlib.MAX_WBITS)
    at = plain.index(b"\xe0\x7f\x10\x00OW")
    odd = b"\x09\x70\x10\x00OB\0\0" + zeros.to_bytes(4, "little")
    pack = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    with path.open("wb") as out:
        out.write(content[:start] + pack.compress(plain[:at] + odd))
        for _ in range(zeros >> 20):
            out.write(pack.compress(bytes(1 << 20)))
        out.write(pack.compress(bytes(zeros % (1 << 20)) + plain[at:]) + pack.flush())


def test_a_deflated_header_is_not_inflated_beyond_its_limit(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(dicom_io.reading, "MOST_HEADER", 2 << 20)
    monkeypatch.setattr(dicom_io.reading, "MOST_PIXELS", 6 << 20)
    files = make_files(tmp_path / "s")
    bomb(files[0], 1 << 20)
    bomb(files[1], 4 << 20)
    bomb(files[2], 20 << 20)
    assert files[2].stat().st_size < 100_000
    problems = {p.path: p.reason for p in scan_folder(tmp_path / "s").problems}
    assert problems == {
        files[1]: "expected a header of at most 2 MiB, got one that inflates to more",
        files[2]: "expected a data set of at most 8 MiB, got one that inflates to more",
    }
    assert "PixelData" in read_dataset(files[0])
    with pytest.raises(DicomIoError, match="at most 8 MiB"):
        deidentify_file(Deidentifier(bytes(32)), files[2], tmp_path / "d.dcm")


def test_a_header_that_asks_for_gigabytes_of_pixels_is_refused(tmp_path: Path) -> None:
    files = make_files(tmp_path / "s")
    recode(files[:1], RLELossless)
    edit_files(files[:1], lambda d, _: [setattr(d, "Rows", 65535), setattr(d, "Columns", 65535)])
    [problem] = scan_folder(tmp_path / "s").problems
    assert problem.reason == "expected at most 1024 MiB of decoded pixels, got 8191 MiB"


@pytest.mark.parametrize(
    ("keyword", "value"),
    [("ImagePositionPatient", [0, 0, "1e300"]), ("PixelSpacing", ["1e308", "1e308"]), ("SliceThickness", "1e308"),
     ("ImageOrientationPatient", ["1e300", 0, 0, 0, 1, 0]), ("ImagePositionPatient", [0, 0, 999999])],
)  # fmt: skip
def test_numbers_beyond_all_measure_are_refused_in_one_line(tmp_path: Path, keyword: str, value) -> None:
    make_files(tmp_path / "s", edit=lambda d, i: setattr(d, keyword, value) if i % 7 == 0 else None)
    verdict = judge(only_series(tmp_path / "s"))
    assert all("\n" not in r.detail and len(r.detail) < 600 for r in verdict.reasons)
    assert verdict.accepted == (keyword == "SliceThickness")


def test_names_behind_an_element_without_a_value_representation_are_known(tmp_path: Path) -> None:
    files = make_files(tmp_path / "s", edit=lambda dataset, _: setattr(dataset, "PatientName", "Behind^It"))
    with_odd_representation(files[0], b"\x08\x00\x60\x00CS")
    assert {"Behind^It", "PHANTOM"} <= identities(files[:1])
