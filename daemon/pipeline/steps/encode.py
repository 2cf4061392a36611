"""Step "encode": the result pack, of the report, the maps and the headers of the source instances."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

from braingemma.explain.record import SUPERVOXELS, ExplanationRecord, ShownRecord
from daemon.config.sections import Settings
from daemon.errors import Rejected
from daemon.files import make_private
from daemon.jobs.comparison import comparison_lines
from daemon.jobs.folder import JobFolder
from daemon.jobs.records import Arrival, Comparison, Conversion, Measurement, Report, ReportFinding, ReportModel
from daemon.jobs.report import possible_lesion, read_report, write_report
from daemon.pipeline.corrections import Correction
from daemon.pipeline.steps.context import Context
from daemon.pipeline.steps.nameless import deidentifier_of, nameless
from daemon.pipeline.steps.select import chosen_series
from dicom_io.content.regions import MapDisplay
from dicom_io.content.report import ComparisonRecord, FindingRecord, MeasurementRecord, ModelIdentity, ReportContent
from dicom_io.deidentify import rewrite_file
from dicom_io.objects.kinds import KINDS
from dicom_io.pack.encode import MANIFEST, encode_pack, load_pack, reports_of, wanted
from dicom_io.pack.rejection import encode_rejection, withdrawn
from dicom_io.volume.geometry import SeriesGeometry

MANUFACTURER = "BrainGemma3D for PACS (open source)"
_CORRECTED = "The patient's identity ({}) was corrected after the images came."
_SAYS_CORRECTED = re.compile(re.escape(_CORRECTED).replace(r"\{\}", ".*"))

UNSAID = frozenset({"candidates", "deidentified", "doubts"})
"""Fields of a report that add nothing to its results; whatever field a report gets affects them until it is here."""


def encode(context: Context, folder: JobFolder) -> None:
    """The result pack; a pack that breaks a rule never gets as far as delivery."""
    report = _with_correction(context.settings, folder)
    results = context.settings.results
    sources, geometry = result_sources(context.settings, folder)
    earlier = _replaced_results(folder)
    replaced = load_pack(earlier) if earlier else None
    display = display_of(folder)
    identity = _identity(report, context.settings, Correction.read_if_there(folder.identity), display)
    if replaced is not None and replaced.identity == identity and Arrival.read(folder.arrival).anew:
        raise Rejected("reported anew, these weights and settings give the same results: nothing is replaced")
    saliency = folder.explain / "saliency.nii.gz"
    pack = encode_pack(
        source_files=sources,
        geometry=geometry,
        volume_path=folder.volume,
        saliency_path=saliency if saliency.exists() else None,
        lesion_path=folder.lesion if folder.lesion.exists() else None,
        content=result_content(context.settings, folder, report),
        kinds=wanted(**{kind.name: getattr(results, kind.name) for kind in KINDS if kind.listed}),
        identity=identity,
        out=folder.dicom,
        # A report under another identity is no predecessor that may be named (de-identified, or not any more).
        predecessors=reports_of(replaced) if replaced and replaced.study_uid == geometry.study_uid else (),
        earlier=earlier,
        display=display,
    )
    rejecting = any(destination.reject_replaced for destination in context.settings.destinations)
    if rejecting and replaced is not None and withdrawn(replaced, by=pack):
        encode_rejection(replaced, folder.rejection)


def display_of(folder: JobFolder) -> MapDisplay | None:
    """What is shown of the explanation, as it says itself; None where there is none, or one that does not say so."""
    shown = ShownRecord.read_if_there(folder.explain)
    if shown is None:
        return None
    sides = {region.label: region.side for region in ExplanationRecord.read(folder.explain).supervoxels}
    regions = tuple((label, sides[label]) for label in shown.regions)
    return MapDisplay(shown.limit, shown.least_share, folder.explain / SUPERVOXELS, regions)


def result_sources(settings: Settings, folder: JobFolder) -> tuple[list[Path], SeriesGeometry]:
    """The instances that results are made from, and their geometry.

    Where the patient was corrected, or results are to be de-identified, these are changed headers: encoders then
    never see the old identity, so that none can slip through.
    """
    files = _converted_files(folder)
    geometry = SeriesGeometry.load(folder.geometry)
    correction, deidentifier = Correction.read_if_there(folder.identity), deidentifier_of(settings)
    if correction is None and deidentifier is None:
        return files, geometry
    shutil.rmtree(folder.headers, ignore_errors=True)
    targets = [make_private(folder.headers) / f"{number:06d}.dcm" for number, _ in enumerate(files, start=1)]
    for source, target in zip(files, targets, strict=True):
        rewrite_file(
            source, target, *([correction.apply] if correction else []),
            *([deidentifier.deidentify] if deidentifier else []), pixels=False,
        )  # fmt: skip
    return targets, geometry if deidentifier is None else deidentifier.geometry(geometry)


def _converted_files(folder: JobFolder) -> list[Path]:
    """The instances of the converted series, by what was noted only where the input is a job's own and stays the same.

    A person's folder may have other files by now, and earlier versions noted none.
    """
    noted = Conversion.read_if_there(folder.conversion) if folder.arrival.exists() else None
    if noted is None or not noted.files:
        return list(chosen_series(folder).files)
    return [folder.input / file for file in noted.files]


def _with_correction(settings: Settings, folder: JobFolder) -> Report:
    """The report, with a word about a correction of the patient where there is one, and none of one taken back."""
    report, correction = read_report(folder), Correction.read_if_there(folder.identity)
    warnings = tuple(warning for warning in report.warnings if not _SAYS_CORRECTED.fullmatch(warning))
    if correction is None and warnings == report.warnings:
        return report
    changes: dict[str, Any] = {"warnings": warnings}
    if correction is not None:
        # Whose the earlier result is was judged by the identity as it came: it may be another patient's.
        changes = {"warnings": (*warnings, _CORRECTED.format(correction.named)), "comparison": None}
    report = report.model_copy(update=changes)
    write_report(folder, report, named=not settings.results.deidentify)  # also where it was another one: it is shown
    return report


def result_content(settings: Settings, folder: JobFolder, report: Report) -> ReportContent:
    """What the results say; without received UIDs, and names of files, where it is to name nobody."""
    report = nameless(settings, folder, report)  # one of before results were to name nobody still does
    return ReportContent(
        report_text=report.report,
        findings=tuple(_finding(finding) for finding in report.findings),
        warnings=report.warnings,
        measurements=tuple(_measurement(measured) for measured in report.measurements),
        possible=_sentence(possible_lesion(report)),
        unmeasured=tuple(
            f"{m.name.replace('_', ' ').capitalize()}: not measured, {m.reason}." for m in report.unmeasured
        ),
        banner=report.banner,
        intended_use=report.intended_use,
        model=_model(report.model),
        face_removed=report.input.defaced,
        explain=None if report.explain is None else report.explain.facts,
        comparison=None if report.comparison is None else _comparison(report.comparison),
    )


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}." if words else ""


def _comparison(found: Comparison) -> ComparisonRecord:
    """What changed, in words and as values."""
    values = (
        ("earlier_lesion_volume", found.earlier_volume_ml),
        ("lesion_volume_change", found.change_ml),
        ("change_uncertainty", found.uncertainty_ml),
    )
    measured = tuple(
        MeasurementRecord(name, value, "mL", "lesion map of the model") for name, value in values if value is not None
    )
    return ComparisonRecord(tuple(comparison_lines(found)), measured)


def _finding(finding: ReportFinding) -> FindingRecord:
    return FindingRecord(finding.finding, finding.presence, finding.laterality, finding.sites, finding.confidence)


def _measurement(measured: Measurement) -> MeasurementRecord:
    return MeasurementRecord(measured.name, measured.value, measured.unit, measured.method, measured.laterality)


def _model(model: ReportModel) -> ModelIdentity:
    return ModelIdentity(
        name=model.name,
        version=model.version,
        weights_sha256=model.weights_sha256,
        manufacturer=MANUFACTURER,
        parameters=model.parameters,
    )


def _replaced_results(folder: JobFolder) -> Path | None:
    """Results that this job's replace: of the latest of the jobs that it supersedes that came as far as results."""
    while (arrival := Arrival.read_if_there(folder.arrival)) is not None:
        if arrival.supersedes is None:
            return None
        folder = JobFolder(folder.root.parent / arrival.supersedes)
        if (folder.dicom / MANIFEST).exists():
            return folder.dicom
    return None


def _identity(
    report: Report, settings: Settings, correction: Correction | None, display: MapDisplay | None = None
) -> str:
    """sha256 over everything that affects the content of the results: other inputs, other UIDs."""
    what = {key: value for key, value in report.to_json().items() if key not in UNSAID}
    what["settings"] = [
        settings.explain.model_dump(mode="json"),
        settings.results.model_dump(mode="json", exclude={"deidentify_key"}),
    ]
    if display is not None:
        what["shown"] = [display.limit, display.least_share, display.regions]
    if correction is not None:
        what["patient"] = dict(correction.values)
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
