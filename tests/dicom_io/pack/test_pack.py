from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from pydicom import Dataset, dcmread
from results_factory import content, default_pack, head, make_case
from validators import pixelmed

from dicom_io.content.kind import ResultKind
from dicom_io.content.report import FindingRecord, ModelIdentity
from dicom_io.content.uids import digest_uid
from dicom_io.errors import FileError, PackError
from dicom_io.objects.kinds import SR
from dicom_io.pack import encode
from dicom_io.pack.encode import MANIFEST, encode_pack, load_pack, reports_of, wanted
from dicom_io.pack.rejection import withdrawn

QUICK = wanted(sc=False, pm=False)


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): (p.read_bytes(), p.stat().st_mtime_ns) for p in files}


def test_the_pack_holds_what_was_asked_for_in_the_order_of_sending() -> None:
    case, pack = default_pack()
    root = pack.objects[0].path.parent
    names = [item.path.relative_to(root).as_posix() for item in pack.objects]
    assert names == ["sr.dcm", *(f"sc/{n:04d}.dcm" for n in range(1, 37)), "pm.dcm", "seg.dcm", "tid1500.dcm"]
    assert sorted(p.name for p in root.iterdir()) == [MANIFEST, "pm.dcm", "sc", "seg.dcm", "sr.dcm", "tid1500.dcm"]
    assert pack.study_uid == case.geometry.study_uid
    for item in pack.objects:
        header = dcmread(item.path, stop_before_pixels=True)
        assert (item.sop_class_uid, item.sop_instance_uid, item.series_uid) == (
            header.SOPClassUID,
            header.SOPInstanceUID,
            header.SeriesInstanceUID,
        )
    assert len({item.series_uid for item in pack.objects}) == 5
    assert list(root.parent.glob(".*")) == []  # no working folder is left


