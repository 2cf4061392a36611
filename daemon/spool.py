"""Durable received instances: append-only segment files from which every index entry can be rebuilt.

A segment is `<magic>` and then records. A record is a fixed header, a small JSON object (who sent what, when) and the
encoded data set exactly as it came. The header carries a CRC-32 of the data set, and one over itself and the JSON, so
that a torn or damaged record is known as such, wherever it lies. (A SHA-256 would cost the sender three times as long
to wait for; readers compute it, and the index keeps it.)

One process writes a segment. Its associations share the write and the fdatasync (group commit): the first of them
that finds no commit under way takes everything that waits and commits it. `append` returns only after the fdatasync
that covers the record. After a failed write or fdatasync the state of the file is unknown (the kernel may have
dropped the pages and cleared the error), so the segment is never written again and the next record opens a new one.

A receiver holds a lock on `<receiver>.lock` as long as it lives; the lock goes with the process, also by SIGKILL.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import mmap
import os
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

from daemon.errors import Retryable

LOGGER = logging.getLogger(__name__)

SEGMENT_MAGIC = b"BG3D spool 1\n"
RECORD_MAGIC = b"\xb6G3R"
_HEADER = struct.Struct("<4sB3xIQI")  # magic, kind, length of the JSON, length of the data set, its CRC-32
_CRC = struct.Struct("<I")  # over header and JSON
HEADER_BYTES = _HEADER.size + _CRC.size
MAX_META_BYTES = 1 << 20
SEGMENT_BYTES = 256 << 20
_IOV_MAX = 1024


class SpoolFull(Retryable):
    """No room for the instance (ENOSPC, EDQUOT, or less free space than configured): status 0xA700."""


class NotDurable(Retryable):
    """The write or the fdatasync failed: the instance must not be acknowledged."""


class RecordKind(IntEnum):
    """What a record says."""

    INSTANCE = 1
    ASSOCIATION_END = 2


@dataclass(frozen=True)
class InstanceMeta:
    """What is written beside the data set of one instance."""

    sop_class_uid: str
    sop_instance_uid: str
    study_uid: str
    series_uid: str
    transfer_syntax_uid: str
    """Of the accepted presentation context: how the data set is encoded."""
    association: str
    """Unique name of the association that brought it."""
    calling_aet: str
    peer: str
    """Network address of the sender."""
    received: float
    """POSIX time, s."""


@dataclass(frozen=True)
class Record:
    """One record of a segment; offsets and lengths in bytes."""

    kind: RecordKind
    meta: dict[str, Any]
    offset: int
    data_offset: int
    data_length: int
    sha256: str
    """Of the data set."""

    @property
    def end(self) -> int:
        """Where the next record begins."""
        return self.data_offset + self.data_length


@dataclass(frozen=True)
class Damage:
    """A stretch of a segment that holds no sound record."""

    offset: int
    end: int
    reason: str


Buffer = bytes | bytearray | memoryview


@dataclass(eq=False)
class _Ticket:
    """One record on its way to the disk."""

    buffers: list[Buffer]
    done: bool = False
    error: OSError | None = None


def encode_record(kind: RecordKind, meta: dict[str, Any], data: Sequence[Buffer] = ()) -> list[Buffer]:
    """The buffers of one record, data set last, nothing copied."""
    text = json.dumps(meta, separators=(",", ":")).encode()
    checksum = 0
    for part in data:
        checksum = zlib.crc32(part, checksum)
    header = _HEADER.pack(RECORD_MAGIC, kind, len(text), sum(len(part) for part in data), checksum)
    crc = _CRC.pack(zlib.crc32(text, zlib.crc32(header)))
    return [header + crc + text, *data]


@dataclass(eq=False)
class SpoolWriter:
    """Writes the segments of one receiver process; safe to use from all its threads.

    Args:
        folder: The spool; made private to the user where it is missing.
        min_free_bytes: Below this much free space `append` refuses.
        segment_bytes: A segment that reached this size is followed by a new one.
        sync: Makes the file behind a descriptor durable.
    """

    folder: Path
    min_free_bytes: int = 0
    segment_bytes: int = SEGMENT_BYTES
    sync: Callable[[int], None] = os.fdatasync
    receiver: str = ""
    _lock: threading.Condition = field(default_factory=threading.Condition, init=False)
    _waiting: list[_Ticket] = field(default_factory=list, init=False)
    _closed: bool = field(default=False, init=False)
    _committing: bool = field(default=False, init=False)
    _segment: int = field(default=-1, init=False)
    _segment_size: int = field(default=0, init=False)
    _sequence: int = field(default=0, init=False)
    _lock_file: int = field(default=-1, init=False)

    def __post_init__(self) -> None:
        self.receiver = self.receiver or f"{time.time_ns():020d}-{os.getpid()}"
        make_private_folder(self.folder)
        self._lock_file = _take_lock(self.folder, self.receiver)

    def append(self, meta: InstanceMeta, data: Sequence[Buffer]) -> None:
        """Write one instance; on return it is durable.

        Raises:
            SpoolFull: there is not enough room; nothing is acknowledged.
            NotDurable: the disk failed; nothing is acknowledged.
        """
        free = free_bytes(self.folder)
        if free < self.min_free_bytes:
            raise SpoolFull(f"{self.folder}: {free} bytes free, expected at least {self.min_free_bytes}")
        ticket = _Ticket(encode_record(RecordKind.INSTANCE, dict(vars(meta)), data))
        self._submit(ticket)
        if ticket.error is None:
            return
        if ticket.error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise SpoolFull(f"{self.folder}: {ticket.error.strerror}") from ticket.error
        raise NotDurable(f"{self.folder}: {ticket.error}") from ticket.error

    def end_association(self, association: str) -> None:
        """Note that an association is over, so that its studies need not wait for it any longer.

        A failure is only logged: nothing is acknowledged by this record, and a study does not wait for ever.
        """
        ticket = _Ticket(encode_record(RecordKind.ASSOCIATION_END, {"association": association, "ended": time.time()}))
        self._submit(ticket)
        if ticket.error is not None:
            LOGGER.warning("the end of association %s could not be noted: %s", association, ticket.error)

    def close(self) -> None:
        """Close the segment and give the receiver's lock back."""
        with self._lock:
            self._lock.wait_for(lambda: not self._committing)
            self._closed = True
            self._drop_segment()
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
        if self._segment < 0 or self._segment_size >= self.segment_bytes:
            self._drop_segment()
            self._open_segment()
        try:
            self._segment_size += _write_all(self._segment, [part for ticket in batch for part in ticket.buffers])
            self.sync(self._segment)
        except OSError:
            self._drop_segment()
            raise

    def _open_segment(self) -> None:
        self._sequence += 1
        path = self.folder / f"{self.receiver}-{self._sequence:06d}.seg"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            _write_all(descriptor, [SEGMENT_MAGIC])
            self.sync(descriptor)
            sync_folder(self.folder)
        except OSError:
            os.close(descriptor)
            raise
        self._segment, self._segment_size = descriptor, len(SEGMENT_MAGIC)

    def _drop_segment(self) -> None:
        if self._segment >= 0:
            os.close(self._segment)
            self._segment = -1


