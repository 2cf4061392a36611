"""Step "encode": the result pack, of the report, the maps and the headers of the source instances."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from braingemma.checkpoint.weights import WeightsInfo
from braingemma.explain.grounding import LIKELY
from daemon.config.sections import Settings
from daemon.errors import Rejected
from daemon.files import make_private, read_json
from daemon.jobs.folder import JobFolder
from daemon.jobs.report import read_report, write_report
from daemon.pipeline.corrections import Correction
from daemon.pipeline.steps.context import Context
from daemon.pipeline.steps.select import chosen_series
from dicom_io.content.report import FindingRecord, ModelIdentity, ReportContent
from dicom_io.deidentify import Deidentifier, load_key, rewrite_file, scrub
from dicom_io.pack.encode import MANIFEST, PackOptions, encode_pack, load_pack, reports_of
from dicom_io.pack.rejection import encode_rejection, withdrawn
from dicom_io.volume.geometry import SeriesGeometry

MANUFACTURER = "BrainGemma3D for PACS (open source)"


def encode(context: Context, folder: JobFolder) -> None:
    """The result pack; a pack that breaks a rule never gets as far as delivery."""
    report = _with_correction(folder)
    results = context.settings.results
    sources, geometry = _sources(context.settings, folder)
    earlier = _replaced_results(folder)
    replaced = load_pack(earlier) if earlier else None
    identity = _identity(report, context.settings, Correction.load(folder.identity))
    if replaced is not None and replaced.identity == identity and read_json(folder.arrival).get("anew"):
        raise Rejected("reported anew, these weights and settings give the same results: nothing is replaced")
    saliency, grounding = folder.explain / "saliency.nii.gz", folder.explain / "grounding.nii.gz"
    pack = encode_pack(
        source_files=sources,
        geometry=geometry,
        volume_path=folder.volume,
        saliency_path=saliency if saliency.exists() else None,
        grounding_path=grounding if grounding.exists() else None,
        content=_scrubbed_content(context, folder, report),
        options=PackOptions(sr=results.sr, sc=results.sc, pm=results.pm, seg=results.seg, tid1500=results.tid1500),
        identity=identity,
        out=folder.dicom,
        # A report under another identity is no predecessor that may be named (de-identified, or not any more).
        predecessors=reports_of(replaced) if replaced and replaced.study_uid == geometry.study_uid else (),
        earlier=earlier,
    )
    wanted = any(destination.reject_replaced for destination in context.settings.destinations)
    if wanted and replaced is not None and withdrawn(replaced, by=pack):
        encode_rejection(replaced, folder.rejection)


def _sources(settings: Settings, folder: JobFolder) -> tuple[list[Path], SeriesGeometry]:
    """The instances that results are made from, and their geometry.

    Where the patient was corrected, or results are to be de-identified, these are changed headers: encoders then
    never see the old identity, so that none can slip through.
    """
    files = [Path(file) for file in chosen_series(folder).files]
    geometry = SeriesGeometry.load(folder.geometry)
    correction, wanted = Correction.load(folder.identity), settings.results.deidentify
    if correction is None and not wanted:
        return files, geometry
    deidentifier = Deidentifier(load_key(settings.pseudonym_key)) if wanted else None
    shutil.rmtree(folder.headers, ignore_errors=True)
    targets = [make_private(folder.headers) / f"{number:06d}.dcm" for number, _ in enumerate(files, start=1)]
    for source, target in zip(files, targets, strict=True):
        rewrite_file(
            source, target, *([correction.apply] if correction else []),
            *([deidentifier.deidentify] if deidentifier else []), pixels=False,
        )  # fmt: skip
    return targets, geometry if deidentifier is None else deidentifier.geometry(geometry)


def _with_correction(folder: JobFolder) -> dict[str, Any]:
    """The report, with a word about a correction of the patient where there was one."""
    report, correction = read_report(folder), Correction.load(folder.identity)
    if correction is None:
        return report
    said = f"The patient's identity ({correction.named}) was corrected after the images came."
    if said not in report["warnings"]:
        report = {**report, "warnings": [*report["warnings"], said]}
        write_report(folder, report)
    return report


def _scrubbed_content(context: Context, folder: JobFolder, report: dict[str, Any]) -> ReportContent:
    """What the results say; names of files, which may be a patient's, stand in no de-identified result."""
    if context.settings.results.deidentify:
        names = [path.name for path in folder.input.rglob("*")]
        report = {**report, "warnings": [scrub(warning, names) for warning in report["warnings"]]}
    return _content(report, context.weights)


def _content(report: dict[str, Any], weights: WeightsInfo) -> ReportContent:
    estimate = report.get("lesion_estimate")
    facts = {k: v for k, v in report["model"].items() if k not in ("name", "version", "weights_sha256")}
    return ReportContent(
        report_text=report["report"],
        findings=tuple(
            FindingRecord(f["finding"], f["presence"], f["laterality"], tuple(f["sites"]), f["confidence"])
            for f in report["findings"]
        ),
        warnings=tuple(report["warnings"]),
        lesion_volume_ml=estimate["volume_ml"] if estimate and estimate["peak"] >= LIKELY else None,
        banner=report["banner"],
        intended_use=report["intended_use"],
        model=ModelIdentity(
            name=weights.name,
            version=weights.version,
            weights_sha256=weights.sha256,
            manufacturer=MANUFACTURER,
            parameters={k: v if isinstance(v, str) else json.dumps(v, sort_keys=True) for k, v in facts.items()},
        ),
        explain=report["explain"],
    )


def _replaced_results(folder: JobFolder) -> Path | None:
    """Results that this job's replace: of the latest of the jobs that it supersedes that came as far as results."""
    while folder.arrival.exists():
        supersedes = read_json(folder.arrival)["supersedes"]
        if supersedes is None:
            return None
        folder = JobFolder(folder.root.parent / supersedes)
        if (folder.dicom / MANIFEST).exists():
            return folder.dicom
    return None


def _identity(report: dict[str, Any], settings: Settings, correction: Correction | None) -> str:
    """sha256 over everything that affects the content of the results: other inputs, other UIDs."""
    what = {
        "input": report["input"],
        "report": report["report"],
        "findings": report["findings"],
        "model": report["model"],
        "explain": [report["explain"], settings.explain.model_dump()],
        "results": settings.results.model_dump(mode="json", exclude={"deidentify_key"}),
    }
    if correction is not None:
        what["patient"] = dict(correction.values)
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
