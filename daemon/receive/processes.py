"""C-ECHO and C-STORE: receiver processes on one listening socket, each writing its own segments into the spool.

The parent binds the socket and starts `listener.processes` children (`python -m daemon.receive.processes`) that inherit
it. Configuration goes to a child through its standard input, which stays open: when the parent dies, even by SIGKILL,
the child reads the end of it and leaves too.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from pydantic import BaseModel

from daemon.config.sections import Listener, Settings
from daemon.errors import ConfigurationError, Permanent
from daemon.files import make_private_folder
from daemon.observe.audit import AuditLog
from daemon.observe.logs import LogFormat, set_up_logging
from daemon.receive.association import BlockingReceiver
from daemon.receive.contexts import server_tls_context
from daemon.receive.refusals import RefusalLog
from daemon.receive.scheduling import ask_for_short_slices
from daemon.spool.writer import SEGMENT_BYTES, SpoolWriter

log = logging.getLogger(__name__)

BACKLOG = 128
START_SECONDS = 120.0
FINISH_SECONDS = 3.0
STOP_SECONDS = 8.0
_READY = b"ready\n"
_GIB = 1 << 30


class Order(BaseModel):
    """What the parent tells a receiver process."""

    listener: Listener
    spool: Path
    audit: Path
    """Folder of the audit log."""
    min_free_bytes: int
    socket: int
    """Inherited file descriptor of the listening socket."""
    log_format: LogFormat = "text"
    replica: Path | None = None
    """Where the second copies of the segments go; None: nowhere."""


@dataclass(eq=False)
class Receivers:
    """The running receiver processes."""

    address: tuple[str, int]
    """Host and port on which they listen."""
    _order: Order
    _socket: socket.socket
    _children: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids."""
        return tuple(child.pid for child in self._children)

    def alive(self) -> bool:
        """Whether every receiver process runs."""
        return all(child.poll() is None for child in self._children)

    def restart_dead(self) -> int:
        """Start a new process for each one that died; how many.

        Raises:
            Permanent: a new one does not start.
            OSError: there are no memory or handles for it.
        """
        dead = [place for place, child in enumerate(self._children) if child.poll() is not None]
        for place in dead:
            child = self._children[place]
            log.error("receiver process %d ended with %s; starting another", child.pid, child.returncode)
            self._children[place] = _start_child(self._order, self._socket)  # where that fails, the dead one is missed
            _close(child)
            _await_ready(self._children[place])
        return len(dead)

    def stop(self) -> None:
        """Stop accepting, let acknowledgements finish, end the processes; within 8 s."""
        self._socket.close()
        for child in self._children:
            child.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        for child in self._children:
            try:
                child.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.warning("receiver process %d did not end within %g s; killing it", child.pid, STOP_SECONDS)
                child.kill()
                child.wait()
            _close(child)


def start_receivers(settings: Settings, replica: Path | None = None) -> Receivers:
    """Bind the listening socket and start the receiver processes.

    Args:
        settings: The whole configuration; segments go to the spool in its data folder.
        replica: Where second copies of them go, before anything is acknowledged; None: nowhere.

    Raises:
        ConfigurationError: the address cannot be bound, or the TLS files cannot be used.
        Permanent: a receiver process does not start.
    """
    listener = settings.listener
    try:
        server_tls_context(listener)
    except OSError as error:
        raise ConfigurationError(f"listener.tls: {error}") from error
    listening = _bind(listener)
    make_private_folder(settings.data.spool)
    order = Order(
        listener=listener,
        spool=settings.data.spool,
        audit=settings.data.audit,
        min_free_bytes=int(settings.storage.min_free_gb * _GIB),
        socket=listening.fileno(),
        log_format=settings.log.format,
        replica=replica,
    )
    host, port = listening.getsockname()[:2]
    receivers = Receivers((host, port), order, listening)
    try:
        for _ in range(listener.processes):
            receivers._children.append(_start_child(order, listening))
        for child in receivers._children:
            _await_ready(child)
    except Permanent:
        receivers.stop()
        raise
    return receivers


def _bind(listener: Listener) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(listener.host, listener.port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except OSError as error:
        raise ConfigurationError(f"listener: cannot listen on {listener.host}:{listener.port}: {error}") from error


def _start_child(order: Order, listening: socket.socket) -> subprocess.Popen[bytes]:
    child = subprocess.Popen(
        [sys.executable, "-m", "daemon.receive.processes"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=(listening.fileno(),),
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "OPENBLAS_NUM_THREADS": "1",  # receivers compute nothing: numpy would start a thread for each core
        },
        start_new_session=True,  # Ctrl-C in the terminal reaches the parent alone, which then stops us in order
    )
    stdin, _ = _pipes(child)
    with contextlib.suppress(BrokenPipeError):  # it has ended, which is seen when it should be ready
        stdin.write(order.model_dump_json().encode() + b"\n")
        stdin.flush()
    return child


def _await_ready(child: subprocess.Popen[bytes]) -> None:
    _, stdout = _pipes(child)
    watchdog = threading.Timer(START_SECONDS, child.kill)  # a child that hangs must not hang the parent
    watchdog.start()
    answer = stdout.readline()
    watchdog.cancel()
    if answer != _READY:
        child.kill()
        raise Permanent(f"a receiver process did not start: exit status {child.wait()}; its reason is in the log")


def _pipes(child: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    if child.stdin is None or child.stdout is None:
        raise Permanent("a receiver process has no pipes")
    return child.stdin, child.stdout


def _close(child: subprocess.Popen[bytes]) -> None:
    for pipe in _pipes(child):
        with contextlib.suppress(BrokenPipeError):  # what it did not read
            pipe.close()


def run_receiver(order: Order, answers: IO[bytes]) -> None:
    """The life of one receiver process: serve until SIGTERM, finish what is open, leave."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ask_for_short_slices()
    writer = SpoolWriter(
        order.spool,
        min_free_bytes=order.min_free_bytes,
        reserve=-(-(order.listener.reserve_mb << 20) // SEGMENT_BYTES),
        replica=order.replica,
    )
    listening, refusals = socket.socket(fileno=order.socket), RefusalLog(AuditLog(order.audit))
    receiver = BlockingReceiver(order.listener, listening, writer, refusals)
    server = threading.Thread(target=receiver.serve, name="accept", daemon=True)
    server.start()
    threading.Thread(target=_leave_with_parent, name="parent", daemon=True).start()
    answers.write(_READY)
    stop.wait()
    receiver.stop_accepting()
    receiver.finish(FINISH_SECONDS)
    writer.close()


def _leave_with_parent() -> None:
    """End at once when the parent is gone: whatever is not durable was not acknowledged."""
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


def main() -> None:
    """Entry of a receiver process; the order comes as one line on standard input."""
    os.umask(0o077)
    line = b""
    while not line.endswith(b"\n"):  # unbuffered: what follows belongs to the thread that waits for the end
        line += os.read(sys.stdin.fileno(), 65536) or b"\n"
    order = Order.model_validate_json(line)
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    set_up_logging(order.log_format)
    run_receiver(order, answers)
    # Threads of aborted associations may still sleep; everything that counts is on the disk.
    logging.shutdown()
    os._exit(0)


if __name__ == "__main__":
    main()