def test_few_objects_wait_to_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the disk is slow: each of them is in memory."""
    made, written, most = 0, [], 0

    def objects(*_: object) -> Iterator[tuple[ResultKind, int, Dataset]]:
        nonlocal made, most
        for made in range(1, 50):
            most = max(most, made - len(written))
            yield SR, made, Dataset()

    def slowly(*given: object) -> None:
        time.sleep(0.01)
        written.append(given)

    monkeypatch.setattr(encode, "_encoded", objects)
    monkeypatch.setattr(encode, "_save", slowly)
    assert len(encode._write(SimpleNamespace(context=None), (), tmp_path)) == made == len(written) == 49
    assert most <= 2 * encode.WRITERS + 1


def test_the_first_bytes_win(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    arguments = case.arguments(kinds=QUICK, out=tmp_path / "dicom")
    first = encode_pack(**arguments)
    before = contents(tmp_path / "dicom")
    changed = arguments | {
        "content": content(report_text="Another text."),
        "source_files": [],
        "kinds": wanted(),
    }
    assert encode_pack(**changed) == first  # type: ignore[arg-type]
    assert contents(tmp_path / "dicom") == before
    assert load_pack(tmp_path / "dicom") == first


def test_same_identity_same_uids_other_identity_other_uids(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    uids = []
    for number, identity in enumerate(("one", "one", "two")):
        pack = encode_pack(**case.arguments(kinds=QUICK, out=tmp_path / str(number), identity=identity))
        uids.append({item.sop_instance_uid for item in pack.objects} | {item.series_uid for item in pack.objects})
    assert uids[0] == uids[1]
    assert uids[0].isdisjoint(uids[2])


def test_a_late_slice_gives_other_uids(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    complete = encode_pack(**case.arguments(kinds=QUICK, out=tmp_path / "complete"))
    geometry = replace(case.geometry, slices=case.geometry.slices[:-1])
    early = encode_pack(
        **case.arguments(kinds=QUICK, out=tmp_path / "early", geometry=geometry, source_files=case.files[:-1])
    )
    assert {i.sop_instance_uid for i in complete.objects}.isdisjoint(i.sop_instance_uid for i in early.objects)


def test_another_pack_in_the_way_is_kept(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    encode_pack(**case.arguments(kinds=QUICK, out=tmp_path / "dicom"))
    before = contents(tmp_path / "dicom")
    with pytest.raises(PackError, match="or the pack of other, found the pack of case"):
        encode_pack(**case.arguments(kinds=QUICK, out=tmp_path / "dicom", identity="other"))
    assert contents(tmp_path / "dicom") == before


def test_strange_files_in_the_way_are_kept(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    (tmp_path / "dicom").mkdir()
    (tmp_path / "dicom" / "thesis.txt").write_text("mine")
    with pytest.raises(PackError, match="found files that are no pack"):
        encode_pack(**case.arguments(kinds=QUICK, out=tmp_path / "dicom"))
    assert (tmp_path / "dicom" / "thesis.txt").read_text() == "mine"


def test_a_killed_run_is_taken_up_anew(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    (tmp_path / ".part-dicom" / "sc").mkdir(parents=True)
    (tmp_path / ".part-dicom" / "sr.dcm").write_bytes(b"half")
    (tmp_path / "dicom").mkdir()
    pack = encode_pack(**case.arguments(kinds=QUICK, out=tmp_path / "dicom"))
    assert load_pack(tmp_path / "dicom") == pack
    assert not (tmp_path / ".part-dicom").exists()


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    case = make_case(tmp_path, said=content(model=ModelIdentity("model", "", "ab" * 32, "us")))
    with pytest.raises(PackError, match="expected text, found none"):  # the algorithm's version
        encode_pack(**case.arguments(kinds=QUICK, out=tmp_path / "dicom"))
    assert not (tmp_path / "dicom").exists()
    assert not (tmp_path / ".part-dicom").exists()


@pytest.mark.parametrize("field", ["report_text", "intended_use"])
def test_an_empty_report_is_refused(field: str) -> None:
    with pytest.raises(PackError, match="expected text, got"):
        content(**{field: " \n"})


def test_a_successor_names_the_report_it_replaces(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    old = encode_pack(**case.arguments(kinds=QUICK, out=tmp_path / "old"))
    arguments = case.arguments(kinds=QUICK, out=tmp_path / "new", identity="new", predecessors=reports_of(old))
    new = encode_pack(**arguments)
    document = dcmread(new.of_kind("sr")[0].path)
    listed = document.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
    assert listed.ReferencedSOPInstanceUID == old.of_kind("sr")[0].sop_instance_uid
    assert "PredecessorDocumentsSequence" not in dcmread(old.of_kind("sr")[0].path)


def test_the_same_results_are_taken_over_and_not_encoded_again(tmp_path: Path) -> None:
    """An instance of another series that came late makes a new job with the same results: one UID, one content."""
    case = make_case(tmp_path)
    old = encode_pack(**case.arguments(kinds=QUICK, out=tmp_path / "old"))
    arguments = case.arguments(kinds=QUICK, out=tmp_path / "new", predecessors=reports_of(old))
    new = encode_pack(**arguments, earlier=tmp_path / "old")
    assert contents(tmp_path / "new") == contents(tmp_path / "old")
    assert [item.sop_instance_uid for item in new.objects] == [item.sop_instance_uid for item in old.objects]
    assert withdrawn(old, by=new) == ()
    other = case.arguments(kinds=QUICK, out=tmp_path / "other", identity="other", predecessors=reports_of(old))
    changed = encode_pack(**other, earlier=tmp_path / "old")
    assert not {i.sop_instance_uid for i in changed.objects} & {i.sop_instance_uid for i in old.objects}
    assert withdrawn(old, by=changed) == old.of_kind("seg")


def test_rounded_directions_and_positions_are_no_obstacle(tmp_path: Path) -> None:
    def rounded(header: Dataset, index: int) -> None:
        header.ImageOrientationPatient = [round(float(v), 3) for v in header.ImageOrientationPatient]
        header.ImagePositionPatient = [round(float(v), 1) for v in header.ImagePositionPatient]

    case = make_case(tmp_path, tilted=True, edit=rounded)
    assert len(encode_pack(**case.arguments(kinds=wanted(tid1500=True), out=tmp_path / "dicom")).objects) == 40


@pytest.mark.parametrize("damage", ["changed", "missing", "manifest"])
def test_a_damaged_pack_is_not_sent(damage: str, tmp_path: Path) -> None:
    case = make_case(tmp_path)
    encode_pack(**case.arguments(kinds=QUICK, out=tmp_path / "dicom"))
    path = tmp_path / "dicom" / "sr.dcm"
    if damage == "changed":
        path.write_bytes(path.read_bytes()[:-2] + b"xx")
    elif damage == "missing":
        path.unlink()
    else:
        (tmp_path / "dicom" / MANIFEST).write_text(json.dumps({"identity": "case"}))
    with pytest.raises(PackError, match="expected the"):
        encode_pack(**case.arguments(kinds=QUICK, out=tmp_path / "dicom"))


def test_without_a_frame_of_reference_there_are_report_and_pictures_only(tmp_path: Path) -> None:
    def unplaced(header: Dataset, index: int) -> None:
        del header.FrameOfReferenceUID
        del header.PositionReferenceIndicator

    case = make_case(tmp_path, edit=unplaced)
    assert case.geometry.frame_of_reference_uid is None
    pack = encode_pack(**case.arguments(kinds=wanted(), out=tmp_path / "dicom"))
    assert {item.kind for item in pack.objects} == {"sr", "sc"}
    overlay = dcmread(pack.of_kind("sc")[0].path)
    assert "FrameOfReferenceUID" not in overlay
    assert "ImagePositionPatient" not in overlay
    assert list(overlay.PatientOrientation) == ["L", "P"]


def test_without_an_explanation_there_are_report_and_grey_pictures(tmp_path: Path) -> None:
    case = make_case(tmp_path, said=content(explain=None))
    nothing = {"saliency_path": None, "lesion_path": None}
    options = wanted(tid1500=True)
    pack = encode_pack(**case.arguments(kinds=options, out=tmp_path / "dicom", **nothing))
    assert {item.kind for item in pack.objects} == {"sr", "sc"}


@pytest.mark.parametrize(
    ("plane", "lesion", "edema"),
    [("axial", "present", "present"), ("sagittal", "absent", "present"), ("axial", "absent", "absent")],
)
def test_one_lesion_volume_stands_everywhere(plane: str, lesion: str, edema: str, tmp_path: Path) -> None:
    """Also where the text denies the lesion, whatever it says of other findings."""
    case = make_case(
        tmp_path, plane, said=content(findings=(FindingRecord("lesion", lesion), FindingRecord("edema", edema)))
    )
    pack = encode_pack(**case.arguments(kinds=wanted(sc=False, pm=False, tid1500=True), out=tmp_path / "dicom"))
    sr, regions, segmentation = (dcmread(pack.of_kind(kind)[0].path) for kind in ("sr", "tid1500", "seg"))
    stated = case.content.measurements[0].value
    assert volumes_in(sr) == [stated]
    assert volumes_in(regions)[-1] == stated  # the first is that of the supporting region
    shared = segmentation.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    voxel_ml = float(np.prod(shared.PixelSpacing)) * float(shared.SpacingBetweenSlices) / 1000
    last = len(segmentation.SegmentSequence)
    groups = [segmentation.SharedFunctionalGroupsSequence[0], *segmentation.PerFrameFunctionalGroupsSequence]
    numbers = [
        g.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        for g in groups
        if "SegmentIdentificationSequence" in g
    ]
    drawn = segmentation.pixel_array[np.array(numbers) == last] if last > 1 else segmentation.pixel_array
    assert drawn.sum() * voxel_ml == pytest.approx(stated, abs=0.05)
    denied = "" if lesion == "present" else "; the draft states none as present"
    assert segmentation.SegmentSequence[-1].SegmentLabel == f"Lesion as estimated by AI{denied}"


def volumes_in(document: Dataset) -> list[float]:
    found = []
    for item in document.get("ContentSequence", []):
        if item.ValueType == "NUM" and item.ConceptNameCodeSequence[0].CodeValue == "118565006":
            found.append(float(item.MeasuredValueSequence[0].NumericValue))
        found += volumes_in(item)
    return found


def test_options_must_make_sense() -> None:
    with pytest.raises(PackError, match="tid1500 needs sr"):
        wanted(sr=False, tid1500=True)
    with pytest.raises(PackError, match="at least one"):
        wanted(sr=False, sc=False, pm=False, seg=False)


def test_sources_of_another_study_are_refused(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    stranger = dcmread(case.files[0])
    stranger.StudyInstanceUID, stranger.SOPInstanceUID = digest_uid("other"), digest_uid("stranger")
    stranger.save_as(tmp_path / "stranger.dcm")
    with pytest.raises(PackError, match="expected instances of study"):
        encode_pack(
            **case.arguments(kinds=QUICK, out=tmp_path / "d", source_files=[*case.files, tmp_path / "stranger.dcm"])
        )
    with pytest.raises(PackError, match="1 of 36 slices have no file"):
        encode_pack(**case.arguments(kinds=QUICK, out=tmp_path / "d", source_files=case.files[1:]))
    (tmp_path / "text.dcm").write_text("no DICOM at all")
    with pytest.raises(FileError, match="expected a DICOM instance"):
        encode_pack(**case.arguments(kinds=QUICK, out=tmp_path / "d", source_files=[tmp_path / "text.dcm"]))


def test_findings_must_be_codable() -> None:
    unknown = [
        ("lump", "present"),
        ("lesion", "maybe"),
        ("lesion", "present", "up"),
        ("lesion", "present", None, ("ear",)),
    ]
    for fields in unknown:
        with pytest.raises(PackError, match="expected one of"):
            FindingRecord(*fields)  # type: ignore[arg-type]
    with pytest.raises(PackError, match="probability"):
        FindingRecord("lesion", "present", confidence=1.2)


# --- old and odd sources ----------------------------------------------------------------------------------------------


def minimal(header: Dataset, index: int) -> None:
    """Nothing but what a slice cannot do without."""
    kept = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality", "Rows", "Columns",
            "PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient", "FrameOfReferenceUID")  # fmt: skip
    for element in list(header):
        if element.keyword not in kept:
            del header[element.tag]


def ancient(header: Dataset, index: int) -> None:
    """Values that were never or are no longer legal."""
    header.SpecificCharacterSet = ["ISO 2022 IR 6", "ISO 2022 IR 87"]
    header.PatientName = "Yamada^Tarou=山田^太郎=やまだ^たろう"
    header.PatientSex = "U"
    header._dict[header.data_element("PatientBirthDate").tag].value = "1970"  # the parts of a date
    header.PatientAge = "54"
    header.StudyTime = "10:11:12"
    del header.StudyID
    header.AccessionNumber = ""
    header.StudyDescription = "頭部"
    header.PatientWeight = "70.1234567890123456789"


def long_uids(header: Dataset, index: int) -> None:
    for root, keyword in enumerate(("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"), start=1):
        setattr(header, keyword, f"1.2.{root}." + "3" * 58)
    header.SOPInstanceUID = f"1.2.{100 + index}." + "4" * 56


def cyrillic(header: Dataset, index: int) -> None:
    header.SpecificCharacterSet = "ISO_IR 144"
    header.PatientName = "Люкceмбypг"
    header.PatientID = "ПАЦИЕНТ-1"


def chinese(header: Dataset, index: int) -> None:
    header.SpecificCharacterSet = "GB18030"
    header.PatientName = "Wang^XiaoDong=王^小东"


OLD = {"minimal": minimal, "ancient": ancient, "long uids": long_uids, "cyrillic": cyrillic, "chinese": chinese}


@pytest.mark.parametrize("kind", OLD)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_results_of_old_headers_are_legal(kind: str, tmp_path: Path) -> None:
    """`encode_pack` runs dciodvfy on what it makes: no Error, or no pack."""
    small = nib.Nifti1Image(head((20, 24, 12)), np.diag([8.0, 8, 12, 1]))
    zeros = np.zeros((20, 24, 12), dtype=np.float32)
    zeros[4:8, 12:16, 5:8] = 0.7
    case = make_case(tmp_path, image=small, weights=zeros, lesion=zeros, edit=OLD[kind])
    pack = encode_pack(**case.arguments(kinds=wanted(tid1500=True), out=tmp_path / "dicom"))
    assert {item.kind for item in pack.objects} == {"sr", "sc", "pm", "seg", "tid1500"}
    received = dcmread(case.files[0])
    for item in pack.objects:
        made = dcmread(item.path, stop_before_pixels=True)
        assert made.StudyInstanceUID == received.StudyInstanceUID
        assert str(made.PatientName) == str(received.get("PatientName", ""))
        assert str(made.PatientID) == str(received.get("PatientID", ""))
        assert made.get("StudyDescription", "") == received.get("StudyDescription", "")
        # Its physician's name does not fit the label: all texts keep their bytes, and the label with them.
        label = received.SpecificCharacterSet if kind == "ancient" else "ISO_IR 192"
        assert made.SpecificCharacterSet == label


@pytest.mark.skipif(shutil.which("DicomSRValidator") is None, reason="DicomSRValidator (pixelmed-apps) is missing")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_pixelmed_accepts_the_report_on_a_minimal_header(tmp_path: Path) -> None:
    case = make_case(tmp_path, edit=minimal)
    pack = encode_pack(**case.arguments(kinds=wanted(sc=False, pm=False, seg=False), out=tmp_path / "dicom"))
    said = pixelmed(pack.of_kind("sr")[0].path)
    assert "Found Root Template TID_2000" in said
    assert "Error" not in said, said
