"""The files into which several processes count, as `prometheus_client` reads and writes them."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from prometheus_client import values

log = logging.getLogger(__name__)

SHARED_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""Variable by which `prometheus_client` finds the folder."""
FILE_BYTES = 1 << 16
"""Of each new file, as `prometheus_client` makes it."""


def take_room(*kinds: str) -> None:
    """Make this process's files, with their room on the disk; must be called before it counts anything.

    `prometheus_client` writes into memory that stands for a file without any room of its own: on a full disk the first
    count ends the process by SIGBUS. Where there is no room, this process counts for itself only.

    Args:
        kinds: Of its metrics, as in the files' names: `counter`, `histogram`.
    """
    if SHARED_FOLDER not in os.environ:
        return
    files = [Path(os.environ[SHARED_FOLDER]) / f"{kind}_{os.getpid()}.db" for kind in kinds]
    try:
        for path in files:
            with path.open("ab") as file:
                os.posix_fallocate(file.fileno(), 0, FILE_BYTES)
    except OSError as error:
        for path in files:
            path.unlink(missing_ok=True)
        values.ValueClass = values.MutexValue
        log.warning("what this process counts stands in no metric: %s: %s", files[0].parent, error.strerror)
