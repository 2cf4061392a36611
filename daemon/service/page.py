"""The page as a process of its own: what strangers ask of it costs the service neither file handles nor threads.

The service binds the page's socket and starts the child (`python -m daemon.service.page`), which inherits it, and
starts another where that ended or stands still. Over the child's standard input goes the configuration, then every
half second a line of JSON with what only the service knows: which of its parts do not run, and what it counted. Where
that line stays out, the page says that the service gives no sign of life; where standard input ends, the service is
gone, and so goes the page. The child writes a byte to its standard output now and then, as a sign that it answers.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import IO, Any

from pydantic import SecretStr

from daemon.config.sections import Settings
from daemon.database.engine import database_url as url_of
from daemon.database.engine import make_engine
from daemon.files import PRIVATE
from daemon.observe import metrics
from daemon.observe.audit import AuditLog
from daemon.observe.health import Health
from daemon.observe.logs import set_up_logging
from daemon.observe.shared_counts import SHARED_FOLDER
from daemon.service.wiring import job_files, make_store
from daemon.web.access import Access
from daemon.web.app import create_app
from daemon.web.context import Page
from daemon.web.server import WebServer, bind
from daemon.web.slices import StackCache

log = logging.getLogger(__name__)

START_SECONDS = 120.0
"""A child that starts may be silent for so long."""
STOP_SECONDS = 3.0
SILENT_SECONDS = 60.0
"""A child that gave no sign for so long is ended and another one started; a page that heard nothing of the service for
so long says so."""
SIGN_SECONDS = 1.0
RESTART_SECONDS = 5.0
"""Between two attempts to start another."""
MOST_FILES = 1024
"""Handles that the page may hold."""


def _revealed(value: Any) -> str:
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value)


@dataclass(eq=False)
class PageProcess:
    """The service's end."""

    settings: Settings
    banner: str | None
    health: Health
    _child: subprocess.Popen[bytes] | None = None
    _heard: float = 0.0
    """Monotonic time of the child's last sign."""
    _next_start: float = 0.0
    _unsent: bytes = b""
    _ready: bool = False
    """Whether it ever gave a sign."""
    port: int = 0
    _socket: socket.socket = field(init=False)

    def __post_init__(self) -> None:
        self._socket = bind(self.settings.web)
        self.port = int(self._socket.getsockname()[1])

    def keep(self) -> None:
        """Start it, or another where it ended or stands still, and tell it how the service is; never waits for it."""
        now = time.monotonic()
        if self._child is not None:
            self._hear()
            ended = self._child.poll() is not None
            if ended or now - self._heard > (SILENT_SECONDS if self._ready else START_SECONDS):
                log.error("the page %s; another one takes its place", "ended" if ended else "stands still")
                metrics.PAGE_RESTARTS.inc()
                self._end()
        if self._child is None:
            if now < self._next_start:
                return
            try:
                self._start()
            except OSError as error:  # no memory or handles for it just now: the rest goes on
                log.error("the page cannot be started, tried again soon: %s", error)  # noqa: TRY400 - it says all
                return
        self._tell()

    def stop(self) -> None:
        """Take no more requests; returns within three seconds."""
        self._socket.close()
        if self._child is not None:
            self._child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(STOP_SECONDS)
            self._end()

    @property
    def pid(self) -> int:
        """Its process id; 0 where there is none just now."""
        return 0 if self._child is None else self._child.pid

    def _start(self) -> None:
        self._next_start = time.monotonic() + RESTART_SECONDS
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        environment.pop(SHARED_FOLDER, None)  # it counts for itself, in memory
        self._child = subprocess.Popen(
            [sys.executable, "-m", "daemon.service.page"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(self._socket.fileno(),),
            env={**environment, "OPENBLAS_NUM_THREADS": "1"},
            bufsize=0,
            start_new_session=True,  # Ctrl-C in the terminal reaches the parent alone, which then stops us in order
        )
        for pipe in (self._child.stdin, self._child.stdout):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)
        order = {"socket": self._socket.fileno(), "banner": self.banner, "settings": self.settings.model_dump()}
        self._unsent = json.dumps(order, default=_revealed).encode() + b"\n"
        self._heard, self._ready = time.monotonic(), False
        self._send()

    def _tell(self) -> None:
        """One line, unless the last one is not taken yet."""
        if not self._unsent:
            word = {"faults": self.health.faults(), "metrics": metrics.counted().decode()}
            self._unsent = json.dumps(word).encode() + b"\n"
        self._send()

    def _send(self) -> None:
        assert self._child is not None
        assert self._child.stdin is not None
        try:
            while self._unsent:
                self._unsent = self._unsent[os.write(self._child.stdin.fileno(), self._unsent) :]
        except (BlockingIOError, BrokenPipeError):
            return

    def _hear(self) -> None:
        assert self._child is not None
        assert self._child.stdout is not None
        with contextlib.suppress(BlockingIOError):
            if os.read(self._child.stdout.fileno(), 1 << 16):
                self._heard, self._ready = time.monotonic(), True

    def _end(self) -> None:
        assert self._child is not None
        self._child.kill()
        self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout):
            assert pipe is not None
            pipe.close()
        self._child, self._unsent = None, b""


