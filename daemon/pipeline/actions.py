"""What a person may do to jobs from outside the service: retry, cancel; also while the service is stopped."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from dbos import DBOSClient, DBOSPortableJSONSerializer, EnqueueOptions

from daemon.assemble.index import INSTANCES
from daemon.engine.names import (
    DELIVERY_WORKFLOW,
    DESTINATION_QUEUE,
    FIRST_TURN,
    REPORT_QUEUE,
    REPORT_WORKFLOW,
    WORKFLOW_VERSION,
)
from daemon.errors import DaemonError
from daemon.jobs.files import RECEIVED, JobFiles
from daemon.jobs.folder import JobFolder, make_private, read_json, write_json
from daemon.jobs.store import FINAL_STATES, DeliveryState, Job, JobState, JobStore
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
    run = job.runs + 1
    dead = sorted({d.destination for d in store.deliveries(job_id) if d.state is DeliveryState.DEAD})
    with engine_client(engine) as client:
        if dead:
            store.update(job_id, state=JobState.DELIVERING, runs=run, reason="")
            for destination in dead:
                store.revive_deliveries(job_id, destination)
                _enqueue_delivery(client, f"{job_id}-r{run}:{destination}", job_id, destination)
            return f"delivery to {', '.join(dead)}"
        store.update(job_id, state=JobState.QUEUED, step="", runs=run, reason="")
        _enqueue(client, REPORT_QUEUE, REPORT_WORKFLOW, f"{job_id}-r{run}", job_id)
        return "all steps"


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
    old = files.fetch(job_id)
    if not (old.dicom / MANIFEST).exists():
        raise DaemonError(f"job {job_id} has no results that could be replaced; `jobs retry {job_id}` starts it again")
    new_id = "j" + hashlib.sha256(f"{job_id} anew".encode()).hexdigest()[:16]
    folder = JobFolder(old.root.parent / new_id)
    if not folder.root.exists():
        partial = old.root.parent / f".{new_id}.part"
        shutil.rmtree(partial, ignore_errors=True)  # left by a run that was killed
        make_private(partial)
        shutil.copytree(old.input, partial / "input", copy_function=os.link)
        record = {**read_json(old.arrival), "job_id": new_id, "supersedes": job_id, "anew": True}
        write_json(partial / old.arrival.name, record)
        partial.rename(folder.root)
    files.keep(new_id, RECEIVED)
    store.add(new_id, study_uid=job.study_uid, folder=str(folder.root), supersedes=job_id)
    enqueue_report(engine, new_id)
    return new_id


def enqueue_report(engine: sa.Engine, job_id: str, *, workflow_id: str | None = None) -> None:
    """Queue a job for whichever worker is free; queueing it twice starts it once."""
    with engine_client(engine) as client:
        _enqueue(client, REPORT_QUEUE, REPORT_WORKFLOW, workflow_id or job_id, job_id)


def enqueue_delivery(engine: sa.Engine, workflow_id: str, job_id: str, destination: str) -> None:
    """Queue one job's waiting objects for one destination; queueing them twice starts it once."""
    with engine_client(engine) as client:
        _enqueue_delivery(client, workflow_id, job_id, destination)


@contextmanager
def engine_client(engine: sa.Engine) -> Iterator[DBOSClient]:
    """The engine's client on our database."""
    client = DBOSClient(system_database_engine=engine, serializer=DBOSPortableJSONSerializer())
    try:
        yield client
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


def _enqueue_delivery(client: DBOSClient, workflow_id: str, job_id: str, destination: str) -> None:
    options: EnqueueOptions = {
        "queue_name": DESTINATION_QUEUE,
        "queue_partition_key": destination,
        "workflow_name": DELIVERY_WORKFLOW,
        "workflow_id": workflow_id,
        "app_version": WORKFLOW_VERSION,
    }
    client.enqueue(options, job_id, destination, FIRST_TURN)


def cancel(store: JobStore, job_id: str) -> None:
    """Cancel a job that has not ended: a step that runs is stopped, and nothing more is sent.

    Raises:
        DaemonError: no such job, or one that has ended.
    """
    job = job_or_error(store, job_id)
    if job.state in FINAL_STATES:
        raise DaemonError(f"job {job_id} has ended ({job.state}); there is nothing to cancel")
    store.update(job_id, state=JobState.CANCELLED, reason="cancelled by request")


def forget_workflows(engine: sa.Engine, job_id: str) -> None:
    """Remove the engine's record of a job that has ended: it keeps no retention of its own."""
    if not engine_has_run(engine):
        return
    with engine_client(engine) as client:
        found = client.list_workflows(workflow_id_prefix=job_id, load_input=False, load_output=False)
        if found:
            client.delete_workflows([workflow.workflow_id for workflow in found])


def engine_has_run(engine: sa.Engine) -> bool:
    """Whether DBOS has made its tables here: before that nothing was ever started."""
    schema = None if engine.dialect.name == "sqlite" else "dbos"
    return sa.inspect(engine).has_table("workflow_status", schema=schema)
