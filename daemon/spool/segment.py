"""What a segment of the spool holds, and how it is read back.

A segment is a magic line and then records, each at a multiple of 4096 bytes with zeros in between. A record is a fixed
header, a small JSON object (who sent what, when) and the encoded data set exactly as it came. The header carries a
CRC-32 of the data set, and one over itself and the JSON, so that a torn or damaged record is known as such, wherever
it lies. (A SHA-256 would cost the sender three times as long to wait for; readers compute it, and the index keeps it.)

Records begin on blocks of their own so that a write never touches a block that holds acknowledged data. Zeros up to
the end are room that was prepared and not used.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from daemon.files import Buffer, FileBytes

SEGMENT_MAGIC = b"BG3D spool\n"
RECORD_MAGIC = b"\xb6G3R"
BLOCK_BYTES = 4096
_HEADER = struct.Struct("<4sB3xIQI")
"""Magic, kind, length of the JSON, length of the data set, its CRC-32."""
_CRC = struct.Struct("<I")
"""CRC-32 over header and JSON."""
HEADER_BYTES = _HEADER.size + _CRC.size
MAX_META_BYTES = 1 << 20
_READ_BYTES = 1 << 20
Part = Buffer | FileBytes


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
        """Where its data set ends; the next record begins with the next block."""
        return self.data_offset + self.data_length


@dataclass(frozen=True)
class Damage:
    """A stretch of a segment that holds no sound record."""

    offset: int
    end: int
    reason: str


def segment_head() -> bytes:
    """The first block of a segment."""
    return SEGMENT_MAGIC.ljust(BLOCK_BYTES, b"\0")


def pieces_of(data: Sequence[Part]) -> Iterator[Buffer]:
    """A data set in pieces that fit into memory."""
    for part in data:
        if isinstance(part, FileBytes):
            yield from part.pieces()
        else:
            yield part


def encode_record(
    kind: RecordKind, meta: dict[str, Any], data: Sequence[Part] = (), checksum: int | None = None
) -> list[Part]:
    """The buffers of one record in whole blocks; the data set is not copied.

    Args:
        kind: What it says.
        meta: Its JSON object.
        data: The data set, in pieces.
        checksum: CRC-32 of the data set where the caller knows it.
    """
    text = json.dumps(meta, separators=(",", ":")).encode()
    if checksum is None:
        checksum = functools.reduce(lambda so_far, piece: zlib.crc32(piece, so_far), pieces_of(data), 0)
    length = sum(len(part) for part in data)
    header = _HEADER.pack(RECORD_MAGIC, kind, len(text), length, checksum)
    crc = _CRC.pack(zlib.crc32(text, zlib.crc32(header)))
    padding = bytes(-(HEADER_BYTES + len(text) + length) % BLOCK_BYTES)
    return [header + crc + text, *data, padding]


def read_records(path: Path, start: int = 0, *, final: bool) -> Iterator[Record | Damage]:
    """Records of a segment from byte `start` on, each checked against its checksums.

    Read with ordinary calls, not mapped into memory: there, a sector that the disk cannot read would be a signal that
    ends the process.

    Args:
        path: The segment.
        start: Where the last record or damage ended that was read before, or 0.
        final: Nobody writes the segment any more, so that an incomplete record at the end is damage; otherwise it is
            one that is still being written, and reading stops before it.
    """
    with path.open("rb", buffering=0) as file:
        descriptor = file.fileno()
        size = os.fstat(descriptor).st_size
        if size == 0:
            return
        if os.pread(descriptor, len(SEGMENT_MAGIC), 0) != SEGMENT_MAGIC:
            if final:
                yield Damage(start, size, "not a spool segment")
            return
        position = _aligned(max(start, len(SEGMENT_MAGIC)))
        while position < size:
            found = _read_one(descriptor, position, size)
            if isinstance(found, Damage):
                damage = _up_to_next_record(descriptor, found, size) if final else None
                if damage is None:
                    return
                found = damage
            yield found
            position = _aligned(found.end)


def _aligned(position: int) -> int:
    """The next place at which a record may begin."""
    return -(-position // BLOCK_BYTES) * BLOCK_BYTES


def _read_one(descriptor: int, position: int, size: int) -> Record | Damage:
    try:
        return _read_sound(descriptor, position, size)
    except OSError as error:  # a sector that cannot be read
        return Damage(position, position, f"cannot be read: {error.strerror}")


def _read_sound(descriptor: int, position: int, size: int) -> Record | Damage:
    block = os.pread(descriptor, BLOCK_BYTES, position)
    if len(block) < HEADER_BYTES:
        return Damage(position, position, "ends within a record header")
    magic, kind, meta_length, data_length, checksum = _HEADER.unpack_from(block)
    if magic != RECORD_MAGIC or meta_length > MAX_META_BYTES:
        return Damage(position, position, "no record header")
    data_at = position + HEADER_BYTES + meta_length
    text = block[HEADER_BYTES : HEADER_BYTES + meta_length]
    if len(text) < meta_length:
        text = os.pread(descriptor, meta_length, position + HEADER_BYTES)
    (crc,) = _CRC.unpack_from(block, _HEADER.size)
    if len(text) < meta_length or zlib.crc32(text, zlib.crc32(block[: _HEADER.size])) != crc:
        return Damage(position, position, "record header or its description damaged")
    if data_at + data_length > size:
        return Damage(position, position, "ends within a data set")
    found, digest = _digests(descriptor, data_at, data_length)
    if found != checksum:
        # The lengths are sound; the data may be torn where it was the last that was written.
        return Damage(position, data_at + data_length, "data set damaged")
    if kind not in list(RecordKind):
        return Damage(position, data_at + data_length, f"record of unknown kind {kind}")
    return Record(RecordKind(kind), json.loads(text), position, data_at, data_length, digest)


def _digests(descriptor: int, offset: int, length: int) -> tuple[int, str]:
    """CRC-32 and SHA-256 of a stretch."""
    checksum, sha256, end = 0, hashlib.sha256(), offset + length
    while offset < end:
        piece = os.pread(descriptor, min(_READ_BYTES, end - offset), offset)
        if not piece:
            break
        checksum = zlib.crc32(piece, checksum)
        sha256.update(piece)
        offset += len(piece)
    return checksum, sha256.hexdigest()


def _up_to_next_record(descriptor: int, damage: Damage, size: int) -> Damage | None:
    """Stretch the damage up to the next record, or to the last byte that is not zero; None where there is none.

    Within a damaged data set whose lengths are sound no record is looked for: its bytes may look like one.
    """
    last = damage.offset
    if damage.end > damage.offset:
        return Damage(damage.offset, min(damage.end, size), damage.reason)
    for block_at in range(damage.offset, size, BLOCK_BYTES):
        try:
            block = os.pread(descriptor, BLOCK_BYTES, block_at)
        except OSError:
            last = min(block_at + BLOCK_BYTES, size)  # cannot be read: not known to be empty
            continue
        if block_at > damage.offset and block.startswith(RECORD_MAGIC):
            return Damage(damage.offset, block_at, damage.reason)
        used = len(block.rstrip(b"\0"))
        last = block_at + used if used else last
    return Damage(damage.offset, last, damage.reason) if last > damage.offset else None
