"""`braingemma worker`: one more process that reports studies and delivers results, on any host of the same database.

It receives nothing and serves no page. Its own folder is a scratch: everything that counts is on the shared storage
and in the database, so it is emptied at the start. One worker for each GPU: `CUDA_VISIBLE_DEVICES` chooses it.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import threading
from functools import partial
from typing import NoReturn

from prometheus_client import start_http_server

from daemon.config.data_folder import DataFolder
from daemon.config.sections import Settings
from daemon.database.engine import open_database
from daemon.deliver.delivery import LONGEST_WAIT_OF_ALL
from daemon.engine.recovery import ClockWatch, count_deaths
from daemon.errors import ConfigurationError
from daemon.files import PRIVATE, make_private
from daemon.observe import metrics
from daemon.observe.audit import AuditLog
from daemon.observe.systemd import notify
from daemon.pipeline import workflow
from daemon.pipeline.step_process import StepProcess
from daemon.pull.results import earlier_in_pacs
from daemon.service import retention
from daemon.service.wiring import (
    check_weights,
    end_process,
    ended_by_faults,
    job_files,
    launch_engine,
    make_store,
    stop_on_signals,
    take_lease,
)

log = logging.getLogger(__name__)

CONNECTIONS = 3
"""Of a worker to PostgreSQL, which allows 100 in all as it comes: one for what keeps a lock while it asks, and two for
what asks meanwhile. The engine listens on one more."""


def work(settings: Settings, name: str, *, metrics_port: int | None = None) -> NoReturn:
    """Run until SIGTERM or SIGINT; unfinished work goes to other workers at once.

    Args:
        settings: The configuration; `engine.database_url` and `storage.shared_url` must be set.
        name: Of this worker on this host, such as `gpu0`.
        metrics_port: Serve the metrics on this port of loopback; None: not at all.

    Raises:
        ConfigurationError: there is nothing to share, or a worker of this name is alive.
    """
    if not settings.engine.database_url or not settings.storage.shared_url:
        raise ConfigurationError(
            "a worker needs engine.database_url (PostgreSQL) and storage.shared_url (a folder that all hosts see, or "
            "s3://...); with SQLite `braingemma serve` does all the work itself"
        )
    os.umask(PRIVATE)
    stop = stop_on_signals()
    info = check_weights(settings)
    scratch = settings.data.worker(name)
    make_private(scratch.root)
    with ended_by_faults(), scratch.lock.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigurationError(f"a worker named {name!r} already works in {scratch.root}") from None
        _work(settings, name, scratch, stop, metrics_port, f"{info.name} (sha256 {info.sha256[:12]})")


def _work(
    settings: Settings, name: str, scratch: DataFolder, stop: threading.Event, metrics_port: int | None, weights: str
) -> NoReturn:
    shutil.rmtree(scratch.jobs, ignore_errors=True)
    engine = open_database(settings, connections=CONNECTIONS)
    lease = take_lease(settings, engine, name)
    if lease is None:
        raise ConfigurationError("engine.database_url: expected postgresql://..., got SQLite")
    files = job_files(settings, engine, scratch.jobs, lease, scratch=True)
    store = make_store(engine, AuditLog(scratch.audit), files, lease)
    steps = StepProcess(settings)
    if lease.follows_a_death:
        count_deaths(engine, lease.executor_id)
    launch_engine(
        engine, workflow.Context(settings, store, steps, files, partial(earlier_in_pacs, settings)), lease.executor_id
    )
    threading.Thread(target=retention.keep_house, args=([files.sweep], stop), name="housekeeping", daemon=True).start()
    if metrics_port is not None:
        start_http_server(metrics_port, addr="127.0.0.1", registry=metrics.REGISTRY)
    log.info("working as %s, process %d; weights %s", lease.executor_id, os.getpid(), weights)
    clock = ClockWatch(engine, LONGEST_WAIT_OF_ALL)
    notify("READY=1")
    try:
        while not stop.wait(0.5):
            clock.look()
            if lease.alive():
                notify("WATCHDOG=1")
    finally:
        notify("STOPPING=1")
        steps.close()
        lease.give_back()
        end_process()
