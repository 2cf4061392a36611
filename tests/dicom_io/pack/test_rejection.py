from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from pydicom import dcmread
from results_factory import default_pack

from dicom_io.content.equipment import is_own_result
from dicom_io.errors import PackError
from dicom_io.objects.kinds import KINDS
from dicom_io.pack.rejection import encode_rejection
from dicom_io.pack.validate import dciodvfy_errors


def test_the_images_of_the_replaced_pack_are_rejected(tmp_path: Path) -> None:
    case, pack = default_pack()
    item = encode_rejection(pack, tmp_path / "rejection.dcm")
    document = dcmread(item.path)
    assert document.SOPClassUID == "1.2.840.10008.5.1.4.1.1.88.59"
    title = document.ConceptNameCodeSequence[0]
    assert (title.CodeValue, title.CodingSchemeDesignator) == ("113001", "DCM")
    assert document.StudyInstanceUID == case.geometry.study_uid
    assert str(document.PatientName) == "Böhm^Zoë"
    (study,) = document.CurrentRequestedProcedureEvidenceSequence
    listed = {i.ReferencedSOPInstanceUID for s in study.ReferencedSeriesSequence for i in s.ReferencedSOPSequence}
    images = {i.sop_instance_uid for kind in KINDS if kind.withdrawn for i in pack.of_kind(kind.name)}
    assert listed == images
    assert pack.of_kind("sr")[0].sop_instance_uid not in listed
    assert item.series_uid not in {i.series_uid for i in pack.objects}
    assert is_own_result(document)
    assert dciodvfy_errors(item.path) == []


def test_its_first_bytes_win(tmp_path: Path) -> None:
    _, pack = default_pack()
    first = encode_rejection(pack, tmp_path / "rejection.dcm")
    before = first.path.read_bytes()
    assert encode_rejection(pack, tmp_path / "rejection.dcm") == first
    assert first.path.read_bytes() == before
    again = encode_rejection(pack, tmp_path / "again.dcm")
    assert (again.sop_instance_uid, again.series_uid) == (first.sop_instance_uid, first.series_uid)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.dcm", "rejection.dcm"]


def test_only_our_own_images_can_be_rejected(tmp_path: Path) -> None:
    case, pack = default_pack()
    with pytest.raises(PackError, match="found none"):
        encode_rejection(replace(pack, objects=pack.of_kind("sr")), tmp_path / "r.dcm")
    received = replace(pack.of_kind("sc")[0], path=case.files[0])
    with pytest.raises(PackError, match="our own results only"):
        encode_rejection(replace(pack, objects=(received,)), tmp_path / "r.dcm")
    assert not (tmp_path / "r.dcm").exists()
