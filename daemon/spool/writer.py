"""The durable spool: append-only segment files from which every index entry can be rebuilt.

One process writes a segment. Its associations share the write and the fdatasync (group commit): the first of them
that finds no commit under way takes everything that waits and commits it. `append` returns only after the fdatasync
that covers the record. After a failed write or fdatasync the state of the file is unknown (the kernel may have
dropped the pages and cleared the error), so the segment is never written again and the next record opens a new one.

A receiver holds a lock on `<receiver>.lock` as long as it lives; the lock goes with the process, also by SIGKILL.
What a segment holds is said in `segment`, how room is prepared in `reserve`.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from daemon.errors import Retryable
from daemon.files import free_bytes, make_private_folder, sync_folder, write_all
from daemon.spool.locks import take_lock
from daemon.spool.replica import Replica
from daemon.spool.reserve import Reserve
from daemon.spool.segment import InstanceMeta, Part, RecordKind, encode_record, segment_head

log = logging.getLogger(__name__)

SEGMENT_BYTES = 64 << 20
RETRY_SECONDS = 2.0
"""Between attempts to note what the disk did not take."""


class SpoolFull(Retryable):
    """No room for the instance (ENOSPC, EDQUOT, or less free space than configured): status 0xA700."""


class NotDurable(Retryable):
    """The write or the fdatasync failed: the instance must not be acknowledged."""


@dataclass(eq=False)
class _Ticket:
    """One record on its way to the disk."""

    parts: list[Part]
    done: bool = False
    error: OSError | None = None


@dataclass(eq=False)
class SpoolWriter:
    """Writes the segments of one receiver process; safe to use from all its threads.

    Args:
        folder: The spool; made private to the user where it is missing.
        min_free_bytes: Below this much free space `append` refuses.
        segment_bytes: A segment that reached this size is followed by a new one.
        sync: Makes the file behind a descriptor durable.
        receiver: Name of the receiver; made of time and process id where it is empty.
        reserve: Segments that are kept prepared.
        replica: Folder in which each segment is written a second time, on another disk; None: it is not.
    """

    folder: Path
    min_free_bytes: int = 0
    segment_bytes: int = SEGMENT_BYTES
    sync: Callable[[int], None] = os.fdatasync
    receiver: str = ""
    reserve: int = 0
    replica: Path | None = None
    _lock: threading.Condition = field(default_factory=threading.Condition, init=False)
    _waiting: list[_Ticket] = field(default_factory=list, init=False)
    _closed: bool = field(default=False, init=False)
    _committing: bool = field(default=False, init=False)
    _segment: int = field(default=-1, init=False)
    _segment_size: int = field(default=0, init=False)
    _sequence: int = field(default=0, init=False)
    _lock_file: int = field(default=-1, init=False)
    _reserve: Reserve | None = field(default=None, init=False)
    _is_prepared: bool = field(default=False, init=False)
    _replica: Replica | None = field(default=None, init=False)
    _over: threading.Event = field(default_factory=threading.Event, init=False)
    _not_noted: list[list[Part]] = field(default_factory=list, init=False)
    """Ends of associations that the disk did not take yet, as records."""
    _noting: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.receiver = self.receiver or f"{time.time_ns():020d}-{os.getpid()}"
        make_private_folder(self.folder)
        self._lock_file = take_lock(self.folder, self.receiver)
        if self.reserve:
            self._reserve = Reserve(
                self.folder,
                self.receiver,
                count=self.reserve,
                segment_bytes=self.segment_bytes,
                min_free_bytes=self.min_free_bytes,
            )

    def append(self, meta: InstanceMeta, data: Sequence[Part], checksum: int | None = None) -> None:
        """Write one instance; on return it is durable.

        Args:
            meta: What is written beside it.
            data: The encoded data set, in pieces.
            checksum: Its CRC-32 where the caller knows it.

        Raises:
            SpoolFull: there is not enough room; nothing is acknowledged.
            NotDurable: the disk failed; nothing is acknowledged.
        """
        free = free_bytes(self.folder)
        if free < self.min_free_bytes:
            raise SpoolFull(f"{self.folder}: {free} bytes free, expected at least {self.min_free_bytes}")
        ticket = _Ticket(encode_record(RecordKind.INSTANCE, dict(vars(meta)), data, checksum))
        self._submit(ticket)
        if ticket.error is None:
            return
        if ticket.error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise SpoolFull(f"{self.folder}: {ticket.error.strerror}") from ticket.error
        raise NotDurable(f"{self.folder}: {ticket.error}") from ticket.error

    def end_association(self, association: str) -> None:
        """Note that an association is over, so that its studies need not wait for it any longer.

        What the disk does not take is tried again until it does: nobody sends it a second time. Where this process ends
        before, its lock says that all its associations are over.
        """
        ticket = _Ticket(encode_record(RecordKind.ASSOCIATION_END, {"association": association, "ended": time.time()}))
        self._submit(ticket)
        if ticket.error is None:
            return
        log.warning("the end of association %s could not be noted yet: %s", association, ticket.error)
        with self._lock:
            self._not_noted.append(ticket.parts)
            if not self._noting:
                self._noting = True
                threading.Thread(target=self._note_late, name="late ends", daemon=True).start()

    def _note_late(self) -> None:
        while not self._over.wait(RETRY_SECONDS):
            ticket = _Ticket(self._not_noted[0])
            self._submit(ticket)
            with self._lock:
                if ticket.error is None:
                    del self._not_noted[0]
                if not self._not_noted:
                    self._noting = False
                    return

    def close(self) -> None:
        """Close the segment and give the receiver's lock back."""
        self._over.set()
        with self._lock:
            self._lock.wait_for(lambda: not self._committing)
            self._closed = True
            self._end_segment()
            if self._reserve is not None:
                self._reserve.close()
                self._reserve = None
            if self._lock_file >= 0:
                os.close(self._lock_file)
                self._lock_file = -1

    def _submit(self, ticket: _Ticket) -> None:
        with self._lock:
            self._waiting.append(ticket)
            self._lock.wait_for(lambda: ticket.done or not self._committing)
            if ticket.done:
                return
            self._committing = True
            batch, self._waiting = self._waiting, []
        error: OSError | None = OSError(errno.EIO, "the commit was broken off")
        try:
            self._commit(batch)
            error = None
        except OSError as failure:
            error = failure
        finally:
            with self._lock:
                for member in batch:
                    member.done, member.error = True, error
                self._committing = False
                self._lock.notify_all()

    def _commit(self, batch: list[_Ticket]) -> None:
        """Write and sync a batch; any failure poisons the segment for good."""
        if self._closed:
            raise OSError(errno.ESHUTDOWN, "the receiver is shutting down")
        if self._reserve is not None:
            self._reserve.last_commit = time.monotonic()
        if self._needs_another_segment():
            self._end_segment()
            self._open_segment()
        try:
            parts = [part for ticket in batch for part in ticket.parts]
            copied = self._replica.write(parts, self._segment_size) if self._replica is not None else None
            try:
                self._segment_size += write_all(self._segment, parts, self._segment_size)
                self.sync(self._segment)
            finally:
                if copied is not None:
                    copied.result()
        except OSError:
            self._drop_segment()
            raise

    def _needs_another_segment(self) -> bool:
        """There is none, it is full, or room was prepared in the meantime."""
        if self._segment < 0 or self._segment_size >= self.segment_bytes:
            return True
        return not self._is_prepared and self._reserve is not None and self._reserve.ready > 0

    def _open_segment(self) -> None:
        """A new segment, its name durable."""
        self._sequence += 1
        path = self.folder / f"{self.receiver}-{self._sequence:06d}.seg"
        spare = self._reserve.take() if self._reserve is not None else None
        descriptor = self._new_file(path) if spare is None else os.open(spare, os.O_WRONLY | os.O_CLOEXEC)
        try:
            if spare is not None:
                spare.rename(path)
            sync_folder(self.folder)
        except OSError:
            os.close(descriptor)
            raise
        if self.replica is not None:
            try:
                self._replica = Replica(self.replica / path.name, self.sync)
            except OSError:
                os.close(descriptor)
                path.unlink()
                raise
        self._segment, self._segment_size = descriptor, len(segment_head())
        self._is_prepared = spare is not None

    def _new_file(self, path: Path) -> int:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            write_all(descriptor, [segment_head()], 0)
            self.sync(descriptor)
        except OSError:
            os.close(descriptor)
            path.unlink()  # on a full disk every attempt would leave one
            raise
        return descriptor

    def _end_segment(self) -> None:
        """Close a sound segment and give back the room that it did not use."""
        if self._segment >= 0:
            try:
                os.truncate(self._segment, self._segment_size)
            except OSError as error:  # the room is given back with the segment
                log.warning("a segment could not be shortened: %s", error)
        self._drop_segment()

    def _drop_segment(self) -> None:
        """Close it, also a poisoned one, which must not be touched any more."""
        if self._segment >= 0:
            os.close(self._segment)
            self._segment = -1
        if self._replica is not None:
            self._replica.close()
            self._replica = None
