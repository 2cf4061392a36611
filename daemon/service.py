"""Wires the stages of `braingemma serve`: receivers, assembler, pipeline, delivery; signals and shutdown."""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NoReturn

import sqlalchemy as sa
from dbos import DBOS, DBOSConfig, DBOSPortableJSONSerializer

from braingemma.weights import WeightsInfo, describe_weights
from daemon import pipeline
from daemon.arrival import Arrival
from daemon.assembler import Assembler
from daemon.config import Settings
from daemon.database import open_database
from daemon.errors import ConfigurationError
from daemon.folders import make_private, write_json
from daemon.jobs import JobStore
from daemon.listener import start_receivers
from daemon.names import DELIVERY_QUEUE, EXECUTOR_ID, REPORT_QUEUE, WORKFLOW_VERSION
from daemon.step_process import StepProcess

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
        names = ", ".join(f"{d.name} ({d.host})" for d in away)
        raise ConfigurationError(
            f"[model] weights = {settings.model.weights!r} were trained on synthetic images only; expected "
            f"destinations on loopback, got {names}. Use other weights, or, for tests, set [model] allow_demo = true."
        )
    return info


def launch_engine(settings: Settings, engine: sa.Engine, context: pipeline.Context) -> None:
    """Start DBOS on the daemon's database; unfinished workflows go on."""
    pipeline.set_context(context)
    config: DBOSConfig = {
        "name": "braingemma",
        "system_database_url": engine.url.render_as_string(hide_password=False),
        "system_database_engine": engine,
        "application_version": WORKFLOW_VERSION,
        "executor_id": EXECUTOR_ID,
        "serializer": DBOSPortableJSONSerializer(),
        "log_level": "WARNING",
    }
    DBOS(config=config)
    DBOS.launch()
    DBOS.register_queue(REPORT_QUEUE, worker_concurrency=1, polling_interval_sec=POLL_SECONDS)
    DBOS.register_queue(
        DELIVERY_QUEUE,
        worker_concurrency=max(1, len(settings.destinations)),
        polling_interval_sec=POLL_SECONDS,
    )


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
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    folder = settings.storage.folder
    info = check_weights(settings)
    make_private(folder)
    with _only_service(folder):
        engine = open_database(settings)
        store = JobStore(engine)
        steps = StepProcess(settings)
        launch_engine(settings, engine, pipeline.Context(settings, store, steps))

        def submit(arrival: Arrival) -> None:
            store.add(
                arrival.job_id,
                study_uid=arrival.study_uid,
                folder=str(arrival.folder),
                supersedes=arrival.supersedes,
            )
            pipeline.submit(arrival.job_id)

        assembler = Assembler(settings, engine, folder, submit)
        assembling = threading.Thread(target=_guard, args=(assembler, stop), name="assembler", daemon=True)
        receivers = start_receivers(settings, folder)
        assembling.start()
        write_json(folder / STATUS_FILE, {"pid": os.getpid(), "dicom_port": receivers.address[1]})
        log.info(
            "listening as %s on %s:%d; weights %s (sha256 %s)%s",
            settings.listener.ae_title, settings.listener.host, receivers.address[1], info.name, info.sha256[:12],
            f"; {info.banner}" if info.banner else "",
        )  # fmt: skip
        try:
            while not stop.wait(0.5):
                if not receivers.alive():
                    log.error("a receiver process ended unexpectedly; it is started again")
                    receivers.restart_dead()
        finally:
            log.info("stopping: no more associations, acknowledgements are finished first")
            receivers.stop()
            stop.set()
            assembling.join(3)
            steps.close()
            (folder / STATUS_FILE).unlink(missing_ok=True)
            logging.shutdown()
            sys.stderr.flush()
            # Threads of the engine may still wait for a step that was cut off (see StepProcess.close): they must
            # not be waited for, and their steps must stay unfinished on record.
            os._exit(0 if sys.exc_info()[0] is None else 1)


def _guard(assembler: Assembler, stop: threading.Event) -> None:
    """Run the assembler; if it fails, the service must not go on as if it worked."""
    try:
        assembler.run(stop)
    except BaseException:
        log.exception("the assembler failed; the service stops, what was acknowledged is kept")
        stop.set()
        raise
