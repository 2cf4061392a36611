"""What a person may do to jobs from outside the service: retry, cancel; also while the service is stopped."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence

import sqlalchemy as sa

from daemon.database.tables import FINAL_STATES, RETRIED_STATES, DeliveryState, JobState
from daemon.engine.client import _enqueue, _enqueue_delivery, engine_client, enqueue_report
from daemon.engine.identifiers import (
    REPORT_QUEUE,
    REPORT_WORKFLOW,
)
from daemon.errors import DaemonError
from daemon.files import make_private, whole
from daemon.jobs.files import RECEIVED, JobFiles
from daemon.jobs.folder import JobFolder
from daemon.jobs.lists.worklist import note_study
from daemon.jobs.records import Arrival
from daemon.jobs.steps import RECEIVE
from daemon.jobs.store import Job, JobStore
from dicom_io.pack.manifest import MANIFEST


def job_or_error(store: JobStore, job_id: str) -> Job:
    """The job.

    Raises:
        DaemonError: there is none of that id.
    """
    job = store.get(job_id)
    if job is None:
        raise DaemonError(f"no job {job_id!r}; `braingemma jobs list` shows what there is")
    return job


def retry(store: JobStore, engine: sa.Engine, job_id: str) -> str:
    """Start a job again: only its deliveries where the results exist and wait in the dead letter, else all steps.

    Returns:
        What was started, in words.

    Raises:
        DaemonError: no such job, or one that is still at work or done.
    """
    job = job_or_error(store, job_id)
    if job.state not in FINAL_STATES:
        raise DaemonError(f"job {job_id} is {job.state}; only a job that has ended can be retried")
    if job.state is JobState.DONE:
        raise DaemonError(f"job {job_id} is done; its results were delivered")
    _refuse_removed(job)
    if job.step == RECEIVE:
        raise DaemonError(f"job {job_id} has no images, as its study could not be handed over: send the study again")
    dead = _dead(store, job_id)
    if dead:
        return _deliver_again(store, engine, job, dead)
    run = job.runs + 1
    with engine_client(engine) as client:
        if not store.move(job_id, JobState.QUEUED, of=RETRIED_STATES, step="", runs=run, reason="", deaths=0):
            raise DaemonError(f"job {job_id} was started by somebody else just now")
        _enqueue(client, REPORT_QUEUE, REPORT_WORKFLOW, f"{job_id}-r{run}", job_id, turn=job.turn)
        return "all steps"


def retry_delivery(store: JobStore, engine: sa.Engine, job_id: str, destination: str) -> str:
    """Send again what one destination was given up for, also while others are still served.

    Returns:
        What was started, in words.

    Raises:
        DaemonError: no such job, one that is at work, or one of which nothing was given up there.
    """
    job = job_or_error(store, job_id)
    if job.state in (JobState.QUEUED, JobState.RUNNING):
        raise DaemonError(f"job {job_id} is {job.state}; its results are sent when they are made")
    _refuse_removed(job)
    if destination not in _dead(store, job_id):
        raise DaemonError(f"job {job_id} has nothing that was given up for {destination!r}")
    return _deliver_again(store, engine, job, [destination])


def _refuse_removed(job: Job) -> None:
    if job.state is JobState.REMOVING:
        raise DaemonError(f"job {job.job_id} is being removed, as its time is over: send the study again")


def _dead(store: JobStore, job_id: str) -> list[str]:
    """Destinations for which something of a job was given up."""
    return sorted({d.destination for d in store.deliveries(job_id) if d.state is DeliveryState.DEAD})


def _deliver_again(store: JobStore, engine: sa.Engine, job: Job, destinations: Sequence[str]) -> str:
    run = job.runs + 1
    with engine_client(engine) as client:
        if not store.revive_deliveries(job.job_id, destinations, runs=run):
            raise DaemonError(f"job {job.job_id} was started by somebody else just now")
        for destination in destinations:
            _enqueue_delivery(client, f"{job.job_id}-r{run}:{destination}", job.job_id, destination)
    return f"delivery to {', '.join(destinations)}"


def report_anew(store: JobStore, engine: sa.Engine, files: JobFiles, job_id: str) -> str:
    """Report a study again, with the weights and settings of now, as a job that replaces the results of this one.

    Asked for twice it starts once.

    Returns:
        The new job.

    Raises:
        DaemonError: no such job, one that is at work, or one that has no results to replace.
    """
    job = job_or_error(store, job_id)
    if job.state not in FINAL_STATES:
        raise DaemonError(f"job {job_id} is {job.state}; only a job that has ended can be reported anew")
    _refuse_removed(job)
    old = files.fetch(job_id)
    if not (old.dicom / MANIFEST).exists():
        raise DaemonError(f"job {job_id} has no results that could be replaced; `jobs retry {job_id}` starts it again")
    new_id = "j" + hashlib.sha256(f"{job_id} anew".encode()).hexdigest()[:16]
    folder = JobFolder(old.root.parent / new_id)
    if not folder.root.exists():
        record = Arrival.read(old.arrival)
        with whole(folder.root) as draft:
            make_private(draft)
            shutil.copytree(old.input, draft / "input", copy_function=os.link)
            changes = {"job_id": new_id, "supersedes": job_id, "anew": True}
            record.model_copy(update=changes).write(JobFolder(draft).arrival)
    files.keep(new_id, RECEIVED)
    store.add(new_id, study_uid=job.study_uid, supersedes=job_id, priority=job.priority)
    note_study(store, new_id, folder)
    enqueue_report(engine, job_or_error(store, new_id))
    return new_id


def cancel(store: JobStore, job_id: str) -> None:
    """Cancel a job that has not ended: a step that runs is stopped, and nothing more is sent.

    Raises:
        DaemonError: no such job, or one that has ended.
    """
    job_or_error(store, job_id)
    going = [state for state in JobState if state not in FINAL_STATES]
    if not store.move(job_id, JobState.CANCELLED, of=going, reason="cancelled by request"):
        ended = job_or_error(store, job_id).state
        raise DaemonError(f"job {job_id} has ended ({ended}); there is nothing to cancel")
