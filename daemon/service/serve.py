"""Wires the stages of `braingemma serve`: receivers, assembler, pipeline, delivery; signals and shutdown."""

from __future__ import annotations

import fcntl
import functools
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NoReturn

import sqlalchemy as sa
from dbos import DBOS, DBOSConfig, DBOSPortableJSONSerializer

from braingemma.checkpoint.weights import WeightsInfo, describe_weights
from daemon.assemble.arrival import Arrival
from daemon.assemble.assembler import Assembler
from daemon.config.sections import Settings
from daemon.database.engine import open_database, open_index, schema_lock
from daemon.deliver.commitment import take_reports
from daemon.engine.lease import Lease, SoleReceiver
from daemon.engine.names import DELIVERY_QUEUE, DESTINATION_QUEUE, EXECUTOR_ID, REPORT_QUEUE, WORKFLOW_VERSION
from daemon.engine.recovery import give_every_job_a_workflow
from daemon.errors import ConfigurationError
from daemon.jobs.files import RECEIVED, JobFiles, LocalFiles, SharedFiles
from daemon.jobs.folder import PRIVATE, JobFolder, make_private, read_json, write_json
from daemon.jobs.store import DeliveryState, JobStore
from daemon.observe import metrics
from daemon.observe.audit import AuditLog
from daemon.observe.health import Health
from daemon.observe.systemd import notify
from daemon.pipeline import actions as control
from daemon.pipeline import workflow as pipeline
from daemon.pipeline.step_process import StepProcess
from daemon.receive.processes import start_receivers
from daemon.service import retention
from daemon.spool.commitment_reports import reports_folder
from daemon.web.access import Access
from daemon.web.app import Page, create_app
from daemon.web.server import WebServer
from daemon.web.slices import StackCache
from dicom_io.pack.encode import MANIFEST

log = logging.getLogger(__name__)

POLL_SECONDS = 0.2
"""How often the queues are asked for work."""

STATUS_FILE = "service.json"
"""In the data folder: pid and ports of the running service."""


def check_weights(settings: Settings) -> WeightsInfo:
    """Which weights will speak, and whether they may be heard outside this machine.

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


def launch_engine(settings: Settings, engine: sa.Engine, context: pipeline.Context, executor_id: str) -> None:
    """Start DBOS on the daemon's database; unfinished workflows of this executor go on."""
    pipeline.set_context(context)
    config: DBOSConfig = {
        "name": "braingemma",
        "system_database_url": engine.url.render_as_string(hide_password=False),
        "system_database_engine": engine,
        "application_version": WORKFLOW_VERSION,
        "executor_id": executor_id,
        "serializer": DBOSPortableJSONSerializer(),
        "log_level": "WARNING",
    }
    DBOS(config=config)
    with schema_lock(engine):
        DBOS.launch()
        DBOS.register_queue(REPORT_QUEUE, worker_concurrency=1, polling_interval_sec=POLL_SECONDS)
        DBOS.register_queue(
            DELIVERY_QUEUE,
            worker_concurrency=max(1, len(settings.destinations)),
            polling_interval_sec=POLL_SECONDS,
        )
        DBOS.register_queue(DESTINATION_QUEUE, partition_worker_concurrency=1, polling_interval_sec=POLL_SECONDS)


