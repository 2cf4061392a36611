"""The workflow engine's client: enqueue, cancel, forget."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from dbos import DBOSClient, DBOSPortableJSONSerializer, EnqueueOptions

from daemon.engine.identifiers import (
    DELIVERY_WORKFLOW,
    DESTINATION_QUEUE,
    FIRST_TURN,
    REPORT_QUEUE,
    REPORT_WORKFLOW,
    WORKFLOW_VERSION,
)
from daemon.jobs.store import Job


def enqueue_report(engine: sa.Engine, job: Job, *, workflow_id: str | None = None) -> None:
    """Queue a job for whichever worker is free, at its turn; queueing it twice starts it once."""
    with engine_client(engine) as client:
        _enqueue(client, REPORT_QUEUE, REPORT_WORKFLOW, workflow_id or job.job_id, job.job_id, turn=job.turn)


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


def _enqueue(client: DBOSClient, queue: str, workflow: str, workflow_id: str, *arguments: str, turn: int) -> None:
    options: EnqueueOptions = {
        "queue_name": queue,
        "workflow_name": workflow,
        "workflow_id": workflow_id,
        "app_version": WORKFLOW_VERSION,
        "priority": turn,
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
