"""De-identification: no identity is left in any byte, and what belongs together still does."""

from __future__ import annotations

import datetime
import stat
from pathlib import Path

import pydicom
import pytest
from pydicom import Dataset
from pydicom.uid import SecondaryCaptureImageStorage
from series_factory import as_enhanced, make_files, only_series

from dicom_io.deidentify import Deidentifier, deidentify_file, load_key, scrub, shifted, without_quotes, without_uids
from dicom_io.errors import DeidentificationError, FileError
from dicom_io.volume.nifti import convert_series
from dicom_io.volume.stack import series_geometry

KEY = bytes(range(32))
SECRETS = {
    "PatientName": "Geheimrat^Ottilie", "PatientID": "PID-4711", "PatientBirthDate": "19510203",
    "OtherPatientIDs": "OLD-815", "AccessionNumber": "ACC4242", "InstitutionName": "Charlottenspital",
    "InstitutionAddress": "Musterweg 99", "ReferringPhysicianName": "Zuweiser^Zacharias",
    "PerformingPhysicianName": "Radiolog^Rudi", "OperatorsName": "Techniker^Theo", "StationName": "SCANNER7B",
    "DeviceSerialNumber": "SN998877", "StudyID": "ST31415", "PatientComments": "kennt den Pfoertner",
    "ImageComments": "wohnt am Ententeich", "StudyDescription": "Kopf Geheimrat", "PatientAddress": "Ententeich 5",
    "AdditionalPatientHistory": "Vorbericht Ottilie", "StudyDate": "20260102", "AcquisitionDateTime": "20260102093000",
    "RequestedProcedureDescription": "fuer Ottilie", "ProtocolName": "Protokoll Ottilie", "EthnicGroup": "Friesisch",
}  # fmt: skip


def add_secrets(dataset: Dataset, _index: int) -> None:
    """At the top, in sequences of sequences, in private and unknown elements."""
    for keyword, value in SECRETS.items():
        setattr(dataset, keyword, value)
    block = dataset.private_block(0x0029, "SIEMENS CSA HEADER", create=True)
    block.add_new(0x10, "OB", b"PatientName Geheimrat ")
    dataset.add_new(0x00094321, "LO", "Ottilie in a private place")
    dataset.add_new(0x00184321, "LO", "Ottilie in an unknown element")
    inner, outer, referenced = Dataset(), Dataset(), Dataset()
    inner.PatientID, inner.PatientName = "PID-4711", "Geheimrat^Ottilie"
    inner.add_new(0x00294321, "UN", b"Ottilie")
    referenced.ReferencedSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
    referenced.ReferencedSOPInstanceUID = "1.2.3.999.1"
    outer.RequestedProcedureID, outer.ScheduledProcedureStepID = "RP-161", "SPS-2718"
    outer.OtherPatientIDsSequence = [inner]
    dataset.RequestAttributesSequence = [outer]
    dataset.OtherPatientIDsSequence = [inner]
    dataset.ReferencedImageSequence = [referenced]


def identities(files: list[Path]) -> set[bytes]:
    """Everything that must be gone, as bytes."""
    found = {part for text in SECRETS.values() for part in text.replace("^", " ").split() if len(part) > 4}
    found |= {"RP-161", "SPS-2718", "1.2.3.999.1", "Ottilie", "Geheimrat"}
    for path in files:
        dataset = pydicom.dcmread(path, stop_before_pixels=True)
        keywords = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID")
        found |= {str(dataset[k].value) for k in keywords}
    return {text.encode() for text in found}


def without_identity(files: list[Path], folder: Path, key: bytes = KEY) -> list[Path]:
    folder.mkdir()
    for path in files:
        deidentify_file(Deidentifier(key), path, folder / path.name)
    return sorted(folder.iterdir())


@pytest.fixture
def secret_files(tmp_path: Path) -> list[Path]:
    return make_files(tmp_path / "secret", edit=add_secrets)


def test_no_identity_is_left_in_any_byte(secret_files, tmp_path) -> None:
    for path in secret_files:  # the preamble may hold a TIFF header, or anything
        path.write_bytes(b"Ottilie Geheimrat".ljust(128, b"\0") + path.read_bytes()[128:])
    gone = identities(secret_files)
    assert all(any(text in path.read_bytes() for path in secret_files) for text in gone - {b"Ententeich"})
    for path in without_identity(secret_files, tmp_path / "out"):
        content = path.read_bytes()
        assert [text for text in gone if text in content] == []


