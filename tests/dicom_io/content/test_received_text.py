"""Identities whose bytes do not fit their label: the same bytes in every result, as dcmtk reads them."""

from __future__ import annotations

import datetime
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from pydicom import Dataset, config, dcmread
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag
from results_factory import Case, content, head, make_case

from dicom_io import header
from dicom_io.content.received_text import under_received_label
from dicom_io.content.sources import normalised_header
from dicom_io.pack.encode import encode_pack, wanted
from dicom_io.pack.rejection import encode_rejection
from dicom_io.pack.verified import Verification, encode_verified

TAGS = {
    "SpecificCharacterSet": 0x00080005, "AccessionNumber": 0x00080050, "PatientName": 0x00100010,
    "PatientID": 0x00100020, "StudyDescription": 0x00081030,
}  # fmt: skip
RECEIVED: dict[str, dict[str, bytes]] = {
    "Latin under UTF-8": {
        "SpecificCharacterSet": b"ISO_IR 192", "PatientName": b"J\xe9r\xf4me^X", "PatientID": b"N\xb01"},
    "no label": {"PatientName": b"J\xe9r\xf4me^X ", "AccessionNumber": b"\xc41"},
    "a label nobody knows": {"SpecificCharacterSet": b"ISO_IR 999", "PatientName": b"M\xfcller^A"},
    "an unknown escape sequence": {
        "SpecificCharacterSet": b"\\ISO 2022 IR 58 ", "PatientName": b"Wang=\x1b$)Q\xcd\xf5^\xa1\xa1"},
    "half a character": {
        "SpecificCharacterSet": b"\\ISO 2022 IR 149", "PatientName": b"Hong=\x1b$)C\xfb\xf3^\xd1",
        "PatientID": b"ID=\xb0 "},
    "one wrong name beside a right one": {
        "SpecificCharacterSet": b"GB18030 ", "PatientName": b"Wang^\xff\xff", "StudyDescription": b"\xcd\xb7\xb2\xbf"},
}  # fmt: skip


def raw(dataset: Dataset, values: dict[str, bytes]) -> None:
    """Put bytes in, whatever the label says."""
    dataset.pop("SpecificCharacterSet", None)
    dataset.pop("RequestAttributesSequence", None)  # else it would name the order
    for keyword, value in values.items():
        dataset.pop(keyword, None)
        vr = {"SpecificCharacterSet": "CS", "PatientName": "PN", "AccessionNumber": "SH"}.get(keyword, "LO")
        tag = Tag(TAGS[keyword])
        dataset._dict[tag] = RawDataElement(tag, vr, len(value), value, 0, False, True)


@pytest.fixture(params=RECEIVED)
def values(request: pytest.FixtureRequest) -> dict[str, bytes]:
    return {k: v + b" " * (len(v) % 2) for k, v in RECEIVED[request.param].items()}


@pytest.fixture
def case(tmp_path: Path, values: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Case:
    image = nib.Nifti1Image(head((20, 24, 12)), np.diag([8.0, 8, 12, 1]))
    region = np.zeros((20, 24, 12), dtype=np.float32)
    region[4:8, 12:16, 5:8] = 0.7
    with monkeypatch.context() as patch:
        patch.setattr(config.settings, "_writing_validation_mode", config.IGNORE)
        said = content(warnings=("The volume is 12 ± 1 ml – “about”, 王.",))
        made = make_case(tmp_path, image=image, weights=region, lesion=region, said=said)
        for path in made.files:
            with_bytes(path, lambda dataset: raw(dataset, values))
    return made


def with_bytes(path: Path, change: Callable[[Dataset], None]) -> None:
    dataset = dcmread(path)
    change(dataset)
    dataset.set_original_encoding(False, True, dataset._character_set)
    dataset.save_as(path)


def dumped(path: Path) -> dict[str, bytes]:
    """The values that dcmtk finds in a file's top level, byte for byte."""
    tool = shutil.which("dcmdump")
    if tool is None:
        pytest.skip("dcmtk is not installed")
    out = subprocess.run([tool, "-q", "-Un", "+L", str(path)], capture_output=True, check=True).stdout
    found = re.findall(rb"^\(([0-9a-f]{4}),([0-9a-f]{4})\) (?:CS|PN|LO|SH) \[(.*?)\] +#", out, re.M | re.S)
    by_tag = {int(group + element, 16): value for group, element, value in found}
    return {keyword: by_tag[tag] for keyword, tag in TAGS.items() if tag in by_tag}


@pytest.mark.filterwarnings("ignore:Unknown encoding:UserWarning:pydicom")
def test_every_result_holds_the_bytes_and_the_label_of_the_source(
    case: Case, values: dict[str, bytes], tmp_path: Path
) -> None:
    received = dumped(case.files[0])
    assert {k: received[k].rstrip() for k in values} == {k: v.rstrip() for k, v in values.items()}
    pack = encode_pack(**case.arguments(kinds=wanted(tid1500=True, pdf=True), out=tmp_path / "dicom"))
    assert {item.kind for item in pack.objects} == {"sr", "sc", "pm", "seg", "tid1500", "pdf"}
    results = [item.path for item in pack.objects]
    encode_rejection(pack, tmp_path / "rejection.dcm")
    results += [tmp_path / "rejection.dcm", verified(case, tmp_path)]
    for path in results:
        written = dumped(path)
        for keyword in ("SpecificCharacterSet", "PatientName", "PatientID", "AccessionNumber"):
            assert written.get(keyword, b"").rstrip() == received.get(keyword, b"").rstrip(), (path.name, keyword)
    if "AccessionNumber" in values:
        document = dcmread(results[0])
        [request] = document.ReferencedRequestSequence
        assert header.raw_text(request, "AccessionNumber") == values["AccessionNumber"]
    if values.get("SpecificCharacterSet") != b"ISO_IR 192":
        rest = results[0].read_bytes()
        for value in values.values():
            rest = rest.replace(value.rstrip(), b"")
        assert "王".encode() not in rest
        assert b"The volume is 12 +- 1 ml - " in rest
        assert b"&#29579;" in rest


def verified(case: Case, folder: Path) -> Path:
    said = Verification("Reader", "Hospital", datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC))
    out = folder / "verified.dcm"
    encode_verified(
        source_files=case.files, geometry=case.geometry, volume_path=case.volume_path,
        saliency_path=case.saliency_path, lesion_path=case.lesion_path, display=None, content=case.content,
        verification=said, draft=folder / "dicom", out=out,
    )  # fmt: skip
    return out


def test_what_can_be_decoded_is_written_in_utf8_as_before() -> None:
    received = Dataset()
    received.StudyInstanceUID = "1.2.3"
    raw(received, {"SpecificCharacterSet": b"ISO_IR 100", "PatientName": b"J\xe9r\xf4me"})
    made = normalised_header(received)
    assert (made.SpecificCharacterSet, str(made.PatientName)) == ("ISO_IR 192", "Jérôme")
    assert under_received_label(made, made) is made