def _write_all(descriptor: int, buffers: list[Buffer]) -> int:
    """Append the buffers, also where the kernel takes them in pieces; bytes written."""
    left = [memoryview(part) for part in buffers]
    total = 0
    while left:
        written = os.writev(descriptor, left[:_IOV_MAX])
        total += written
        while left and written >= len(left[0]):
            written -= len(left.pop(0))
        if written:
            left[0] = left[0][written:]
    return total


def read_records(path: Path, start: int = 0, *, final: bool) -> Iterator[Record | Damage]:
    """Records of a segment from byte `start` on, each checked against its checksums.

    Args:
        path: The segment.
        start: A record boundary, or 0.
        final: Nobody writes the segment any more, so that an incomplete record at the end is damage; otherwise it is
            one that is still being written, and reading stops before it.
    """
    size = path.stat().st_size
    if size == 0:
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as view:
        position = start
        if position == 0:
            if view[: len(SEGMENT_MAGIC)] != SEGMENT_MAGIC:
                if final:
                    yield Damage(0, size, "not a spool segment")
                return
            position = len(SEGMENT_MAGIC)
        while position < size:
            found = _read_one(view, position)
            if isinstance(found, Damage):
                if not final:
                    return
                found = _up_to_next_record(view, found)
            yield found
            position = found.end


def _read_one(view: mmap.mmap, position: int) -> Record | Damage:
    size = len(view)
    if position + HEADER_BYTES > size:
        return Damage(position, size, "ends within a record header")
    header = view[position : position + _HEADER.size]
    magic, kind, meta_length, data_length, checksum = _HEADER.unpack(header)
    if magic != RECORD_MAGIC or meta_length > MAX_META_BYTES:
        return Damage(position, position + 1, "no record header")
    text_at = position + HEADER_BYTES
    data_at = text_at + meta_length
    text = view[text_at:data_at]
    (crc,) = _CRC.unpack(view[position + _HEADER.size : text_at])
    if len(text) < meta_length or zlib.crc32(text, zlib.crc32(header)) != crc:
        return Damage(position, position + 1, "record header or its description damaged")
    if data_at + data_length > size:
        return Damage(position, position + 1, "ends within a data set")
    with memoryview(view)[data_at : data_at + data_length] as data:
        if zlib.crc32(data) != checksum:
            return Damage(position, data_at + data_length, "data set damaged")
        digest = hashlib.sha256(data).hexdigest()
    if kind not in list(RecordKind):
        return Damage(position, data_at + data_length, f"record of unknown kind {kind}")
    return Record(RecordKind(kind), json.loads(text), position, data_at, data_length, digest)


def _up_to_next_record(view: mmap.mmap, damage: Damage) -> Damage:
    """Stretch the damage up to the next place that looks like a record."""
    following = view.find(RECORD_MAGIC, damage.end)
    return Damage(damage.offset, following if following >= 0 else len(view), damage.reason)


def read_data(path: Path, offset: int, length: int) -> bytes:
    """The bytes of one data set.

    Raises:
        OSError: the segment cannot be read.
        EOFError: it is too short.
    """
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read(length)
    if len(data) != length:
        raise EOFError(f"{path.name}: expected {length} bytes at {offset}, got {len(data)}")
    return data


def is_alive(folder: Path, receiver: str) -> bool:
    """Whether the receiver process still holds its lock."""
    try:
        descriptor = os.open(folder / f"{receiver}.lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def segment_receiver(segment: str) -> str:
    """The receiver that wrote a segment, from the segment's file name."""
    return segment.rsplit("-", 1)[0]


def free_bytes(folder: Path) -> int:
    """Free space for this user on the file system of `folder`, bytes."""
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


def make_private_folder(folder: Path) -> None:
    """Make a folder that only this user can enter, durably."""
    if not folder.is_dir():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        sync_folder(folder.parent)
    folder.chmod(0o700)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _take_lock(folder: Path, receiver: str) -> int:
    """Create the receiver's lock file; it gets its name only once it is locked."""
    draft = folder / f".{receiver}.lock"
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    draft.rename(folder / f"{receiver}.lock")
    return descriptor
