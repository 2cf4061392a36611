"""Headers whose elements hold random extremes: from the scan to the results, a verdict or one line comes out."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom import Dataset
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.tag import BaseTag, Tag
from pydicom.uid import ImplicitVRLittleEndian, JPEG2000Lossless
from results_factory import content
from series_factory import as_enhanced, make_files, recode

from dicom_io.errors import DicomIoError, PackError, SeriesError
from dicom_io.pack import validate
from dicom_io.pack.encode import encode_pack, wanted
from dicom_io.select.selection import rank
from dicom_io.series.group import Series, scan_folder
from dicom_io.series.studies import of_one_study
from dicom_io.volume.nifti import convert_series

TEXTS = [
    b"", b" ", b"0", b"-0", b"-1", b"1", b"1e308", b"-1e308", b"1e400", b"1e-320", b"nan", b"inf", b"-inf", b"9" * 16,
    b"9" * 400, b"0x10", b"1,5", b"1\\2", b"\\", b"\\\\\\", b"0\\0\\0\\0\\0\\0", b"1\\0\\0\\1\\0\\0", b"nan\\0\\0",
    b"1e300\\1e300\\1e300", b"abc", b"\xff\xfe\x80", b"\x00\x00", b"\r\n", b"\x1b$B\x1b(", b"\x1b$)C\xff", b"a\x07b",
    b"99999999", b"20251399", b"000000", b"1.2." + b"3" * 70, b"..", b"../..", b"=", b"^^^^^^^", b"A=B=C=D",
    b"ISO_IR 1", b"IR", b"RGB", b"X" * 70000, "é".encode(), b"%s{0}$(x)", b"<script>",
]  # fmt: skip
NUMBERS = {
    "US": [0, 1, 2, 7, 13, 32767, 65535], "SS": [0, -1, -32768, 32767], "UL": [0, 1, 2**31, 2**32 - 1],
    "SL": [0, -1, -(2**31), 2**31 - 1], "FD": [0.0, -1.0, 1e308, -1e308, 5e-324, np.nan, np.inf, -np.inf],
    "FL": [0.0, -1.0, 3e38, 1e-45, np.nan, np.inf, -np.inf],
}  # fmt: skip
TYPES = {"US": "<u2", "SS": "<i2", "UL": "<u4", "SL": "<i4", "FD": "<f8", "FL": "<f4"}
ABSENT = (
    "RescaleSlope", "RescaleIntercept", "PixelPaddingValue", "PixelPaddingRangeLimit", "NumberOfFrames", "EchoNumbers",
    "ImagesInAcquisition", "AcquisitionTime", "AcquisitionNumber", "TemporalPositionIdentifier", "TriggerTime",
    "DiffusionBValue", "InversionTimes", "ContrastBolusAgent", "RescaleType", "PlanarConfiguration",
    "IconImageSequence", "SmallestImagePixelValue", "LargestImagePixelValue", "ModalityLUTSequence",
    "RealWorldValueMappingSequence", "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence", "ConcatenationUID",
    "InConcatenationNumber",
    "LossyImageCompression", "DerivationCodeSequence", "RequestAttributesSequence", "IssuerOfPatientID", "PatientAge",
    "OtherPatientNames", "PatientIdentityRemoved", "GantryDetectorTilt", "SpacingBetweenSlices", "PatientPosition",
)  # fmt: skip
"""Elements that a sound header here does not hold, beside those that it does."""


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> list[list[bytes]]:
    """A small FLAIR as classic, implicit, compressed and enhanced instances."""
    folder = tmp_path_factory.mktemp("originals")
    voxels = np.random.default_rng(1).integers(0, 3000, (34, 36, 10)).astype(np.int16)
    image = nib.Nifti1Image(voxels, np.diag([6.0, 6.0, 12.0, 1.0]))
    classic = make_files(folder / "classic", image)
    implicit = make_files(folder / "implicit", image)
    recode(implicit, ImplicitVRLittleEndian)
    compressed = make_files(folder / "compressed", image)
    recode(compressed, JPEG2000Lossless)
    enhanced = [as_enhanced(classic, folder / "enhanced.dcm")]
    return [[path.read_bytes() for path in files] for files in (classic, implicit, compressed, enhanced)]


def below(dataset: Dataset) -> Iterator[Dataset]:
    """The data set and every item of its sequences."""
    yield dataset
    for tag in list(dataset.keys()):  # iterating it would decode what was made illegal
        if representation(dataset, tag) == "SQ":
            for item in dataset[tag].value:
                yield from below(item)


def representation(dataset: Dataset, tag: BaseTag) -> str:
    return str(dataset.get_item(tag).VR or dictionary_VR(tag)).split(" ")[0]


def extreme(chance: random.Random, vr: str) -> bytes:
    """Bytes that an element of this kind may hold, legal or not; of an odd length now and then."""
    if vr in TYPES and chance.random() < 0.9:
        many = 1 if chance.random() < 0.8 else chance.choice((0, 2, 3, 6))
        return np.array([chance.choice(NUMBERS[vr]) for _ in range(many)]).astype(TYPES[vr]).tobytes()
    if vr in ("OB", "OW", "UN"):
        return chance.randbytes(chance.choice((0, 1, 2, 64)))
    raw = chance.choice(TEXTS)
    return raw if chance.random() < 0.1 else raw + b" " * (len(raw) % 2)


def change(chance: random.Random, dataset: Dataset) -> str:
    """Put an extreme into one element, or take it away; returns which."""
    holder = chance.choice(list(below(dataset)))
    if chance.random() < 0.2 or not holder:
        tag = Tag(tag_for_keyword(chance.choice(ABSENT)))
        vr = dictionary_VR(tag).split(" ")[0]
    else:
        tag = chance.choice([t for t in holder.keys() if t != 0x7FE00010] or [Tag(0x00080005)])  # noqa: SIM118
        vr = representation(holder, tag) if tag in holder else "CS"
    if chance.random() < 0.08 and tag in holder:
        del holder[tag]
    elif vr == "SQ":
        holder.add_new(tag, "SQ", [Dataset()] * chance.choice((0, 1, 2)))
    else:
        raw = extreme(chance, vr)
        implicit = dataset.file_meta.TransferSyntaxUID == ImplicitVRLittleEndian
        holder._dict[tag] = RawDataElement(tag, vr, len(raw), raw, 0, implicit, True)
    return pydicom.datadict.keyword_for_tag(tag)


def write_mutant(chance: random.Random, files: Sequence[bytes], folder: Path) -> list[str]:
    """The series with one to three elements changed, in one instance or in all alike."""
    for path in folder.iterdir():
        path.unlink()
    which = range(len(files)) if chance.random() < 0.5 else [chance.randrange(len(files))]
    names: list[str] = []
    count, seed = chance.choice((1, 1, 2, 3)), chance.random()
    for index, file in enumerate(files):
        if index in which:
            same = random.Random(seed)
            dataset = pydicom.dcmread(BytesIO(file))
            names = [change(same, dataset) for _ in range(count)]
            file = as_bytes(dataset)  # noqa: PLW2901
        (folder / f"{index:04d}.dcm").write_bytes(file)
    return names


def as_bytes(dataset: Dataset) -> bytes:
    """A file of it; elements as they are, for pydicom would decode those of another character set."""
    implicit = dataset.file_meta.TransferSyntaxUID.is_implicit_VR
    for holder in list(below(dataset)):
        holder.set_original_encoding(implicit, True, holder._character_set)
    made = BytesIO()
    pydicom.dcmwrite(made, dataset, implicit_vr=implicit, little_endian=True)
    return made.getvalue()


def take_through(folder: Path, out: Path) -> str:
    """As a study goes through the steps; what becomes of it."""
    scan = scan_folder(folder)
    try:
        ranked = rank(of_one_study(scan.series, None))
    except SeriesError as error:
        return one_line("refused", error)
    chosen = [series for series, verdict in ranked if verdict.accepted]
    for series, verdict in ranked:
        assert verdict.accepted or verdict.refusals
        assert not any("\n" in str(reason) for reason in verdict.reasons)
        if not verdict.accepted:
            try:
                convert_series(series, out / "other.nii")
            except DicomIoError as error:
                one_line("", error)
    return report(chosen[0], out) if chosen else "refused"


def report(series: Series, out: Path) -> str:
    try:
        converted = convert_series(series, out / "volume.nii")
    except DicomIoError as error:
        return one_line("not converted", error)
    assert not any("\n" in warning for warning in converted.warnings)
    pack = encode_pack(
        source_files=series.files, geometry=converted.geometry, volume_path=out / "volume.nii", saliency_path=None,
        lesion_path=None, content=content(), kinds=wanted(sc=False, pm=False, seg=False), identity="mutant",
        out=out / "pack",
    )  # fmt: skip
    for item in pack.objects:
        item.path.unlink()
    for path in (out / "pack").iterdir():
        path.unlink()
    (out / "pack").rmdir()
    return "reported"


def one_line(what: str, error: DicomIoError) -> str:
    assert "\n" not in str(error)
    assert 0 < len(str(error)) < 4000
    return what


FAILED_ONCE = (100267, 100520, 100571, 100642, 100966, 101044, 101926, 102037, 102966, 103224, 104129, 104557)
"""Of frames' places and stacks (highdicom), illegal dates and times, a repetition time of nothing, UIDs of several
values, texts of 70,000 characters in an error."""


@pytest.mark.parametrize(
    "seeds", [(*range(60), *FAILED_ONCE), pytest.param(range(100_000, 105_000), marks=pytest.mark.slow)], ids=len
)
@pytest.mark.timeout(3600)
@pytest.mark.filterwarnings("ignore::UserWarning:pydicom", "ignore::DeprecationWarning")
def test_random_extremes_in_headers_give_a_verdict_or_one_line(
    seeds: Sequence[int], originals: list[list[bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pydicom.config.settings, "_writing_validation_mode", pydicom.config.IGNORE)
    monkeypatch.setattr(validate, "dciodvfy_path", lambda: None)  # a process of its own for each mutant
    folder = tmp_path / "series"
    folder.mkdir()
    ends: Counter[str] = Counter()
    faults: list[str] = []
    for seed in seeds:
        chance = random.Random(seed)
        with pydicom.config.disable_value_validation():
            names = write_mutant(chance, originals[seed % len(originals)], folder)
        try:
            ends[take_through(folder, tmp_path)] += 1
        except PackError as error:
            faults.append(f"seed {seed}, {', '.join(names)}: accepted, but no results: {error}")
        except Exception as error:  # noqa: BLE001 - any of them would be a traceback
            faults.append(f"seed {seed}, {', '.join(names)}: {type(error).__name__}: {error}")
    print(dict(ends))  # noqa: T201
    assert not faults, "\n".join([f"{len(faults)} of {len(seeds)}", *faults[:40]])
    assert ends["reported"] > len(seeds) // 5
    assert ends["refused"] > len(seeds) // 20
