"""Received instances as DICOM files (PS3.10 7), written so that they are whole under their name or not there."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import struct
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import sqlalchemy as sa
from pydicom import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_partial
from pydicom.tag import Tag
from pydicom.uid import PYDICOM_IMPLEMENTATION_UID

from daemon.files import read_data, sync_folder

log = logging.getLogger(__name__)

MR_IMAGE = "1.2.840.10008.5.1.4.1.1.4"
UNDECODABLE = (
    InvalidDicomError,
    ValueError,
    LookupError,
    EOFError,
    NotImplementedError,
    AttributeError,
    TypeError,
    OverflowError,
    RecursionError,
    struct.error,
    zlib.error,
)
"""What pydicom raises on data sets that are not what they say."""
_SYNC_THREADS = 16
_HEADER_BYTES = 256 << 10
"""Of an instance, as much as is read for its header."""
_PREAMBLE = b"\0" * 128 + b"DICM"


class DamagedInstance(Exception):
    """The bytes of an instance in the spool no longer have their checksum."""


def part10_head(*, sop_class_uid: str, sop_uid: str, transfer_syntax_uid: str, calling_aet: str) -> bytes:
    """Preamble and file meta information (PS3.10 7.1); the encoded data set follows it unchanged.

    Put together here, as pydicom takes a millisecond for it and a study may have thousands of instances.
    """
    elements = b"".join(
        (
            struct.pack("<HH2s2xL", 0x0002, 0x0001, b"OB", 2) + b"\0\1",  # File Meta Information Version
            _element(0x0002, b"UI", sop_class_uid),
            _element(0x0003, b"UI", sop_uid),
            _element(0x0010, b"UI", transfer_syntax_uid),
            _element(0x0012, b"UI", PYDICOM_IMPLEMENTATION_UID),
            _element(0x0016, b"AE", calling_aet),
        )
    )
    return _PREAMBLE + struct.pack("<HH2sHL", 0x0002, 0x0000, b"UL", 4, len(elements)) + elements


def _element(number: int, vr: bytes, value: str) -> bytes:
    raw = value.encode("ascii", "replace")
    raw += (b"\0" if vr == b"UI" else b" ") * (len(raw) % 2)
    return struct.pack("<HH2sH", 0x0002, number, vr, len(raw)) + raw


def read_instance(spool: Path, row: sa.Row[tuple[object, ...]]) -> bytes:
    """The data set of an indexed instance, checked against its SHA-256.

    Raises:
        DamagedInstance: it is gone or has changed.
    """
    try:
        data = read_data(spool / row.segment, row.data_offset, row.data_length)
    except FileNotFoundError as error:
        raise DamagedInstance(f"segment {row.segment} is gone") from error
    except EOFError as error:
        raise DamagedInstance(str(error)) from error
    except OSError as error:
        if error.errno != errno.EIO:
            raise  # may pass: tried again later
        raise DamagedInstance(f"{row.segment} at {row.data_offset}: {error.strerror}") from error
    if hashlib.sha256(data).hexdigest() != row.sha256:
        raise DamagedInstance(f"{row.segment} at {row.data_offset}: the checksum differs")
    return data


def read_header(spool: Path, jobs: Path, row: sa.Row[tuple[object, ...]], keywords: Sequence[str]) -> Dataset:
    """Some attributes of an indexed instance, from the spool or from the job that it is in.

    What cannot be read is missing from the answer: nothing but patience depends on it.
    """
    try:
        file = _open_instance(spool, jobs, row)
        tags = [Tag(keyword) for keyword in keywords]
        last = max(tags)
        header = read_partial(file, stop_when=lambda tag, _vr, _length: tag > last, specific_tags=tags)
        for keyword in keywords:
            header.get(keyword)  # values are decoded only now
    except (OSError, *UNDECODABLE) as error:
        log.debug("header of %s not read: %s", row.sop_uid, type(error).__name__)
        return Dataset()
    return header


def _open_instance(spool: Path, jobs: Path, row: sa.Row[tuple[object, ...]]) -> BytesIO:
    """The beginning of an instance as a DICOM file."""
    if row.job_id is not None:
        with (jobs / row.job_id / "input" / row.file).open("rb") as stored:
            return BytesIO(stored.read(_HEADER_BYTES))
    head = part10_head(
        sop_class_uid=row.sop_class_uid,
        sop_uid=row.sop_uid,
        transfer_syntax_uid=row.transfer_syntax_uid,
        calling_aet=row.calling_aet,
    )
    return BytesIO(head + read_data(spool / row.segment, row.data_offset, min(row.data_length, _HEADER_BYTES)))


def write_instance(path: Path, row: sa.Row[tuple[object, ...]], data: bytes) -> None:
    """Write one instance as a DICOM file; `sync_files` makes it durable."""
    head = part10_head(
        sop_class_uid=row.sop_class_uid,
        sop_uid=row.sop_uid,
        transfer_syntax_uid=row.transfer_syntax_uid,
        calling_aet=row.calling_aet,
    )
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(head)
        file.write(data)


def sync_files(folder: Path) -> None:
    """Make every file of a folder, and their names, durable.

    Called once after all were written, and by several threads, so that the file system commits many together.
    """
    with ThreadPoolExecutor(_SYNC_THREADS) as pool:
        list(pool.map(_sync_file, folder.iterdir()))
    sync_folder(folder)


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
