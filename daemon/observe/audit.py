"""The audit log: who sent what, what was sent where, who did what on the page; appended to, never rewritten.

One JSON object a line, in a file for each month. Each line carries the SHA-256 of the line before it, so that a line
that is changed or taken out is noticed (`check_chain`). UIDs stand in it, names and birth dates do not. Lines are
written and synced under a lock on the file: several processes may write.

What must not happen unseen is written before it happens, and does not happen where that fails (`write`). What has
happened is noted (`note`): a full disk cannot undo it, so the line waits for room, and stands in the service's log.
"""

from __future__ import annotations

import datetime
import errno
import fcntl
import hashlib
import json
import logging
import os
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from daemon.errors import DaemonError
from daemon.files import make_private
from daemon.observe.logs import tag

log = logging.getLogger(__name__)

FIRST = "0" * 64
"""What the first line of a file names as the one before it."""

TAIL_BYTES = 1 << 16
"""Read from the end to find the last line; longer than any line."""


RETRY_SECONDS = 5.0
"""Lines that wait for room are tried again so often."""

MOST_WAITING = 10_000
"""Of more lines than these there is nothing but the service's log."""


class NotAudited(DaemonError):
    """What must not happen unseen does not happen."""

    http_status = 503


@dataclass(eq=False)
class AuditLog:
    """Writes to `<folder>/audit-YYYY-MM.jsonl`; safe to use from several threads."""

    folder: Path
    _waiting: deque[tuple[dict[str, Any], bool]] = field(default_factory=deque)
    """Lines that could not be written yet, the oldest first, and whether each is to be durable."""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _retries: threading.Thread | None = None

    def write(self, event: str, *, durably: bool = True, **facts: Any) -> None:
        """Append one line about what is to happen next.

        Args:
            event: What happens: downloaded, reviews_exported, ...
            durably: Wait until it is on the disk; else it is only in the order of the lines.
            facts: Who and what; plain values, free of names of patients.

        Raises:
            NotAudited: it could not be written; what it says must not happen.
        """
        with self._lock:
            try:
                self._write_waiting()
                self._append(_entry(event, facts), durably=durably)
            except OSError as error:
                raise NotAudited(f"the audit log cannot be written ({error}): nothing is given out before") from error

    def note(self, event: str, *, durably: bool = True, **facts: Any) -> None:
        """Append one line about what has happened; where it cannot be written it waits, and is never an error.

        Args:
            event: What happened: received, refused, sent, not_sent, retried, cancelled, purged, reviewed, ...
            durably: As for `write`.
            facts: As for `write`.
        """
        entry = _entry(event, facts)
        with self._lock:
            try:
                self._write_waiting()
                self._append(entry, durably=durably)
            except OSError as error:
                self._let_wait(entry, durably, error)

    def _let_wait(self, entry: dict[str, Any], durably: bool, error: OSError) -> None:
        line = json.dumps({name: _for_a_log(name, value) for name, value in entry.items()}, default=str)
        if len(self._waiting) >= MOST_WAITING:
            log.error("audit log: %s; too many lines wait already; not written: %s", error, line)
            return
        log.error("audit log: %s; tried again while this process runs: %s", error, line)
        self._waiting.append((entry, durably))
        if self._retries is None:
            self._retries = threading.Thread(target=self._retry, name="audit", daemon=True)
            self._retries.start()

    def _retry(self) -> None:
        """Until nothing waits any more."""
        while True:
            time.sleep(RETRY_SECONDS)
            with self._lock:
                try:
                    self._write_waiting()
                except OSError:
                    continue
                self._retries = None
                return

    def _write_waiting(self) -> None:
        """What waits, the oldest first.

        Raises:
            OSError: it must wait on.
        """
        waited = len(self._waiting)
        while self._waiting:
            entry, durably = self._waiting[0]
            self._append(entry, durably=durably)
            self._waiting.popleft()
        if waited:
            log.warning("audit log: %d lines that waited are written", waited)

    def _append(self, entry: dict[str, Any], *, durably: bool) -> None:
        make_private(self.folder)
        path = self.folder / f"audit-{datetime.datetime.now(datetime.UTC):%Y-%m}.jsonl"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            line = json.dumps({**entry, "previous": _digest_of_last(descriptor)}, ensure_ascii=False, default=str)
            before = os.fstat(descriptor).st_size
            _write_whole(descriptor, line.encode("utf-8", "backslashreplace") + b"\n", before)
            if durably:
                _sync(descriptor, before)
        finally:
            os.close(descriptor)


def _entry(event: str, facts: dict[str, Any]) -> dict[str, Any]:
    time_now = datetime.datetime.now(datetime.UTC)
    return {"time": time_now.isoformat(timespec="milliseconds"), "event": event, **facts}


def _for_a_log(name: str, value: Any) -> Any:
    """UIDs as the service's log may hold them."""
    if name.endswith("_uids"):
        return [tag(str(uid)) for uid in value]
    return tag(str(value)) if name.endswith("_uid") else value


def _write_whole(descriptor: int, line: bytes, before: int) -> None:
    """All of a line or nothing of it, as on a disk that has room for half of it the next one would not follow.

    Raises:
        OSError: there is no room.
    """
    if os.write(descriptor, line) != len(line):
        os.ftruncate(descriptor, before)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _sync(descriptor: int, before: int) -> None:
    """Make a line durable, or take it back, as it will be written again; under the lock it is the last one.

    Raises:
        OSError: it could not be made durable.
    """
    try:
        os.fdatasync(descriptor)
    except OSError:
        os.ftruncate(descriptor, before)
        raise


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
