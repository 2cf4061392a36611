"""The report as a PDF: off by default, legal, of the right patient, and with the words of the report in it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from pydicom import dcmread
from results_factory import make_case

from dicom_io.content.report import RESEARCH_USE_LINE
from dicom_io.objects.kinds import PDF
from dicom_io.pack.encode import encode_pack, wanted
from dicom_io.pack.validate import dciodvfy_errors

ONLY = wanted(sr=False, sc=False, pm=False, seg=False, pdf=True)


def test_it_is_off_by_default() -> None:
    assert PDF not in wanted()


def test_the_pages_say_what_the_report_says(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    pack = encode_pack(**case.arguments(kinds=ONLY, out=tmp_path / "dicom"))
    [item] = pack.objects
    document = dcmread(item.path)
    assert (item.path.name, document.Modality, document.SOPClassUID) == ("pdf.dcm", "DOC", PDF.sop_class_uid)
    assert (str(document.PatientName), document.AccessionNumber) == ("Böhm^Zoë", "A1")
    assert document.MIMETypeOfEncapsulatedDocument == "application/pdf"
    assert document.DocumentTitle.startswith(RESEARCH_USE_LINE)
    assert dciodvfy_errors(item.path) == []
    pdf = bytes(document.EncapsulatedDocument)[: document.EncapsulatedDocumentLength]
    assert pdf.startswith(b"%PDF-")
    if shutil.which("pdftotext") is None:
        pytest.skip("pdftotext (Debian poppler-utils) is not installed")
    (tmp_path / "r.pdf").write_bytes(pdf)
    command = ["pdftotext", "-layout", str(tmp_path / "r.pdf"), "-"]
    said = " ".join(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    for words in (RESEARCH_USE_LINE, "Böhm", "2 slices were repeated", "Lesion: present, left, frontal, parietal",
                  "Lesion volume, left:", "left frontal and parietal lobes", "ab" * 32):  # fmt: skip
        assert words in said
    assert said.index("Lesion: present") < said.index("ab" * 32)
