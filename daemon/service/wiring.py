"""What service and worker are put together from."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import sqlalchemy as sa
from dbos import DBOS, DBOSConfig, DBOSPortableJSONSerializer

from braingemma.checkpoint.weights import WeightsInfo, describe_weights
from daemon.config.sections import Settings
from daemon.database.engine import open_index, schema_lock
from daemon.database.tables import DeliveryState
from daemon.engine.identifiers import DESTINATION_QUEUE, REPORT_QUEUE, WORKFLOW_VERSION
from daemon.engine.lease import Lease
from daemon.errors import ConfigurationError, DaemonError
from daemon.faults import ending
from daemon.files import make_private
from daemon.jobs.files import JobFiles, LocalFiles
from daemon.jobs.shared_files import SharedFiles
from daemon.jobs.store import JobStore
from daemon.observe import metrics
from daemon.observe.audit import AuditLog
from daemon.pipeline import workflow
from dicom_io.pack.manifest import MANIFEST

log = logging.getLogger(__name__)

POLL_SECONDS = 0.2
"""How often the queues are asked for work. Not more often: the engine counts a study as taken a moment after it took
it, and on a busy machine a worker would take two, of which one waits though another worker may be free."""

DELIVERY_SECONDS = 0.5
"""With several workers, each of which asks: how often the destinations' queue is asked."""


def check_weights(settings: Settings) -> WeightsInfo:
    """The configured weights, which must be fit for the configured destinations.

    Raises:
        ConfigurationError: weights trained on synthetic images only would send to another machine.
        CheckpointError: the weights are missing or damaged.
    """
    info = describe_weights(settings.model.weights)
    away = [d for d in settings.destinations if not d.is_loopback]
    if info.synthetic_only and away and not settings.model.allow_demo:
        names = ", ".join(f"{d.name} ({d.address})" for d in away)
        raise ConfigurationError(
            f"[model] weights = {settings.model.weights!r} were trained on synthetic images only; expected "
            f"destinations on loopback, got {names}. Use other weights, or, for tests, set [model] allow_demo = true."
        )
    return info


_launched = threading.Event()
"""Whether this process has threads of the engine."""


@contextmanager
def ended_by_faults() -> Iterator[None]:
    """Where a service starts: a fault after the engine was launched ends the process, with the line of every command.

    Else Python would wait for the engine's threads, which may wait for a step, or for room on a disk: a process that
    neither receives nor ends, and takes jobs out of the queue.
    """
    try:
        yield
    except Exception as error:
        told = ending(error)
        if not _launched.is_set():
            raise
        if told is None:
            end_process()
        status, line = told
        sys.stderr.write(f"braingemma: {line}\n")
        end_process(status=status)


def launch_engine(engine: sa.Engine, context: workflow.Context, executor_id: str) -> None:
    """Start DBOS on the daemon's database; unfinished workflows of this executor go on."""
    workflow.set_context(context)
    config: DBOSConfig = {
        "name": "braingemma",
        "system_database_url": engine.url.render_as_string(hide_password=False),
        "system_database_engine": engine,
        "application_version": WORKFLOW_VERSION,
        "executor_id": executor_id,
        "serializer": DBOSPortableJSONSerializer(),
        "log_level": "WARNING",
    }
    _launched.set()
    DBOS(config=config)
    alone = engine.dialect.name == "sqlite"
    with schema_lock(engine):
        DBOS.launch()
        DBOS.register_queue(REPORT_QUEUE, worker_concurrency=1, polling_interval_sec=POLL_SECONDS)
        DBOS.register_queue(
            DESTINATION_QUEUE,
            partition_concurrency=1,  # of all workers: two would send the same that waits
            polling_interval_sec=POLL_SECONDS if alone else DELIVERY_SECONDS,
        )


def stop_on_signals() -> threading.Event:
    """Set by SIGTERM and SIGINT."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def end_process(*, failed: bool = False, status: int | None = None) -> NoReturn:
    """End at once, with 1 where a part `failed` or an error is under way, or with a `status` that was told already.

    Threads of the engine may still wait for a step that was cut off (see StepProcess.close): they must not be waited
    for, and their steps must stay unfinished on record.
    """
    error = sys.exc_info()[1]
    if error is not None and status is None:
        log.error("ended by a fault: %s", error, exc_info=None if isinstance(error, DaemonError) else error)
    logging.shutdown()
    sys.stderr.flush()
    os._exit(status or int(failed or error is not None))


def take_lease(settings: Settings, engine: sa.Engine, name: str) -> Lease | None:
    """The right to work as `<host>:<name>`; None with SQLite, where one process works alone.

    Raises:
        ConfigurationError: a living process of this name works on the same database.
    """
    if engine.dialect.name == "sqlite":
        return None
    lease = Lease(engine, f"{socket.gethostname()}:{name}", settings.engine.lease_seconds)
    lease.take()
    return lease


def job_files(
    settings: Settings, engine: sa.Engine, jobs: Path, lease: Lease | None, *, scratch: bool = False
) -> JobFiles:
    """Where jobs' files are by this configuration; `scratch`: `jobs` holds copies only."""
    if not settings.storage.shared_url:
        return LocalFiles(jobs)
    make_private(jobs)
    index = engine if scratch else open_index(settings, engine)
    url = settings.storage.shared_url
    if lease is None:
        return SharedFiles(engine, jobs, url, scratch=scratch, index=index)
    return SharedFiles(engine, jobs, url, lease.check_in, scratch=scratch, index=index)


def make_store(engine: sa.Engine, audit: AuditLog, files: JobFiles, lease: Lease | None) -> JobStore:
    """The job tables, with each delivery counted and in the audit log.

    Neither can fail an attempt: it was made, and must not be made again because it could not be counted.
    """

    def on_attempt(job_id: str, destination: str, sop_instance_uid: str, state: DeliveryState, status: str) -> None:
        event = {DeliveryState.UNCONFIRMED: "accepted", DeliveryState.SENT: "sent"}.get(state, "not_sent")
        audit.note(
            event, durably=False, job=job_id, destination=destination,
            sop_instance_uid=sop_instance_uid, status=status,
        )  # fmt: skip
        metrics.OBJECTS_SENT.labels(destination, str(state)).inc()
        if state is DeliveryState.SENT:
            try:
                manifest = files.fetch(job_id).dicom / MANIFEST
                metrics.DELIVERY_LAG.labels(destination).observe(max(0.0, time.time() - manifest.stat().st_mtime))
            except FileNotFoundError:
                pass  # it is purged already
            except (OSError, DaemonError, sa.exc.SQLAlchemyError) as error:  # where files are shared
                log.warning("the time of a delivery of job %s is not counted: %s", job_id, error)

    if lease is None:
        return JobStore(engine, on_attempt=on_attempt)
    return JobStore(engine, may_write=lease.check, on_attempt=on_attempt)


def prepare_for_enqueueing(settings: Settings, engine: sa.Engine) -> None:
    """Make the engine's tables where no worker has made them yet."""
    with schema_lock(engine):
        DBOS.migrate(settings.engine.database_url)
