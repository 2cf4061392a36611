"""A report that a reader confirmed or edited, as a new SR that names the draft as its predecessor.

The research-use line stays: a reader's word does not make a research tool a medical device.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydicom import Dataset, dcmread
from pydicom.valuerep import DT, PersonName

from dicom_io.content.context import ResultContext
from dicom_io.content.received_text import stated, text_in
from dicom_io.content.regions import MapDisplay, key_slices, load_volumes
from dicom_io.content.report import ReportContent
from dicom_io.content.sources import Sources, read_sources
from dicom_io.errors import PackError
from dicom_io.files import save_durably
from dicom_io.objects.kinds import SR
from dicom_io.objects.sr import encode_sr
from dicom_io.objects.sr_rules import report_faults
from dicom_io.pack.encode import reports_of
from dicom_io.pack.manifest import Pack, load_pack
from dicom_io.volume.geometry import SeriesGeometry

SAME = ("PatientID", "IssuerOfPatientID", "PatientName", "PatientBirthDate", "AccessionNumber", "StudyInstanceUID")
"""What a verified document and its draft have in common."""


@dataclass(frozen=True)
class Verification:
    """Who verified, for whom, and when (PS3.3 C.17.2, Verifying Observer Sequence)."""

    observer: str
    """Person, as the reverse proxy authenticated them."""
    organization: str
    time: datetime.datetime


def encode_verified(
    *,
    source_files: Sequence[Path],
    geometry: SeriesGeometry,
    volume_path: Path,
    saliency_path: Path | None,
    lesion_path: Path | None,
    display: MapDisplay | None,
    content: ReportContent,
    verification: Verification,
    draft: Path,
    out: Path,
) -> str:
    """Write the verified SR.

    Args:
        source_files: Every received instance of the series.
        geometry: Geometry of the series.
        volume_path: RAS NIfTI of the series.
        saliency_path: RAS NIfTI of the saliency; None without explanation.
        lesion_path: RAS NIfTI of the lesion's mask; None where none was measured.
        display: What is shown of the saliency, as for the draft; None: it does not say so.
        content: What the reader confirms or says instead.
        verification: Who verifies.
        draft: Folder of the pack whose SR is confirmed or replaced.
        out: File to write.

    Returns:
        Its SOP Instance UID: the same person saying the same at the same time is the same document.

    Raises:
        PackError: the draft holds no SR, is of another patient or study than the sources, or the new one breaks a rule.
    """
    pack = load_pack(draft)
    predecessors = reports_of(pack)
    if not predecessors:
        raise PackError(f"{draft}: expected an SR to verify, found none")
    sources = read_sources(source_files, geometry)
    _check_same_patient(pack, sources)
    identity = "\n".join([pack.identity, "verified", content.report_text, *map(str, vars(verification).values())])
    context = ResultContext(sources, geometry, content, identity)
    shown = key_slices(load_volumes(geometry, content, volume_path, saliency_path, lesion_path, display))
    document: Dataset = encode_sr(context, shown, predecessors)
    faults = list(report_faults(document, sources.instances))
    if faults:
        raise PackError("; ".join(faults))
    _verify(document, verification)
    save_durably(context.as_written(document), out)
    return str(document.SOPInstanceUID)


def _check_same_patient(draft: Pack, sources: Sources) -> None:
    """A reader confirms what they saw: the draft's identity, whatever was corrected or switched since."""
    [report] = draft.of_kind(SR.name)
    seen = dcmread(report.path, stop_before_pixels=True, specific_tags=list(SAME))
    for keyword in SAME:
        found, expected = stated(sources.header, keyword), text_in(seen, keyword, sources.header)
        if found != expected:
            raise PackError(f"verified SR: expected the {keyword} of the draft, which was made before it changed")


def _verify(document: Dataset, verification: Verification) -> None:
    """Say that it is verified, and by whom (PS3.3 C.17.2)."""
    observer = Dataset()
    observer.VerifyingObserverName = PersonName(verification.observer[:64])
    observer.VerifyingOrganization = verification.organization[:64]
    observer.VerificationDateTime = DT(verification.time.strftime("%Y%m%d%H%M%S%z"))
    observer.VerifyingObserverIdentificationCodeSequence = []
    document.VerificationFlag = "VERIFIED"
    document.VerifyingObserverSequence = [observer]
    document.SeriesDescription = "AI report, checked by a reader - BrainGemma3D (research)"
