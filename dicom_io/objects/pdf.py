"""The report as an Encapsulated PDF (PS3.3 A.45.1), for viewers that do not show structured reports.

The same order as in the SR: what it is, warnings, impression, findings, text, key pictures, then how it was made.
"""

from __future__ import annotations

import datetime
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path

from fpdf import FPDF
from highdicom.sr import CodedConcept
from PIL import Image
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from dicom_io.content import codes
from dicom_io.content.context import ResultContext
from dicom_io.content.received_text import shown
from dicom_io.content.regions import SourceVolumes
from dicom_io.content.report import MODEL_LIMITS, RESEARCH_USE_LINE, in_words
from dicom_io.content.sources import Sources
from dicom_io.header import readable_name
from dicom_io.objects.case import Case
from dicom_io.objects.kinds import PDF
from dicom_io.objects.overlay import OverlayRenderer
from dicom_io.objects.rules import Faults, value_faults
from dicom_io.volume.geometry import SeriesGeometry

MIME_TYPE = "application/pdf"
FONT = "mpl-data/fonts/ttf/DejaVuSans.ttf"
"""In matplotlib, which ships a font with more than Latin letters."""
WIDTH_MM = 190
PICTURE_MM = 60
GAP_MM = 3
"""Above and below pictures."""
RED = (176, 0, 32)


def make(case: Case) -> list[Dataset]:
    """The document."""
    return [encode_pdf(case.context, case.volumes, case.key_slices)]


def faults(dataset: Dataset, sources: Sources, geometry: SeriesGeometry) -> Faults:
    """What makes it no PDF that viewers open."""
    del sources, geometry
    yield from value_faults(dataset, {"BurnedInAnnotation": "YES"})
    if not bytes(dataset.get("EncapsulatedDocument") or b"").startswith(b"%PDF-"):
        yield "EncapsulatedDocument: expected a PDF, found none"


def encode_pdf(context: ResultContext, volumes: SourceVolumes, key_slices: Sequence[int]) -> Dataset:
    """Build the document.

    Args:
        context: What to say, and of which study.
        volumes: Volumes on the source grid.
        key_slices: Indices into the geometry's slices that are drawn.
    """
    renderer = OverlayRenderer(context.geometry, volumes, context.content)
    pictures = [Image.fromarray(renderer.render(index)) for index in key_slices]
    return _encapsulated(context, draw_pdf(context, pictures))


def draw_pdf(context: ResultContext, pictures: Sequence[Image.Image]) -> bytes:
    """The pages."""
    page, content = _Report(context), context.content
    for title, lines in (
        ("Warnings", content.warnings or ("None.",)),
        ("Impression", [*content.impression(), *content.processed()]),
        ("Report", [content.report_text]),
    ):
        _section(page, title, lines)
    _row(page, pictures)
    model = content.model
    made = [f"{name.replace('_', ' ')}: {in_words(value)}" for name, value in sorted(model.parameters.items())]
    explained = [f"explanation: {in_words(content.explain)}"] if content.explain else []
    named = [f"{model.name} {model.version} ({model.manufacturer})", f"weights SHA-256: {model.weights_sha256}"]
    _section(page, "How it was made", [*named, *made, *explained], size=7)
    _section(page, "Intended use", [content.intended_use, MODEL_LIMITS], size=7)
    return bytes(page.output())


class _Report(FPDF):
    """Pages of which each says by itself what it is, and whose: on paper they come apart."""

    def __init__(self, context: ResultContext) -> None:
        super().__init__(format="A4")
        self._what, self._whose = context.content.banner, "   ".join(_study(context))
        found = importlib.util.find_spec("matplotlib")
        folder = next(iter(found.submodule_search_locations or ())) if found is not None else ""
        self.add_font("report", fname=Path(folder) / FONT)
        self.set_title(RESEARCH_USE_LINE)
        self.add_page()

    def header(self) -> None:
        """Drawn by fpdf2 at the top of each page."""
        _line(self, RESEARCH_USE_LINE, size=12, colour=RED)
        if self._what:
            _line(self, self._what, colour=RED)
        _line(self, f"{self._whose}   page {self.page_no()}")


def _study(context: ResultContext) -> Iterator[str]:
    source = context.sources.header
    for label, keyword in (("Patient", "PatientName"), ("ID", "PatientID"), ("Study date", "StudyDate")):
        if source.get(keyword):
            value = str(source[keyword].value)
            yield shown(f"{label}: {readable_name(value) if keyword == 'PatientName' else value}")


def _section(page: FPDF, title: str, lines: Sequence[str], size: int = 9) -> None:
    page.ln(2)
    _line(page, title, size=size + 2)
    for line in lines:
        _line(page, line, size=size)


def _row(page: FPDF, pictures: Sequence[Image.Image]) -> None:
    """The pictures beside each other, on a new page where this one has no room for them."""
    height = max((PICTURE_MM * picture.height / picture.width for picture in pictures), default=0)
    if page.will_page_break(GAP_MM + height):
        page.add_page()
    top = page.get_y() + GAP_MM
    for number, picture in enumerate(pictures):
        page.image(picture, x=page.l_margin + number * (PICTURE_MM + 5), y=top, w=PICTURE_MM)
    if pictures:
        page.set_y(top + height + GAP_MM)


def _line(page: FPDF, text: str, size: int = 9, colour: tuple[int, int, int] = (0, 0, 0)) -> None:
    page.set_font("report", size=size)
    page.set_text_color(*colour)
    page.multi_cell(WIDTH_MM, size * 0.5, text, new_x="LMARGIN", new_y="NEXT")


def _encapsulated(context: ResultContext, pdf: bytes) -> Dataset:
    """Modules of PS3.3 A.45.1.3."""
    document = Dataset()
    document.file_meta = FileMetaDataset()
    document.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    document.update({element.tag: element for element in context.sources.patient_and_study()})
    document.StudyInstanceUID = context.geometry.study_uid
    now = datetime.datetime.now().astimezone()
    for keyword, value in context.identification(PDF).items():
        name = {"manufacturer_model_name": "ManufacturerModelName"}.get(keyword) or _keyword(keyword)
        setattr(document, name, value)
    document.SOPClassUID, document.Modality = PDF.sop_class_uid, PDF.modality
    document.InstanceCreationDate = document.ContentDate = now.strftime("%Y%m%d")
    document.InstanceCreationTime = document.ContentTime = now.strftime("%H%M%S")
    document.AcquisitionDateTime = ""
    document.ConversionType, document.BurnedInAnnotation = "WSD", "YES"
    document.DocumentTitle = " ".join(part for part in (RESEARCH_USE_LINE, context.content.banner) if part)
    document.ConceptNameCodeSequence = [CodedConcept.from_code(codes.DIAGNOSTIC_IMAGING_REPORT)]
    document.MIMETypeOfEncapsulatedDocument = MIME_TYPE
    document.EncapsulatedDocumentLength = len(pdf)
    document.EncapsulatedDocument = pdf + b"\0" * (len(pdf) % 2)
    context.finish(document)
    return document


def _keyword(argument: str) -> str:
    """The DICOM keyword of one of highdicom's arguments."""
    words = {"uid": "UID", "sop": "SOP"}
    return "".join(words.get(word, word.capitalize()) for word in argument.split("_"))
