"""A reader's confirmed or edited report, sent to the destinations as a verified SR (`[review] verified_sr`)."""

from __future__ import annotations

import datetime
from dataclasses import replace
from pathlib import Path

import sqlalchemy as sa

from braingemma.findings.text import findings_from_text
from daemon.config.sections import Settings
from daemon.database.tables import JobState
from daemon.deliver.delivery import takers
from daemon.engine.client import enqueue_delivery
from daemon.errors import DaemonError
from daemon.jobs.files import JobFiles
from daemon.jobs.folder import JobFolder
from daemon.jobs.records import Report, ReportFinding
from daemon.jobs.report import read_report
from daemon.jobs.reviews import Review, Verdict
from daemon.jobs.store import Job, JobStore
from dicom_io.errors import DicomIoError
from dicom_io.objects.kinds import SR

VERIFYING = frozenset({Verdict.AGREE, Verdict.EDIT})
"""Verdicts that make a verified SR."""

OF_THE_DRAFT = "Of the model's draft, not of this text"
"""Before warnings that say something of a text that a reader replaced."""


def verifies(settings: Settings, *, by_proxy: bool, reader: str) -> bool:
    """Whether this reader's word makes a verified SR: switched on, and the proxy has authenticated the person."""
    return settings.review.verified_sr and by_proxy and bool(reader)


def check_verifiable(job: Job, folder: JobFolder) -> None:
    """Look before the verdict is taken.

    Raises:
        DaemonError: the job has not ended well, or did not come as DICOM with an SR.
    """
    if job.state not in (JobState.DONE, JobState.DELIVERING) or not folder.sr.exists():
        raise DaemonError(f"job {job.job_id} is {job.state}: only a report that went out as an SR can be verified")


def send_verified(
    settings: Settings, engine: sa.Engine, store: JobStore, files: JobFiles, job: Job, review: Review
) -> None:
    """Write the SR beside the draft's, and queue it for every destination.

    Raises:
        DaemonError: see `check_verifiable`; or what was confirmed is no longer what the job holds.
    """
    folder = files.fetch(job.job_id)
    check_verifiable(job, folder)
    name = f"sr-verified-{review.review_id}.dcm"
    try:
        uid = _write(settings, folder, review, folder.dicom / name)
    except DicomIoError as error:
        raise DaemonError(str(error)) from error
    files.keep(job.job_id, "verified")
    destinations = takers(folder, settings.destinations)
    if not destinations:
        return
    for destination in destinations:  # first: while something waits the job is not done
        store.put_deliveries(job.job_id, destination.name, [(uid, SR.name, name)])
    if not store.move(job.job_id, JobState.DELIVERING, of=(JobState.DONE, JobState.DELIVERING)):
        raise DaemonError(f"job {job.job_id} is no longer on its way: the verified report is not sent")
    for destination in destinations:
        enqueue_delivery(engine, f"{job.job_id}-v{review.review_id}:{destination.name}", job.job_id, destination.name)


def _write(settings: Settings, folder: JobFolder, review: Review, out: Path) -> str:
    """The SR's UID; made from the same headers as the draft, so that it is of the same patient."""
    # Late: the encoders take a second to load, and few start a service to send one.
    from daemon.pipeline.steps.encode import display_of, result_content, result_sources
    from dicom_io.pack.verified import Verification, encode_verified

    sources, geometry = result_sources(settings, folder)
    edited = review.verdict is Verdict.EDIT
    # The maps say why the model wrote its draft, and illustrate no other text.
    saliency, lesion = (
        path if path.exists() and not edited else None for path in (folder.explain / "saliency.nii.gz", folder.lesion)
    )
    content = result_content(settings, folder, _left(read_report(folder), review))
    return encode_verified(
        source_files=sources,
        geometry=geometry,
        volume_path=folder.volume,
        saliency_path=saliency,
        lesion_path=lesion,
        display=None if saliency is None else display_of(folder),
        content=replace(content, edited=edited),
        verification=Verification(
            review.reader,
            settings.review.organization,
            datetime.datetime.fromtimestamp(review.created, datetime.UTC),
        ),
        draft=folder.dicom,
        out=out,
    )


def _left(report: Report, review: Review) -> Report:
    """What the reader leaves.

    Findings are those of the confirmed or edited text: the draft's stand as the model doubts them, and its confidence
    is none of the reader's. Warnings that hold the draft's text against something else are stated as of the draft where
    the text was edited: of the new text they may be false.
    """
    edited = review.verdict is Verdict.EDIT
    how = "edited by the reader named as verifying observer" if edited else "confirmed by the verifying observer"
    said = f"This text was {how}; the draft is named as predecessor."
    of_the_draft = report.warnings_of_the_text if edited else ()
    warnings = [f"{OF_THE_DRAFT}: {w}" if w in of_the_draft else w for w in report.warnings]
    read = (replace(finding, confidence=None) for finding in findings_from_text(review.text))
    findings = tuple(ReportFinding(**finding.to_json()) for finding in read)
    return report.model_copy(update={"report": review.text, "warnings": (*warnings, said), "findings": findings})