def test_enhanced_instances_are_done_at_every_depth(secret_files, tmp_path) -> None:
    as_enhanced(secret_files, tmp_path / "enhanced" / "e.dcm")
    source = tmp_path / "enhanced" / "e.dcm"
    dataset = pydicom.dcmread(source)
    frame = dataset.PerFrameFunctionalGroupsSequence[0]
    content = Dataset()
    content.FrameAcquisitionDateTime = content.FrameReferenceDateTime = "20260102093000"
    content.FrameComments = "Ottilie bewegt sich"
    frame.FrameContentSequence = [content]
    dataset.save_as(source)
    [out] = without_identity([source], tmp_path / "out")
    result = pydicom.dcmread(out)
    moved = result.PerFrameFunctionalGroupsSequence[0].FrameContentSequence[0]
    assert "Ottilie" not in str(result)
    assert moved.FrameAcquisitionDateTime == f"{result.StudyDate}093000"
    assert len(result.PerFrameFunctionalGroupsSequence) == len(dataset.PerFrameFunctionalGroupsSequence)


def test_what_was_done_is_stated_and_the_picture_stays(secret_files, tmp_path) -> None:
    out = without_identity(secret_files, tmp_path / "out")
    before, after = pydicom.dcmread(secret_files[3]), pydicom.dcmread(out[3])
    assert after.PatientIdentityRemoved == "YES"
    assert [c.CodeValue for c in after.DeidentificationMethodCodeSequence] == ["113100", "113107"]
    assert after.LongitudinalTemporalInformationModified == "MODIFIED"
    assert (before.pixel_array == after.pixel_array).all()
    for keyword in ("InversionTime", "EchoTime", "RepetitionTime", "ImagePositionPatient", "ImageOrientationPatient"):
        assert after[keyword] == before[keyword]
    assert after.file_meta.MediaStorageSOPInstanceUID == after.SOPInstanceUID
    assert after.PatientName == after.PatientID
    assert after.PatientBirthDate == ""


def test_the_series_keeps_its_geometry_sides_included(secret_files, tmp_path) -> None:
    without_identity(secret_files, tmp_path / "out")
    before, after = (only_series(tmp_path / name) for name in ("secret", "out"))
    geometry = series_geometry(after)
    mapped = Deidentifier(KEY).geometry(series_geometry(before))
    assert geometry == mapped
    assert (geometry.affine_ras == series_geometry(before).affine_ras).all()
    convert_series(after, tmp_path / "volume.nii.gz")


def test_pseudonyms_are_the_same_in_every_run_and_others_under_another_key(secret_files, tmp_path) -> None:
    first, again = without_identity(secret_files, tmp_path / "a"), without_identity(secret_files, tmp_path / "b")
    other = without_identity(secret_files, tmp_path / "c", bytes(32))
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in again]
    one, two = (pydicom.dcmread(files[0]) for files in (first, other))
    for keyword in ("PatientID", "StudyInstanceUID", "SOPInstanceUID", "StudyDate"):
        assert one[keyword].value != two[keyword].value


def test_references_still_lead_to_what_they_led_to(secret_files, tmp_path) -> None:
    """An image refers to another of the series: the pseudonym of the reference is that of the instance."""
    target = str(pydicom.dcmread(secret_files[1]).SOPInstanceUID)
    dataset = pydicom.dcmread(secret_files[0])
    dataset.ReferencedImageSequence[0].ReferencedSOPInstanceUID = target
    dataset.save_as(secret_files[0])
    out = [pydicom.dcmread(p) for p in without_identity(secret_files, tmp_path / "out")]
    reference = out[0].ReferencedImageSequence[0]
    assert reference.ReferencedSOPInstanceUID == out[1].SOPInstanceUID
    assert reference.ReferencedSOPClassUID == "1.2.840.10008.5.1.4.1.1.4"
    assert len({d.StudyInstanceUID for d in out} | {d.FrameOfReferenceUID for d in out}) == 2


def test_intervals_of_one_patient_stay_and_patients_move_apart(tmp_path) -> None:
    deidentifier = Deidentifier(KEY)
    shift = deidentifier.shift("P1")
    first, second = (datetime.date.fromisoformat(shifted(d, shift)) for d in ("20251230", "20260301"))
    assert (second - first).days == 61
    assert shift.days < -29
    assert len({deidentifier.shift(f"P{n}") for n in range(50)}) > 45
    assert deidentifier.patient("P1") != deidentifier.patient("P1", "ANOTHER HOSPITAL")


