"""The report as a PDF: off by default, legal, of the right patient, and with the words of the report in it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from results_factory import content, make_case

from dicom_io.content.context import ResultContext
from dicom_io.content.report import RESEARCH_USE_LINE, ComparisonRecord
from dicom_io.content.sources import read_sources
from dicom_io.objects.kinds import PDF
from dicom_io.objects.pdf import draw_pdf
from dicom_io.pack.encode import encode_pack, wanted
from dicom_io.pack.validate import dciodvfy_errors

ONLY = wanted(sr=False, sc=False, pm=False, seg=False, pdf=True)


def text_of(pdf: bytes, folder: Path) -> str:
    """All words, one blank between them."""
    return " ".join(pages_of(pdf, folder))


def pages_of(pdf: bytes, folder: Path) -> list[str]:
    """The words of each page, one blank between them."""
    if shutil.which("pdftotext") is None:
        pytest.skip("pdftotext (Debian poppler-utils) is not installed")
    (folder / "r.pdf").write_bytes(pdf)
    command = ["pdftotext", "-layout", str(folder / "r.pdf"), "-"]
    written = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [" ".join(page.split()) for page in written.split("\f") if page.strip()]


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
    said = text_of(pdf, tmp_path)
    for words in (RESEARCH_USE_LINE, "Böhm", "2 slices were repeated", "Lesion: present, left, frontal, parietal",
                  "Lesion volume, left:", "left frontal and parietal lobes", "ab" * 32):  # fmt: skip
        assert words in said
    assert said.index("Lesion: present") < said.index("ab" * 32)


@pytest.mark.skipif(shutil.which("pdftoppm") is None, reason="pdftoppm (Debian poppler-utils) is not installed")
def test_pictures_are_whole_wherever_the_text_ends(tmp_path: Path) -> None:
    """Three pictures of one colour, below texts that end all over the page: none is cut off at its end."""
    case = make_case(tmp_path)
    colour, pictures = (255, 0, 255), [Image.new("RGB", (100, 120), (255, 0, 255))] * 3
    for lines in range(21, 48, 5):
        said = content(warnings=tuple(f"Warning {number} of some length." for number in range(lines)))
        context = ResultContext(read_sources(case.files, case.geometry), case.geometry, said, "x")
        (tmp_path / "r.pdf").write_bytes(draw_pdf(context, pictures))
        command = ["pdftoppm", "-r", "25.4", "-png", str(tmp_path / "r.pdf"), str(tmp_path / f"page{lines}")]
        subprocess.run(command, check=True)
        pages = [np.asarray(Image.open(path).convert("RGB")) for path in sorted(tmp_path.glob(f"page{lines}-*.png"))]
        shown = [int((page == colour).all(axis=2).sum()) for page in pages]  # mm2
        assert max(shown) == sum(shown) == pytest.approx(3 * 60 * 72, rel=0.05), f"{lines} lines"


def test_what_changed_since_an_earlier_study_stands_in_it(tmp_path: Path) -> None:
    case = make_case(tmp_path, said=content(comparison=ComparisonRecord(("Lesion volume then 3.0 mL, now 40.0 mL.",))))
    context = ResultContext(read_sources(case.files, case.geometry), case.geometry, case.content, "x")
    assert "Lesion volume then 3.0 mL, now 40.0 mL." in text_of(draw_pdf(context, []), tmp_path)


def test_each_page_says_that_it_is_for_research_and_whose_it_is(tmp_path: Path) -> None:
    said = content(warnings=tuple(f"Warning {number} of some length." for number in range(150)))
    case = make_case(tmp_path, said=said)
    context = ResultContext(read_sources(case.files, case.geometry), case.geometry, said, "x")
    pages = pages_of(draw_pdf(context, []), tmp_path)
    assert len(pages) > 2
    for number, page in enumerate(pages, start=1):
        assert page.startswith(RESEARCH_USE_LINE)
        assert "Böhm" in page
        assert f"page {number}" in page
