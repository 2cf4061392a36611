"""The audit log: who sent what, what was sent where, who did what on the page; appended to, never rewritten.

One JSON object a line, in a file for each month. Each line carries the SHA-256 of the line before it, so that a line
that is changed or taken out is noticed (`check_chain`). UIDs stand in it, names and birth dates do not. Lines are
written and synced under a lock on the file: several processes may write.
"""

from __future__ import annotations

import datetime
import errno
import fcntl
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daemon.errors import DaemonError
from daemon.files import make_private

FIRST = "0" * 64
"""What the first line of a file names as the one before it."""

TAIL_BYTES = 1 << 16
"""Read from the end to find the last line; longer than any line."""


@dataclass(frozen=True)
class AuditLog:
    """Writes to `<folder>/audit-YYYY-MM.jsonl`."""

    folder: Path

    def write(self, event: str, *, durably: bool = True, **facts: Any) -> None:
        """Append one line.

        Args:
            event: What happened: received, refused, sent, not_sent, retried, cancelled, purged, reviewed, ...
            durably: Wait until it is on the disk; else it is only in the order of the lines.
            facts: Who and what; plain values, free of names of patients.
        """
        time = datetime.datetime.now(datetime.UTC)
        make_private(self.folder)
        path = self.folder / f"audit-{time:%Y-%m}.jsonl"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            entry = {"time": time.isoformat(timespec="milliseconds"), "event": event, **facts}
            line = json.dumps({**entry, "previous": _digest_of_last(descriptor)}, ensure_ascii=False, default=str)
            _write_whole(descriptor, line.encode() + b"\n")
            if durably:
                os.fdatasync(descriptor)
        finally:
            os.close(descriptor)


def _write_whole(descriptor: int, line: bytes) -> None:
    """All of a line or nothing of it, as on a disk that has room for half of it the next one would not follow.

    Raises:
        OSError: there is no room.
    """
    before = os.fstat(descriptor).st_size
    if os.write(descriptor, line) != len(line):
        os.ftruncate(descriptor, before)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def check_chain(path: Path) -> int:
    """Check that no line of a file was changed or taken out.

    Returns:
        How many lines it has.

    Raises:
        DaemonError: the number of the first line that does not follow from the one before it.
    """
    previous, number = FIRST, 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if json.loads(line)["previous"] != previous:
                raise DaemonError(f"{path}: line {number} does not follow from line {number - 1}")
            previous = hashlib.sha256(line.rstrip(b"\n")).hexdigest()
    return number


def _digest_of_last(descriptor: int) -> str:
    size = os.fstat(descriptor).st_size
    if size == 0:
        return FIRST
    tail = os.pread(descriptor, TAIL_BYTES, max(0, size - TAIL_BYTES))
    return hashlib.sha256(tail.rstrip(b"\n").rsplit(b"\n", 1)[-1]).hexdigest()
