from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from pydicom import Dataset, config, dcmread
from results_factory import Case, flair_header, head, make_case

from dicom_io.content.received_text import CHARACTER_SET
from dicom_io.content.sources import normalised_header, read_sources
from dicom_io.content.uids import digest_uid
from dicom_io.pack.encode import encode_pack, wanted

KEPT = {
    "long id": {"PatientID": "X" * 70},
    "long name": {"PatientName": "N" * 80},
    "long accession number": {"AccessionNumber": "1234567890123456789"},
    "long study id": {"StudyID": "1234567890123456789"},
    "control character": {"PatientName": "Doe^\x08John"},
    "two ids": {"PatientID": "A\\B"},
    "leading zero": {"StudyInstanceUID": "1.2.03.4"},
    "letters in a UID": {"StudyInstanceUID": "1.2.abc"},
    "letters for a UID": {"StudyInstanceUID": "STUDY01"},
}
MENDED = {
    "long description": ({"StudyDescription": "d" * 90}, "d" * 64),
    "line feed": ({"StudyDescription": "a\nb"}, "a b"),
    "dotted date": ({"StudyDate": "2024.01.31"}, ""),
    "no date": ({"StudyDate": "20241399"}, ""),
    "unknown sex": ({"PatientSex": "U"}, ""),
    "age without a unit": ({"PatientAge": "54"}, None),
    "two referrers": ({"ReferringPhysicianName": ["A^B", "C^D"]}, "A^B"),
    "long manufacturer": ({"Manufacturer": "M" * 80}, "M" * 64),
}


def small_case(folder: Path, monkeypatch: pytest.MonkeyPatch, values: dict[str, object]) -> Case:
    def edit(header: Dataset, index: int) -> None:
        for keyword, value in values.items():
            setattr(header, keyword, value)

    image = nib.Nifti1Image(head((20, 24, 12)), np.diag([8.0, 8, 12, 1]))
    region = np.zeros((20, 24, 12), dtype=np.float32)
    region[4:8, 12:16, 5:8] = 0.7
    with monkeypatch.context() as patch:  # senders are not as strict as we are
        patch.setattr(config.settings, "_writing_validation_mode", config.IGNORE)
        return make_case(folder, image=image, weights=region, lesion=region, edit=edit)


@pytest.mark.parametrize("name", KEPT)
def test_identity_is_kept_as_received_even_where_it_is_illegal(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = small_case(tmp_path, monkeypatch, KEPT[name])
    pack = encode_pack(**case.arguments(kinds=wanted(pm=False), out=tmp_path / "dicom"))
    assert {item.kind for item in pack.objects} == {"sr", "sc", "seg"}
    for item in pack.objects:
        made = dcmread(item.path, stop_before_pixels=True)
        for keyword in KEPT[name]:
            assert made[keyword].value == dcmread(case.files[0])[keyword].value


@pytest.mark.parametrize("name", MENDED)
def test_what_does_not_identify_is_made_legal(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values, expected = MENDED[name]
    case = small_case(tmp_path, monkeypatch, values)
    (keyword,) = values
    found = read_sources(case.files, case.geometry).header.get(keyword)
    assert (None if found is None else str(found)) == expected
    encode_pack(**case.arguments(kinds=wanted(sc=False), out=tmp_path / "dicom"))  # dciodvfy is content


def test_a_validators_complaint_about_anything_else_still_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = small_case(tmp_path, monkeypatch, {"PatientID": "X" * 70})
    marks = list(read_sources(case.files, case.geometry).illegal_identity())
    assert marks == ["<PatientID>", "<" + "X" * 70]


def test_sound_identity_excuses_nothing(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    assert list(read_sources(case.files, case.geometry).illegal_identity()) == []


def test_deidentified_sources_say_how_or_that_they_do_not(tmp_path: Path) -> None:
    received = flair_header(0)
    received.PatientIdentityRemoved = "YES"
    assert normalised_header(received).DeidentificationMethod == "Not stated in the received images"
    received.DeidentificationMethod = "CTP"
    assert normalised_header(received).DeidentificationMethod == "CTP"


def test_incomplete_codes_are_left_out() -> None:
    received = flair_header(0)
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator = "113100", "DCM"
    received.DeidentificationMethodCodeSequence = [code]
    assert "DeidentificationMethodCodeSequence" not in normalised_header(received)
    code.CodeMeaning = "Basic Application Confidentiality Profile"
    assert "DeidentificationMethodCodeSequence" in normalised_header(received)


def test_codes_of_a_file_are_no_text_that_fits_no_label(tmp_path: Path) -> None:
    """Read from a file, a sequence is bytes with lengths of any value until somebody asks for its items."""
    received = flair_header(0)
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "113100", "DCM", "Basic Profile"
    received.DeidentificationMethodCodeSequence = [code]
    received.save_as(tmp_path / "one.dcm", implicit_vr=False, little_endian=True, enforce_file_format=False)
    header = normalised_header(dcmread(tmp_path / "one.dcm", force=True))
    assert "DeidentificationMethodCodeSequence" in header
    assert header.SpecificCharacterSet == CHARACTER_SET


def test_private_and_unknown_attributes_stay_behind() -> None:
    received = flair_header(0)
    received.private_block(0x0019, "VENDOR", create=True).add_new(0x01, "LO", "secret")
    header = normalised_header(received)
    assert header.SpecificCharacterSet == CHARACTER_SET
    assert not any(element.tag.is_private for element in header)
    assert "EchoTime" not in header


@pytest.mark.parametrize(
    ("character_set", "name"),
    [
        ("ISO_IR 100", "Buc^Jérôme"),
        ("ISO_IR 144", "Люкceмбypг"),
        ("ISO_IR 126", "Διονυσιος"),
        ("ISO_IR 127", "قباني^لنزار"),
        ("ISO_IR 138", "שרון^דבורה"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동"),
        ("ISO_IR 192", "Wang^XiaoDong=王^小東"),
        ("GB18030", "Wang^XiaoDong=王^小东"),
    ],
)
def test_names_of_any_character_set_become_unicode(character_set: object, name: str, tmp_path: Path) -> None:
    header = flair_header(0)
    for keyword in ("StudyDescription", "ReferringPhysicianName"):
        del header[keyword]
    header.SpecificCharacterSet = character_set
    header.PatientName = name
    header.save_as(tmp_path / "in.dcm", enforce_file_format=True)
    again = normalised_header(dcmread(tmp_path / "in.dcm"))
    again.save_as(tmp_path / "out.dcm", implicit_vr=False, little_endian=True)
    assert name.encode() in (tmp_path / "out.dcm").read_bytes()


def test_equal_uids_of_study_and_space_are_the_senders_business(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = small_case(tmp_path, monkeypatch, {"FrameOfReferenceUID": digest_uid("study")})
    assert encode_pack(**case.arguments(kinds=wanted(sc=False), out=tmp_path / "dicom")).objects