@contextmanager
def _only_service(folder: Path) -> Iterator[IO[str]]:
    """Hold the data folder's lock; the kernel frees it when the process ends, however that happens."""
    with (folder / "service.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigurationError(f"another braingemma service already works in {folder}") from None
        yield lock


def serve(settings: Settings) -> NoReturn:
    """Run until SIGTERM or SIGINT, then end the process: associations first, then the rest, in under 10 s."""
    os.umask(PRIVATE)
    stop = stop_on_signals()
    os.umask(0o077)  # what is received, and what is made of it, is for this user alone
    folder = settings.storage.folder
    info = check_weights(settings)
    make_private(folder)
    with _only_service(folder):
        parts = _Parts(settings, stop)
        receivers = start_receivers(settings, folder)
        parts.health.alive["receivers"] = receivers.alive
        parts.start_threads()
        web = parts.start_web(info.banner)
        status = {"pid": os.getpid(), "dicom_port": receivers.address[1], "web_port": web.port if web else None}
        write_json(folder / STATUS_FILE, status)
        log.info(
            "listening as %s on %s:%d; page on %s; weights %s (sha256 %s)%s",
            settings.listener.ae_title, settings.listener.host, receivers.address[1],
            f"http://{settings.web.host}:{web.port}" if web else "no port", info.name, info.sha256[:12],
            f"; {info.banner}" if info.banner else "",
        )  # fmt: skip
        notify("READY=1")
        try:
            while not stop.wait(0.5):
                if not receivers.alive():
                    log.error("a receiver process ended unexpectedly; it is started again")
                    receivers.restart_dead()
                parts.take_commitments()
                _tell_watchdog(parts.health)
        finally:
            notify("STOPPING=1")
            log.info("stopping: no more associations, acknowledgements are finished first")
            receivers.stop()
            stop.set()
            if web is not None:
                web.stop()
            parts.close()
            (folder / STATUS_FILE).unlink(missing_ok=True)
            end_process()


def stop_on_signals() -> threading.Event:
    """Set by SIGTERM and SIGINT."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def end_process() -> NoReturn:
    """End at once, with 1 where an error is under way.

    Threads of the engine may still wait for a step that was cut off (see StepProcess.close): they must not be waited
    for, and their steps must stay unfinished on record.
    """
    logging.shutdown()
    sys.stderr.flush()
    os._exit(0 if sys.exc_info()[0] is None else 1)


def _tell_watchdog(health: Health) -> None:
    """Give systemd a sign of life: it starts the service again where it hears nothing."""
    faults = health.faults()
    if faults:
        log.error("not alive: %s", "; ".join(faults))
    else:
        notify("WATCHDOG=1")


class _Parts:
    """What `serve` runs beside the receivers: database, engine, assembler, housekeeping, page."""

    def __init__(self, settings: Settings, stop: threading.Event) -> None:
        self.settings = settings
        self.stop = stop
        folder = settings.storage.folder
        metrics.share_with_children(folder / "figures")
        self.engine = open_database(settings)
        self.audit = AuditLog(folder / "audit")
        self.health = Health(settings, self.engine)
        self.receiver = SoleReceiver(self.engine) if self.engine.dialect.name == "postgresql" else None
        if self.receiver is not None:
            self.receiver.hold()
        self.lease = take_lease(settings, self.engine, "serve") if settings.engine.work else None
        self.files = job_files(settings, self.engine, folder / "jobs", self.lease)
        self.store = make_store(self.engine, self.audit, self.files, self.lease)
        self.steps = StepProcess(settings) if settings.engine.work else None
        if self.steps is not None:
            launch_engine(
                settings, self.engine, pipeline.Context(settings, self.store, self.steps, self.files),
                EXECUTOR_ID if self.lease is None else self.lease.executor_id,
            )  # fmt: skip
        else:
            prepare_for_enqueueing(settings, self.engine)
        give_every_job_a_workflow(self.engine, alone=self.lease is None and settings.engine.work)
        self.assembler = Assembler(
            settings,
            open_index(settings, self.engine),
            folder,
            self._submit,
            beat=lambda: self.health.beat("assembler"),
            waiting=self.store.waiting,
        )
        if self.lease is not None:
            self.health.alive["lease"] = self.lease.alive
        self._threads: list[threading.Thread] = []

    def _submit(self, arrival: Arrival) -> None:
        self.files.keep(arrival.job_id, RECEIVED)
        new = self.store.get(arrival.job_id) is None
        self.store.add(
            arrival.job_id, study_uid=arrival.study_uid, folder=str(arrival.folder), supersedes=arrival.supersedes
        )
        if self.steps is not None:
            pipeline.submit(arrival.job_id)
        else:
            control.enqueue_report(self.engine, arrival.job_id)
        if new:
            record = read_json(JobFolder(arrival.folder).arrival)
            self.audit.write(
                "received", job=arrival.job_id, study_uid=arrival.study_uid, series_uids=arrival.series_uids,
                instances=arrival.instances, calling_aets=record["calling_aets"], peers=record["peers"],
            )  # fmt: skip

    def take_commitments(self) -> None:
        """What PACSs told our receivers about storage commitment."""
        try:
            take_reports(self.engine, reports_folder(self.settings.storage.folder))
        except sa.exc.SQLAlchemyError as error:  # the files stay for the next time
            log.warning("reports of storage commitment wait: %s", error)

    def start_threads(self) -> None:
        """The assembler, and the housekeeping."""
        assembling = threading.Thread(target=_guard, args=(self.assembler, self.stop), name="assembler", daemon=True)
        keeping = threading.Thread(target=self._keep_house, name="housekeeping", daemon=True)
        self._threads = [assembling, keeping]
        for thread in self._threads:
            thread.start()
            self.health.alive[thread.name] = thread.is_alive

    def _keep_house(self) -> None:
        works: list[Callable[[], object]] = [
            self._purge,
            self.files.sweep,
            lambda: retention.forget_conflicts(open_index(self.settings, self.engine), self.settings.storage.folder),
            lambda: give_every_job_a_workflow(self.engine, alone=False),
        ]
        if self.receiver is not None:
            works.append(functools.partial(self.receiver.hold, patience=0))
        retention.keep_house(works, self.stop)

    def _purge(self) -> None:
        removed = retention.purge(self.store, self.settings, dry_run=False, forget_files=self.files.forget)
        for purged in removed:
            self.audit.write("purged", job=purged.job_id, state=purged.state, why=purged.why)

    def start_web(self, banner: str | None) -> WebServer | None:
        """The page, where it is switched on."""
        web = self.settings.web
        if not web.enabled:
            return None
        page = Page(
            self.settings, self.engine, self.store, self.audit, self.health, Access(web), StackCache(),
            self.files, banner,
        )  # fmt: skip
        server = WebServer(create_app(page), web)
        self.health.alive["page"] = server.alive
        return server

    def close(self) -> None:
        """Stop what runs."""
        for thread in self._threads:
            thread.join(3)
        if self.steps is not None:
            self.steps.close()
        if self.lease is not None:
            self.lease.give_back()


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
    """The job tables, with each delivery counted and in the audit log."""

    def on_attempt(job_id: str, destination: str, sop_instance_uid: str, state: DeliveryState, status: str) -> None:
        sent = state is DeliveryState.SENT
        metrics.OBJECTS_SENT.labels(destination, str(state)).inc()
        if sent:
            manifest = files.fetch(job_id).dicom / MANIFEST
            if manifest.exists():
                metrics.DELIVERY_LAG.labels(destination).observe(max(0.0, time.time() - manifest.stat().st_mtime))
        event = {DeliveryState.UNCONFIRMED: "accepted", DeliveryState.SENT: "sent"}.get(state, "not_sent")
        audit.write(
            event, durably=False, job=job_id, destination=destination,
            sop_instance_uid=sop_instance_uid, status=status,
        )  # fmt: skip

    if lease is None:
        return JobStore(engine, on_attempt=on_attempt)
    return JobStore(engine, may_write=lease.check, on_attempt=on_attempt)


def prepare_for_enqueueing(settings: Settings, engine: sa.Engine) -> None:
    """Make the engine's tables where no worker has made them yet."""
    with schema_lock(engine):
        DBOS.migrate(settings.engine.database_url)


def _guard(assembler: Assembler, stop: threading.Event) -> None:
    """Run the assembler; if it fails, the service must not go on as if it worked."""
    try:
        assembler.run(stop)
    except BaseException:
        log.exception("the assembler failed; the service stops, what was acknowledged is kept")
        stop.set()
        raise
