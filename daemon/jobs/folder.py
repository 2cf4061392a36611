"""The folder of one job: the same names for `braingemma process` and for the daemon."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dicom_io.objects.kinds import REJECTION, SR


@dataclass(frozen=True)
class JobFolder:
    """Where each step of one job finds its input and puts its output.

    Attributes:
        root: The folder.
        source: The input, where a person named it.
        study_uid: The one study of the input that counts; None: there must be no choice between patients or days.
    """

    root: Path
    source: Path | None = None
    study_uid: str | None = None

    @property
    def input(self) -> Path:
        """The folder of DICOM instances: `source` where the caller named one, else what the daemon received."""
        return self.source or self.root / "input"

    @property
    def source_facts(self) -> Path:
        """What the input was, where it was a file that a person named."""
        return self.root / "source.json"

    @property
    def conversion(self) -> Path:
        """What the conversion, or the import of a NIfTI file, noticed."""
        return self.root / "conversion.json"

    @property
    def arrival(self) -> Path:
        """Where the received instances came from, and which job this one supersedes (daemon only)."""
        return self.root / "arrival.json"

    @property
    def selection(self) -> Path:
        """Verdict on each series, and which one was chosen."""
        return self.root / "selection.json"

    @property
    def volume(self) -> Path:
        """The converted volume, RAS."""
        return self.root / "volume_ras.nii.gz"

    @property
    def whole_head(self) -> Path:
        """The converted volume with its face, where `volume` is to be without: read by the report step only."""
        return self.root / "whole_head.nii.gz"

    @property
    def brain_mask(self) -> Path:
        """1 where the brain is, on the grid of the volume: what checks, map, explanation and measurements use."""
        return self.root / "brain_mask.nii.gz"

    @property
    def geometry(self) -> Path:
        """Geometry of the source series (DICOM input only)."""
        return self.root / "geometry.json"

    @property
    def lesion(self) -> Path:
        """Mask of the estimated lesion on the volume's grid, where its volume is stated."""
        return self.root / "lesion.nii.gz"

    @property
    def earlier(self) -> Path:
        """An earlier result of the patient, to compare with (daemon only)."""
        return self.root / "earlier.json"

    @property
    def report_text(self) -> Path:
        """The report with the research-use line."""
        return self.root / "report.txt"

    @property
    def report_json(self) -> Path:
        """Report, findings, provenance."""
        return self.root / "report.json"

    @property
    def report_html(self) -> Path:
        """One self-contained page."""
        return self.root / "report.html"

    @property
    def explain(self) -> Path:
        """Saliency volume, pictures, weights."""
        return self.root / "explain"

    @property
    def identity(self) -> Path:
        """The patient's corrected identity, where it was corrected after the images came (daemon only)."""
        return self.root / "identity.json"

    @property
    def headers(self) -> Path:
        """Headers of the series as results are to see them: corrected, or without identities; never shared."""
        return self.root / ".headers"

    @property
    def sr(self) -> Path:
        """The report that went out."""
        return self.dicom / SR.file()

    @property
    def dicom(self) -> Path:
        """SR, SC, PM, SEG."""
        return self.root / "dicom"

    @property
    def rejection(self) -> Path:
        """Beside them: the Key Object that withdraws the images of the job that this one supersedes."""
        return self.dicom / REJECTION.file()
