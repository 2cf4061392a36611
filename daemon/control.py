"""What a person may do to jobs from outside the service: retry, cancel, purge; also while the service is stopped."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from dbos import DBOSClient, DBOSPortableJSONSerializer, EnqueueOptions

from daemon.config import Settings
from daemon.errors import DaemonError
from daemon.jobs import FINAL_STATES, DeliveryState, Job, JobState, JobStore, now
from daemon.names import DELIVERY_QUEUE, DELIVERY_WORKFLOW, REPORT_QUEUE, REPORT_WORKFLOW, WORKFLOW_VERSION
from daemon.received_index import INSTANCES, forget_study

SECONDS_PER_DAY = 86400.0


def job_or_error(store: JobStore, job_id: str) -> Job:
    """The job.

    Raises:
        DaemonError: there is none of that id.
    """
    job = store.get(job_id)
    if job is None:
        raise DaemonError(f"no job {job_id!r}; `braingemma jobs list` shows what there is")
    return job


def arrival_of_series(engine: sa.Engine, series_uid: str) -> str | None:
    """How many instances of a series came, and what became of them, in words; None where none ever came."""
    query = (
        sa.select(INSTANCES.c.state, sa.func.count().label("number"))
        .where(INSTANCES.c.series_uid == series_uid)
        .group_by(INSTANCES.c.state)
        .order_by(INSTANCES.c.state)
    )
    with engine.connect() as connection:
        rows = connection.execute(query).all()
    if not rows:
        return None
    return "received: " + ", ".join(f"{row.number} {row.state.replace('_', ' ')}" for row in rows)


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
    client = DBOSClient(system_database_engine=engine, serializer=DBOSPortableJSONSerializer())
    run = job.runs + 1
    dead = sorted({d.destination for d in store.deliveries(job_id) if d.state is DeliveryState.DEAD})
    try:
        if dead:
            store.update(job_id, state=JobState.DELIVERING, runs=run, reason="")
            for destination in dead:
                store.revive_deliveries(job_id, destination)
                _enqueue(
                    client, DELIVERY_QUEUE, DELIVERY_WORKFLOW, f"{job_id}-r{run}:{destination}", job_id, destination
                )
            return f"delivery to {', '.join(dead)}"
        store.update(job_id, state=JobState.QUEUED, step="", runs=run, reason="")
        _enqueue(client, REPORT_QUEUE, REPORT_WORKFLOW, f"{job_id}-r{run}", job_id)
        return "all steps"
    finally:
        client.destroy()


def _enqueue(client: DBOSClient, queue: str, workflow: str, workflow_id: str, *arguments: str) -> None:
    options: EnqueueOptions = {
        "queue_name": queue,
        "workflow_name": workflow,
        "workflow_id": workflow_id,
        "app_version": WORKFLOW_VERSION,
    }
    client.enqueue(options, *arguments)


def cancel(store: JobStore, job_id: str) -> None:
    """Cancel a job that has not ended: a step that runs is stopped, and nothing more is sent.

    Raises:
        DaemonError: no such job, or one that has ended.
    """
    job = job_or_error(store, job_id)
    if job.state in FINAL_STATES:
        raise DaemonError(f"job {job_id} has ended ({job.state}); there is nothing to cancel")
    store.update(job_id, state=JobState.CANCELLED, reason="cancelled by request")


@dataclass(frozen=True)
class Purged:
    """One job that was (or would be) removed; `size` in bytes."""

    job_id: str
    state: str
    size: int


def purge(store: JobStore, settings: Settings, *, dry_run: bool) -> list[Purged]:
    """Remove jobs that ended more than `storage.keep_days` ago; results that were not delivered stay."""
    limit = now() - settings.storage.keep_days * SECONDS_PER_DAY
    removed = []
    for job in store.recent(limit=1_000_000):
        if job.state not in FINAL_STATES - {JobState.FAILED} or job.updated > limit:
            continue
        folder = Path(job.folder)
        size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
        removed.append(Purged(job.job_id, str(job.state), size))
        if not dry_run:
            if folder.exists():
                shutil.rmtree(folder)
            store.remove(job.job_id)
            forget_study(store.engine, job.study_uid)
    return removed