@dataclass(eq=False)
class ServiceWord:
    """What the service said last."""

    _faults: list[str] = field(default_factory=list)
    _metrics: bytes = b""
    _heard: float = field(default_factory=time.monotonic)

    def take(self, line: bytes) -> None:
        """A line of it."""
        word = json.loads(line)
        self._faults, self._metrics, self._heard = word["faults"], word["metrics"].encode(), time.monotonic()

    def faults(self) -> list[str]:
        """Of its parts; the first of them that it says nothing at all."""
        if time.monotonic() - self._heard > SILENT_SECONDS:
            return [f"the service has given no sign of life for {SILENT_SECONDS:.0f} s", *self._faults]
        return self._faults

    def metrics(self) -> bytes:
        """What it counted."""
        return self._metrics


def main() -> None:
    """Entry of the child."""
    os.umask(PRIVATE)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = MOST_FILES if most == resource.RLIM_INFINITY else min(MOST_FILES, most)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    lines = os.fdopen(os.dup(0), "rb")
    order = json.loads(lines.readline() or b"{}")
    if not order:
        os._exit(1)
    settings = Settings.model_validate_json(json.dumps(order["settings"]))
    set_up_logging(settings.log.format)
    server, word = _serve(settings, socket.socket(fileno=order["socket"]), order["banner"])
    threading.Thread(target=_listen, args=(lines, word), name="service", daemon=True).start()
    while True:
        if not server.alive():
            log.error("the web server has ended")
            os._exit(1)
        if server.answers():
            with contextlib.suppress(BlockingIOError, BrokenPipeError):  # gone: `_listen` ends this process
                os.write(1, b".")
        if stop.wait(SIGN_SECONDS):
            break
    server.stop()
    logging.shutdown()
    os._exit(0)


def _serve(settings: Settings, listening: socket.socket, banner: str | None) -> tuple[WebServer, ServiceWord]:
    engine = make_engine(url_of(settings.engine.database_url, settings.data))
    audit, word = AuditLog(settings.data.audit), ServiceWord()
    files = job_files(settings, engine, settings.data.jobs, None)
    health = Health(settings, engine, told=word.faults)
    page = Page(
        settings, engine, make_store(engine, audit, files, None), audit, health, Access(settings.web), StackCache(),
        files, banner, service_pid=os.getppid(), service_metrics=word.metrics,
    )  # fmt: skip
    return WebServer(create_app(page), settings.web, listening), word


def _listen(lines: IO[bytes], word: ServiceWord) -> None:
    """Take what the service says until it is gone; then there is nothing to show."""
    try:
        for line in lines:
            if line.endswith(b"\n"):  # else it was killed in the middle of it
                word.take(line)
    finally:
        os._exit(1)


if __name__ == "__main__":
    main()
