"""Runs the receiver in a child that is forked, not started, so that it can be killed often; or with a broken disk.

`python ingest_receiver.py SPOOL [--no-sync] [--reserve]` prints the port and receives until its input ends.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
from pathlib import Path

from daemon.config.sections import Listener
from daemon.receive.association import BlockingReceiver
from daemon.spool.writer import SpoolWriter

SMALL_RESERVE: dict[str, object] = {"reserve": 2, "segment_bytes": 1 << 20}
"""Room that is used up and prepared again all the time."""


def bind() -> socket.socket:
    """A listening socket on a free port of the loopback address."""
    return socket.create_server(("127.0.0.1", 0), backlog=64)


def receive(listening: socket.socket, spool: Path, **writer: object) -> None:
    """Receive for ever."""
    listener = Listener(host="127.0.0.1", port=0, processes=2)
    BlockingReceiver(listener, listening.dup(), SpoolWriter(spool, **writer)).serve()  # type: ignore[arg-type]


def fork_receiver(listening: socket.socket, spool: Path, replica: Path | None = None) -> int:
    """The pid of a new receiver process on the socket; with second copies in `replica`, where one is given."""
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(KeyboardInterrupt):
            receive(listening, spool, replica=replica, **SMALL_RESERVE)
        os._exit(0)
    return pid


def main() -> None:
    """See above."""
    listening = bind()
    sys.stdout.write(f"{listening.getsockname()[1]}\n")
    sys.stdout.flush()
    writer: dict[str, object] = {}
    if "--no-sync" in sys.argv:
        writer["sync"] = lambda _: None
    if "--reserve" in sys.argv:
        writer |= SMALL_RESERVE
    threading.Thread(target=receive, args=(listening, Path(sys.argv[1])), kwargs=writer, daemon=True).start()
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main()
