import re
import shutil
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless, generate_uid
from series_factory import as_enhanced, edit_files, make_files, only_series, recode

from dicom_io.errors import DicomIoError, SeriesError
from dicom_io.select.selection import judge
from dicom_io.series.group import load_series, scan_folder
from dicom_io.volume.nifti import convert_series


def test_nesting_and_names_mean_nothing(tmp_path: Path, flair_files: list[Path]) -> None:
    deep = tmp_path / "deep"
    for index, path in enumerate(reversed(flair_files)):
        target = deep / f"a{index % 3}" / "b" / f".{index}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    series = only_series(deep)
    assert series.frame_count == 21
    assert [int(h.InstanceNumber) for h in series.headers] == list(range(1, 22))
    assert all("PixelData" not in h for h in series.headers)


def test_series_are_grouped_and_ordered_by_number(tmp_path: Path) -> None:
    make_files(tmp_path / "x", overrides={"SeriesNumber": "7", "SeriesDescription": "late"})
    make_files(tmp_path / "y", overrides={"SeriesNumber": "2", "SeriesDescription": "early"})
    assert [s.description for s in scan_folder(tmp_path).series] == ["early", "late"]


def test_a_missing_folder_is_said() -> None:
    with pytest.raises(SeriesError, match="expected a folder"):
        scan_folder(Path("/nonexistent/folder"))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda path: path.write_bytes(b""), "not a DICOM file"),
        (lambda path: path.write_text("hello " * 200), "not a DICOM file"),
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), r"expected 2880 bytes of pixel data, got 2780"),
        (lambda path: path.write_bytes(path.read_bytes()[:700]), "truncated"),
        (lambda path: path.write_bytes(path.read_bytes()[:140]), "Transfer Syntax UID"),
    ],
)
def test_an_unusable_file_is_kept_aside_with_its_reason(flair_files, spoil, reason) -> None:
    spoil(flair_files[4])
    scan = scan_folder(flair_files[0].parent)
    [problem] = scan.problems
    assert problem.path == flair_files[4]
    assert re.search(reason, problem.reason), problem.reason
    assert scan.series[0].frame_count == 20


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless, DeflatedExplicitVRLittleEndian])
def test_truncated_compressed_pixels_are_noticed(flair_files, syntax) -> None:
    recode(flair_files, syntax)
    assert not scan_folder(flair_files[0].parent).problems
    whole = flair_files[2].read_bytes()
    for share in (0.5, 0.98):
        flair_files[2].write_bytes(whole[: int(len(whole) * share)])
        [problem] = scan_folder(flair_files[0].parent).problems
        assert problem.path == flair_files[2]


def test_a_resent_instance_is_taken_once(flair_files) -> None:
    shutil.copy(flair_files[3], flair_files[3].with_name("again.dcm"))
    scan = scan_folder(flair_files[0].parent)
    assert scan.series[0].frame_count == 21
    assert "repeats SOP Instance UID" in scan.problems[0].reason


def test_the_same_image_under_a_new_uid_is_taken_once(flair_files, tmp_path) -> None:
    copy = flair_files[3].with_name("9999.dcm")
    dataset = pydicom.dcmread(flair_files[3])
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.save_as(copy)
    scan = scan_folder(flair_files[0].parent)
    assert [(p.path, p.reason) for p in scan.problems] == [(copy, "holds the same image as 0004.dcm")]
    assert convert_series(scan.series[0], tmp_path / "v.nii.gz").geometry.shape[0] == 21


def test_two_patients_in_one_series_are_refused(flair_files, tmp_path) -> None:
    edit_files(flair_files[10:], lambda ds, _: setattr(ds, "PatientID", "OTHER"))
    series = only_series(flair_files[0].parent)
    assert series.distinct("PatientID") == ("PHANTOM", "OTHER")
    refused = judge(series).refusals
    assert {r.rule for r in refused} == {"one patient", "geometry"}
    with pytest.raises(SeriesError, match="expected one PatientID, got 2: 'OTHER', 'PHANTOM'"):
        convert_series(series, tmp_path / "v.nii.gz")


def test_load_series_refuses_what_is_not_one_series(tmp_path, flair_files) -> None:
    assert load_series(tmp_path, flair_files).frame_count == 21
    others = make_files(tmp_path / "other", overrides={"SeriesNumber": "9"})
    with pytest.raises(SeriesError, match="expected one series, got 2"):
        load_series(tmp_path, [*flair_files, *others])
    flair_files[0].write_bytes(b"nothing")
    with pytest.raises(SeriesError, match=r"1 of the series' files are unusable; 0001.dcm: not a DICOM file"):
        load_series(tmp_path, flair_files)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One classic, one enhanced and one compressed instance."""
    folder = tmp_path_factory.mktemp("samples")
    files = make_files(folder / "classic")
    enhanced = as_enhanced(files, folder / "enhanced.dcm")
    compressed = make_files(folder / "compressed", overrides={"SeriesNumber": "8"})
    recode(compressed, JPEG2000Lossless)
    return [files[0], enhanced, compressed[0]]


def take_through(folder: Path) -> None:
    """Whatever the files hold, only errors meant for users may come out."""
    scan = scan_folder(folder)
    for series in scan.series:
        verdict = judge(series)
        assert verdict.accepted or verdict.refusals
        with suppress(DicomIoError):
            convert_series(series, folder.with_suffix(".nii.gz"))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(which=st.integers(0, 2), seed=st.integers(0, 2**32 - 1), spots=st.integers(1, 40))
def test_mutated_files_never_raise(tmp_path, samples, which, seed, spots) -> None:
    mutate(tmp_path / "m", samples[which].read_bytes(), seed, spots)
    take_through(tmp_path / "m")


def mutate(folder: Path, content: bytes, seed: int, spots: int) -> None:
    """Overwrite bytes of the header, and sometimes cut the file."""
    rng = np.random.default_rng(seed)
    changed = bytearray(content)
    header = min(len(changed), 4000)
    for place in rng.integers(132, header, spots):
        changed[place] = rng.integers(0, 256)
    if rng.random() < 0.2:
        del changed[int(rng.integers(132, len(changed))) :]
    folder.mkdir(exist_ok=True)
    (folder / "mutant.dcm").write_bytes(bytes(changed))


@pytest.mark.slow
@pytest.mark.shared_data
def test_a_thousand_mutants_of_public_files_never_raise(tmp_path, shared_dicom) -> None:
    originals = [p for p in sorted(shared_dicom.rglob("*")) if p.is_file() and ".nii" not in p.name]
    small = [p for p in originals if p.stat().st_size < 3_000_000]
    for seed in range(1000):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            mutate(tmp_path / "m", small[seed % len(small)].read_bytes(), seed, 1 + seed % 60)
            take_through(tmp_path / "m")
