"""A reader's confirmed or edited report, sent to the destinations as a verified SR (`[review] verified_sr`)."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from braingemma.findings.text import findings_from_text
from daemon.config.sections import Settings
from daemon.database.tables import JobState
from daemon.deliver.delivery import takers
from daemon.engine.client import enqueue_delivery
from daemon.errors import DaemonError
from daemon.files import read_json
from daemon.jobs.files import JobFiles
from daemon.jobs.folder import JobFolder
from daemon.jobs.report import read_report
from daemon.jobs.reviews import Review, Verdict
from daemon.jobs.store import Job, JobStore
from dicom_io.content.equipment import MANUFACTURER
from dicom_io.content.report import FindingRecord, ModelIdentity, ReportContent
from dicom_io.pack.verified import Verification, encode_verified
from dicom_io.series.group import scan_folder
from dicom_io.volume.geometry import SeriesGeometry

VERIFYING = frozenset({Verdict.AGREE, Verdict.EDIT})
"""Verdicts that make a verified SR."""


def verifies(settings: Settings, *, by_proxy: bool, reader: str) -> bool:
    """Whether this reader's word makes a verified SR: switched on, and the proxy has authenticated the person."""
    return settings.review.verified_sr and by_proxy and bool(reader)


def check_verifiable(job: Job, folder: JobFolder) -> None:
    """Look before the verdict is taken.

    Raises:
        DaemonError: the job has not ended well, or did not come as DICOM with an SR.
    """
    if job.state not in (JobState.DONE, JobState.DELIVERING) or not (folder.dicom / "sr.dcm").exists():
        raise DaemonError(f"job {job.job_id} is {job.state}: only a report that went out as an SR can be verified")


def send_verified(
    settings: Settings, engine: sa.Engine, store: JobStore, files: JobFiles, job: Job, review: Review
) -> None:
    """Write the SR beside the draft's, and queue it for every destination.

    Raises:
        DaemonError: see `check_verifiable`.
    """
    folder = files.fetch(job.job_id)
    check_verifiable(job, folder)
    name = f"sr-verified-{review.review_id}.dcm"
    saliency = folder.explain / "saliency.nii.gz"
    uid = encode_verified(
        source_files=_files_of_series(folder),
        geometry=SeriesGeometry.load(folder.geometry),
        volume_path=folder.volume,
        saliency_path=saliency if saliency.exists() else None,
        content=_content(read_report(folder), review),
        verification=Verification(
            review.reader,
            settings.review.organization,
            datetime.datetime.fromtimestamp(review.created, datetime.UTC),
        ),
        draft=folder.dicom,
        out=folder.dicom / name,
    )
    files.keep(job.job_id, "verified")
    destinations = takers(folder, settings.destinations)
    if not destinations:
        return
    store.update(job.job_id, state=JobState.DELIVERING)
    for destination in destinations:
        store.put_deliveries(job.job_id, destination.name, [(uid, "sr", name)])
        enqueue_delivery(engine, f"{job.job_id}-v{review.review_id}:{destination.name}", job.job_id, destination.name)


def _files_of_series(folder: JobFolder) -> list[Path]:
    chosen = read_json(folder.selection)["chosen"]
    series = next((s for s in scan_folder(folder.input).series if s.series_uid == chosen), None)
    if series is None:
        raise DaemonError(f"{folder.input}: the series of the report is no longer there")
    return [Path(file) for file in series.files]


def _content(report: dict[str, Any], review: Review) -> ReportContent:
    """What the reader leaves; findings of an edited text are read from it anew, without the model's confidence."""
    edited = review.verdict is Verdict.EDIT
    findings = [f.to_json() for f in findings_from_text(review.text)] if edited else report["findings"]
    model = {key: value for key, value in report["model"].items() if key not in ("name", "version", "weights_sha256")}
    how = "edited by the reader named as verifying observer" if edited else "confirmed by the verifying observer"
    return ReportContent(
        report_text=review.text,
        findings=tuple(
            FindingRecord(f["finding"], f["presence"], f["laterality"], tuple(f["sites"]), f.get("confidence"))
            for f in findings
        ),
        warnings=(*report["warnings"], f"This text was {how}; the draft is named as predecessor."),
        banner=report["banner"],
        intended_use=report["intended_use"],
        model=ModelIdentity(
            report["model"]["name"], report["model"]["version"], report["model"]["weights_sha256"], MANUFACTURER,
            {key: v if isinstance(v, str) else json.dumps(v, sort_keys=True) for key, v in model.items()},
        ),
        explain=report["explain"],
    )  # fmt: skip
