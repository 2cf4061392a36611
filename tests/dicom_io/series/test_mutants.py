"""Whole series with broken files in them, taken from the scan to the volume: only errors meant for users come out.

`test_series` breaks single files at random; here the damage is aimed, and the rest of the series is sound, so that it
reaches geometry, decoders and converters.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import Dataset, config
from pydicom.uid import DeflatedExplicitVRLittleEndian
from series_factory import recode

from dicom_io.deidentify import Deidentifier, deidentify_file
from dicom_io.errors import DicomIoError
from dicom_io.select.selection import judge
from dicom_io.series.group import scan_folder
from dicom_io.volume.nifti import convert_series

pytestmark = pytest.mark.shared_data

SMALL_VOLUMES = tuple(
    f"dicom2nifti_MIT/{name}"
    for name in (
        "hitachi/anatomical/001", "generic/anatomical/002_non_isotropic", "hyperfine/anatomical/001",
        "generic/compressed_rle/001", "hitachi/anatomical/001_implicit", "generic/compressed_j2k/001",
        "generic/compressed_jpegls/001", "generic/compressed_jpeg/001",
    )
)  # fmt: skip
KEYWORDS = (
    "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel",
    "PhotometricInterpretation", "PlanarConfiguration", "RescaleSlope", "RescaleIntercept", "PixelSpacing",
    "ImagePositionPatient", "ImageOrientationPatient", "SliceThickness", "InstanceNumber", "NumberOfFrames",
    "SpecificCharacterSet", "SeriesDescription", "ImageType", "EchoTime", "RepetitionTime", "InversionTime",
    "PatientID", "FrameOfReferenceUID", "SeriesInstanceUID", "SOPInstanceUID", "Modality", "Manufacturer",
    "WindowCenter", "SmallestImagePixelValue", "PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence",
    "ModalityLUTSequence", "ScanningSequence", "ImagesInAcquisition", "SeriesNumber", "AcquisitionTime",
)  # fmt: skip
TEXTS = (
    "", "0", "-1", "1e308", "nan", "inf", "abc", "1\\2", "0\\0\\0\\0\\0\\0", "1\\0\\0\\1\\0\\0", "65535", "\\\\\\",
    "1.2.3", "RGB", "MONOCHROME1", "PALETTE COLOR", "ISO 2022 IR 87", "ISO_IR 999", "X" * 70,
)  # fmt: skip
NUMBERS = (0, 1, 2, 7, 12, 16, 17, 32, 64, 255, 65535)

Break = Callable[[np.random.Generator, Sequence[Path]], None]


def some_files(rng: np.random.Generator, files: Sequence[Path]) -> Sequence[Path]:
    """One file, or all of them."""
    return files if rng.random() < 0.5 else [files[rng.integers(len(files))]]


def overwrite_bytes(rng: np.random.Generator, files: Sequence[Path]) -> None:
    content = bytearray(files[0].read_bytes())
    places = rng.integers(132, len(content), int(rng.integers(1, 200)))
    for path in some_files(rng, files):
        content = bytearray(path.read_bytes())
        for place in places[places < len(content)]:
            content[place] = rng.integers(256)
        path.write_bytes(bytes(content))


def cut_short(rng: np.random.Generator, files: Sequence[Path]) -> None:
    share = rng.random()
    for path in some_files(rng, files):
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])


def append_garbage(rng: np.random.Generator, files: Sequence[Path]) -> None:
    for path in some_files(rng, files):
        path.write_bytes(path.read_bytes() + rng.bytes(int(rng.integers(1, 300))))


def repeat_with_garbage(rng: np.random.Generator, files: Sequence[Path]) -> None:
    """The same image under another UID of equal length, with bytes behind its pixels that are no element."""
    uid = str(pydicom.dcmread(files[0], stop_before_pixels=True).SOPInstanceUID)
    other = uid[:-1] + ("1" if uid[-1] != "1" else "2")
    content = files[0].read_bytes().replace(uid.encode(), other.encode())
    files[0].with_name("again").write_bytes(content + rng.bytes(int(rng.integers(1, 300))))


def change_element(rng: np.random.Generator, files: Sequence[Path]) -> None:
    keyword = KEYWORDS[rng.integers(len(KEYWORDS))]
    text, number = TEXTS[rng.integers(len(TEXTS))], NUMBERS[rng.integers(len(NUMBERS))]
    as_text = bool(rng.random() < 0.3)
    for path in some_files(rng, files):
        dataset = pydicom.dcmread(path)
        _set(dataset, keyword, text, number, as_text=as_text)
        with suppress(ValueError, TypeError, AttributeError, OverflowError, KeyError):  # this value cannot be written
            dataset.save_as(path)


def _set(dataset: Dataset, keyword: str, text: str, number: int, *, as_text: bool) -> None:
    vr = pydicom.datadict.dictionary_VR(keyword)
    if vr in ("US", "US or SS"):
        dataset.add_new(keyword, "LO" if as_text else "US", text if as_text else number)
    elif vr == "SQ":
        dataset.add_new(keyword, "SQ", [] if number < 10 else [Dataset()])
    else:
        dataset.add_new(keyword, vr, None)
        dataset[keyword]._value = text


def break_deflated(rng: np.random.Generator, files: Sequence[Path]) -> None:
    if not pydicom.dcmread(files[0]).file_meta.TransferSyntaxUID.is_compressed:
        recode(files, DeflatedExplicitVRLittleEndian)
    overwrite_bytes(rng, files)


BREAKS: tuple[Break, ...] = (
    overwrite_bytes, cut_short, append_garbage, repeat_with_garbage, change_element, change_element, break_deflated,
)  # fmt: skip


def take_through(folder: Path, out: Path) -> None:
    for series in scan_folder(folder).series:
        judge(series)
        with suppress(DicomIoError):
            convert_series(series, out)
        for path in series.files[:2]:
            with suppress(DicomIoError):
                deidentify_file(Deidentifier(bytes(32)), path, out.with_suffix(".dcm"))


def break_and_take_through(shared: Path, tmp_path: Path, seeds: range) -> None:
    for seed in seeds:
        rng = np.random.default_rng(seed)
        folder = tmp_path / f"broken-{seed}"
        shutil.copytree(shared / SMALL_VOLUMES[seed % len(SMALL_VOLUMES)], folder, copy_function=shutil.copyfile)
        folder.chmod(0o755)
        BREAKS[rng.integers(len(BREAKS))](rng, sorted(folder.iterdir()))
        try:
            take_through(folder, tmp_path / "volume.nii")
        except Exception as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error
        shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def any_value_may_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config.settings, "_writing_validation_mode", config.IGNORE)


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
def test_broken_series_never_raise_anything_else(shared_dicom: Path, tmp_path: Path) -> None:
    break_and_take_through(shared_dicom, tmp_path, range(100))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
def test_a_thousand_broken_series_never_raise_anything_else(shared_dicom: Path, tmp_path: Path) -> None:
    break_and_take_through(shared_dicom, tmp_path, range(100, 1100))
