"""Wires the stages of `braingemma serve`: receivers, assembler, pipeline, delivery; signals and shutdown."""

from __future__ import annotations

import fcntl
import functools
import logging
import os
import resource
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import sqlalchemy as sa

from daemon.assemble.arrival import Arrival
from daemon.assemble.assembler import Assembler
from daemon.assemble.receivers import Receivers as OtherReceivers
from daemon.assemble.receivers import name_of, replicas_of
from daemon.config.data_folder import DataFolder
from daemon.config.sections import Settings
from daemon.database.engine import check_database, open_database, open_index
from daemon.database.tables import JobState
from daemon.deliver.commitment import take_reports
from daemon.deliver.delivery import LONGEST_WAIT_OF_ALL
from daemon.engine import client
from daemon.engine.identifiers import EXECUTOR_ID
from daemon.engine.lease import SoleReceiver
from daemon.engine.recovery import ClockWatch, count_deaths, give_every_job_a_workflow
from daemon.errors import ConfigurationError, Permanent
from daemon.files import PRIVATE, make_private
from daemon.jobs import records
from daemon.jobs.files import RECEIVED
from daemon.jobs.folder import JobFolder
from daemon.jobs.lists.worklist import note_study
from daemon.jobs.priority import priority_of
from daemon.jobs.steps import RECEIVE
from daemon.observe import metrics
from daemon.observe.audit import AuditLog
from daemon.observe.health import Health
from daemon.observe.status import ServiceStatus
from daemon.observe.systemd import notify
from daemon.pipeline import actions, workflow
from daemon.pipeline.step_process import StepProcess
from daemon.pull.fetches import Fetches
from daemon.pull.puller import Puller
from daemon.pull.results import earlier_in_pacs
from daemon.pull.store import is_pulled
from daemon.receive.processes import Receivers, start_receivers
from daemon.service import retention
from daemon.service.notices import notice_threads
from daemon.service.page import PageProcess
from daemon.service.restore import restore_deliveries
from daemon.service.wiring import (
    check_weights,
    end_process,
    ended_by_faults,
    job_files,
    launch_engine,
    make_store,
    prepare_for_enqueueing,
    stop_on_signals,
    take_lease,
)

log = logging.getLogger(__name__)


@contextmanager
def _only_service(data: DataFolder) -> Iterator[bool]:
    """Hold the data folder's lock; the kernel frees it when the process ends, however that happens.

    Yields:
        Whether the service before ended without a word: it left its process number in the lock's file.
    """
    with data.lock.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigurationError(f"another braingemma service already works in {data.root}") from None
        lock.seek(0)
        died = bool(lock.read().strip())
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        try:
            yield died
        finally:
            lock.truncate(0)


def serve(settings: Settings) -> NoReturn:
    """Run until SIGTERM or SIGINT, then end the process: associations first, then the rest, in under 10 s."""
    os.umask(PRIVATE)
    stop = stop_on_signals()
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))  # of receivers, too, which inherit it
    data = settings.data
    info = check_weights(settings)
    make_private(data.root)
    with ended_by_faults(), _only_service(data) as died:
        parts = _Parts(settings, stop, died=died)
        receivers = start_receivers(settings, replicas_of(settings))
        parts.health.alive["receivers"] = receivers.alive
        parts.start_threads()
        web = PageProcess(settings, info.banner, parts.health) if settings.web.enabled else None
        if web is not None:
            web.keep()
        web_port = web.port if web else None
        ServiceStatus(pid=os.getpid(), dicom_port=receivers.address[1], web_port=web_port).write(data.status)
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
                    _restart(receivers)
                if web is not None:
                    web.keep()
                parts.take_commitments()
                parts.clock.look()
                if not stop.is_set():  # else parts have ended as they should
                    _tell_watchdog(parts.health)
        finally:
            data.lock.write_text("")  # an end in order, whatever it is for: no job is to blame
            notify("STOPPING=1")
            log.info("stopping: no more associations, acknowledgements are finished first")
            receivers.stop()
            stop.set()
            if web is not None:
                web.stop()
            parts.close()
            data.status.unlink(missing_ok=True)
            end_process(failed=parts.failed.is_set())