def test_patients_without_an_id_do_not_become_one(tmp_path) -> None:
    found = set()
    for number in range(2):
        files = make_files(tmp_path / f"in{number}", overrides={"PatientID": "", "StudyInstanceUID": f"1.2.{number}"})
        out = without_identity(files[:2], tmp_path / f"out{number}")
        found |= {str(pydicom.dcmread(path).PatientID) for path in out}
    assert len(found) == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [("20260102", "20251231"), ("2026.01.02", "20251231"), ("20260102093000.5+0100", "20251231093000.5+0100"),
     ("2026", ""), ("20261399", ""), ("Ottilie", ""), ("00010101", "")],
)  # fmt: skip
def test_dates_of_every_form(text, expected) -> None:
    assert shifted(text, datetime.timedelta(days=-2)) == expected


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"BurnedInAnnotation": "YES"}, "burned into its pixels"),
     ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, "may hold text"),
     ({"SOPClassUID": SecondaryCaptureImageStorage}, "got Secondary Capture Image Storage"),
     ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.22"}, "got Enhanced SR Storage"),
     ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.104.1"}, "got Encapsulated PDF Storage"),
     ({"ConversionType": "WSD"}, "may hold text")],
)  # fmt: skip
def test_what_may_hold_text_is_not_taken(change, reason, flair_files, tmp_path) -> None:
    dataset = pydicom.dcmread(flair_files[0])
    for keyword, value in change.items():
        setattr(dataset, keyword, value)
    dataset.save_as(flair_files[0])
    with pytest.raises(DeidentificationError, match=reason):
        deidentify_file(Deidentifier(KEY), flair_files[0], tmp_path / "out.dcm")
    assert not (tmp_path / "out.dcm").exists()


def test_what_is_no_dicom_is_said(tmp_path) -> None:
    (tmp_path / "letter.txt").write_text("Dear colleague")
    with pytest.raises(FileError, match=r"letter\.txt: expected a DICOM file"):
        deidentify_file(Deidentifier(KEY), tmp_path / "letter.txt", tmp_path / "out.dcm")


def test_the_key_is_made_once_and_kept_private(tmp_path) -> None:
    path = tmp_path / "data" / "pseudonyms.key"
    key = load_key(path)
    assert len(key) == 32
    assert load_key(path) == key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in path.parent.iterdir()] == ["pseudonyms.key"]
    path.write_bytes(b"short")
    with pytest.raises(DeidentificationError, match="at least 32 bytes, got 5"):
        load_key(path)


def test_names_of_files_are_taken_out_of_texts() -> None:
    text = "Ottilie.dcm: truncated; Ottilie.dcm.bak"
    assert scrub(text, ["Ottilie.dcm", "Ottilie.dcm.bak"]) == "[file]: truncated; [file]"
    said = "2 of 20 slices on the left are missing, 4711234 and I"
    assert scrub(said, ["2", "20", "left", "4711234", "mi"]) == said.replace("4711234", "[file]")


@pytest.mark.parametrize(
    "uid", ["1.2.840.113619.2.1.77", "2.25.329800735698586629295641978511506172918", "1.3.12.2." + "9" * 54]
)
def test_uids_in_texts_are_those_of_the_deidentified_objects(uid: str) -> None:
    deidentifier = Deidentifier(KEY)
    said = without_uids(f"MR.{uid}: lies in series {uid}, as ({uid}).", deidentifier)
    new = deidentifier.uid(uid)
    assert said == f"MR.{new}: lies in series {new}, as ({new})."


@pytest.mark.parametrize("value", ["t1 Ottilie", "O'Ottilie", '"Ottilie" isn\'t', "'Ottilie", "\\Ottilie'", "7"])
def test_what_a_text_quotes_is_not_in_it(value: str) -> None:
    text = "the series' files don't say: name: {} means T1; 2 patients: {}, {}: not the header's"
    assert without_quotes(text.format(*[repr(value)] * 3)) == text.format(*["'…'"] * 3)


def test_what_is_nobodys_uid_stays_in_texts() -> None:
    text = "pydicom 3.0.1, 1.5.2.1: class 1.2.840.10008.5.1.4.1.1.4, spacing 0.9375 x 0.9375, of 12.5. 3.2 ml"
    assert without_uids(text, Deidentifier(KEY)) == text


@pytest.mark.shared_data
def test_public_series_of_every_vendor_keep_their_volume(shared_dicom: Path, tmp_path: Path) -> None:
    for number, name in enumerate(("philips_enhanced/anatomical/001", "hitachi/anatomical/001")):
        files = sorted(p for p in (shared_dicom / "dicom2nifti_MIT" / name).iterdir() if p.is_file())
        without_identity(files, tmp_path / str(number))
        convert_series(only_series(tmp_path / str(number)), tmp_path / f"{number}.nii.gz")