def _restart(receivers: Receivers) -> None:
    """Start what ended; where that does not work, as on a full disk, it is tried again while the rest goes on."""
    try:
        receivers.restart_dead()
    except (Permanent, OSError) as error:
        log.error("a receiver process is missing, tried again soon: %s", error)  # noqa: TRY400 - it says all


def _tell_watchdog(health: Health) -> None:
    """Give systemd a sign of life: it starts the service again where it hears nothing."""
    faults = health.faults()
    if faults:
        log.error("not alive: %s", "; ".join(faults))
    else:
        notify("WATCHDOG=1")


class _Parts:
    """What `serve` runs beside the receivers and the page: database, engine, assembler, housekeeping."""

    def __init__(self, settings: Settings, stop: threading.Event, *, died: bool) -> None:
        self.settings = settings
        self.failed = threading.Event()
        self.stop = stop
        data = settings.data
        metrics.share_with_children(data.metrics)
        is_new = not settings.engine.database_url and not data.database.exists()
        self.engine = open_database(settings)
        for database in (self.engine, open_index(settings, self.engine)):
            check_database(database)
        self.audit = AuditLog(data.audit)
        self.health = Health(settings, self.engine)
        self.receiver = None
        if self.engine.dialect.name == "postgresql":
            self.receiver = SoleReceiver(self.engine, shared=settings.storage.shared_folder is not None)
            self.receiver.hold()
        self.lease = take_lease(settings, self.engine, "serve") if settings.engine.work else None
        self.files = job_files(settings, self.engine, data.jobs, self.lease)
        self.others = self._others()
        self.store = make_store(self.engine, self.audit, self.files, self.lease)
        if is_new:
            restore_deliveries(self.store, data.audit)
        self.steps = StepProcess(settings) if settings.engine.work else None
        if self.steps is not None:
            executor_id = EXECUTOR_ID if self.lease is None else self.lease.executor_id
            if died if self.lease is None else self.lease.follows_a_death:
                count_deaths(self.engine, executor_id)
            launch_engine(
                self.engine,
                workflow.Context(
                    settings, self.store, self.steps, self.files, functools.partial(earlier_in_pacs, settings)
                ),
                executor_id,
            )
        else:
            prepare_for_enqueueing(settings, self.engine)
        self.clock = ClockWatch(self.engine, LONGEST_WAIT_OF_ALL)
        give_every_job_a_workflow(self.engine, alone=self.lease is None and settings.engine.work)
        index = open_index(settings, self.engine)
        fetches = Fetches(self.engine, index)
        self.assembler = Assembler(
            settings,
            index,
            self._submit,
            beat=lambda: self.health.beat("assembler"),
            waiting=self.store.waiting,
            fetching=fetches.under_way,
            left_half=fetches.left_half,
            receivers=self.others,
            shared=self.engine if settings.engine.database_url else None,
        )
        self.puller = Puller(settings, self.engine)
        if self.lease is not None:
            self.health.alive["lease"] = self.lease.alive
        self._threads: list[threading.Thread] = []

    def _others(self) -> OtherReceivers | None:
        """Other receivers on the same database, where there may be some."""
        shared = self.settings.storage.shared_folder
        if self.engine.dialect.name != "postgresql" or shared is None:
            return None
        data, rules = self.settings.data, self.settings
        others = OtherReceivers(
            self.engine, open_index(rules, self.engine), name_of(data), shared, data.spool, data.jobs,
            rules.engine.lease_seconds, rules.listener.replicate == "shared", self.files.fetch,
        )  # fmt: skip
        others.join()
        return others

    def _submit(self, arrival: Arrival) -> None:
        self.files.keep(arrival.job_id, RECEIVED)
        new = self.store.get(arrival.job_id) is None
        self._add(arrival)
        note_study(self.store, arrival.job_id, JobFolder(arrival.folder))
        if arrival.set_aside:
            step = "" if arrival.instances else RECEIVE
            self.store.move(
                arrival.job_id, JobState.SET_ASIDE, of=[JobState.QUEUED], step=step, reason=arrival.set_aside, deaths=1
            )
        elif self.steps is not None:
            workflow.submit(arrival.job_id)
        else:
            client.enqueue_report(self.engine, actions.job_or_error(self.store, arrival.job_id))
        if new:
            record = records.Arrival.read(JobFolder(arrival.folder).arrival)
            self.audit.note(
                "received", job=arrival.job_id, study_uid=arrival.study_uid, series_uids=arrival.series_uids,
                instances=arrival.instances, calling_aets=list(record.calling_aets), peers=list(record.peers),
            )  # fmt: skip

    def _add(self, arrival: Arrival) -> None:
        """The job's row, with how soon it is worked on."""
        folder = JobFolder(arrival.folder)
        priority = priority_of(
            self.settings.rules, records.Arrival.read(folder.arrival), folder,
            pulled=is_pulled(self.engine, arrival.study_uid),
        )  # fmt: skip
        study_uid, supersedes = arrival.study_uid, arrival.supersedes
        self.store.add(arrival.job_id, study_uid=study_uid, supersedes=supersedes, priority=priority)

    def take_commitments(self) -> None:
        """What PACSs told our receivers about storage commitment."""
        try:
            take_reports(self.engine, self.settings.data.commitment_reports)
        except (sa.exc.SQLAlchemyError, OSError) as error:  # the files stay for the next time
            log.warning("reports of storage commitment wait: %s", error)

    def start_threads(self) -> None:
        """The assembler, the housekeeping, and what fetches from PACSs."""
        assembling = threading.Thread(target=self._assemble, name="assembler", daemon=True)
        keeping = threading.Thread(target=self._keep_house, name="housekeeping", daemon=True)
        pulling = threading.Thread(target=self.puller.run, args=(self.stop,), name="pulls", daemon=True)
        self._threads = [assembling, keeping, pulling, *notice_threads(self.settings, self.engine, self.stop)]
        if self.others is not None:
            beating = threading.Thread(target=self.others.keep, args=(self.stop,), name="receiver", daemon=True)
            self._threads.append(beating)
        for thread in self._threads:
            thread.start()
            self.health.alive[thread.name] = thread.is_alive

    def _assemble(self) -> None:
        """Run the assembler; if it fails, the service must not go on as if it worked."""
        try:
            self.assembler.run(self.stop)
        except BaseException:
            log.exception("the assembler failed; the service stops, what was acknowledged is kept")
            self.failed.set()
            self.stop.set()
            raise

    def _keep_house(self) -> None:
        works: list[Callable[[], object]] = [
            self._purge,
            self.files.sweep,
            lambda: retention.forget_conflicts(open_index(self.settings, self.engine), self.settings.data.conflicts),
            lambda: give_every_job_a_workflow(self.engine, alone=False),
        ]
        if self.receiver is not None:
            works.append(functools.partial(self.receiver.hold, patience=0))
        if self.others is not None:
            works.append(self.others.forget_gone)
        retention.keep_house(works, self.stop)

    def _purge(self) -> None:
        def note(purged: retention.Purged) -> None:
            self.audit.note("purged", job=purged.job_id, state=purged.state, why=purged.why)

        retention.purge(self.store, self.settings, dry_run=False, forget_files=self.files.forget, on_removed=note)

    def close(self) -> None:
        """Stop what runs."""
        for thread in self._threads:
            thread.join(3)
        self.puller.close()
        if self.steps is not None:
            self.steps.close()
        if self.lease is not None:
            self.lease.give_back()
