"""Received instances as DICOM files (PS3.10 7), written so that they are whole under their name or not there."""

from __future__ import annotations

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
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.errors import InvalidDicomError
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import UID

from daemon.spool import read_data, sync_folder

LOGGER = logging.getLogger(__name__)

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
_PREAMBLE = b"\0" * 128 + b"DICM"


class DamagedInstance(Exception):
    """The bytes of an instance in the spool no longer have their checksum."""


def part10_head(*, sop_class_uid: str, sop_uid: str, transfer_syntax_uid: str, calling_aet: str) -> bytes:
    """Preamble and file meta information; the encoded data set follows it unchanged."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(sop_class_uid)
    meta.MediaStorageSOPInstanceUID = UID(sop_uid)
    meta.TransferSyntaxUID = UID(transfer_syntax_uid)
    meta.SourceApplicationEntityTitle = calling_aet
    buffer = BytesIO()
    write_file_meta_info(buffer, meta, enforce_standard=True)
    return _PREAMBLE + buffer.getvalue()


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
    if hashlib.sha256(data).hexdigest() != row.sha256:
        raise DamagedInstance(f"{row.segment} at {row.data_offset}: the checksum differs")
    return data


def read_header(spool: Path, jobs: Path, row: sa.Row[tuple[object, ...]], keywords: Sequence[str]) -> Dataset:
    """Some attributes of an indexed instance, from the spool or from the job that it is in.

    What cannot be read is missing from the answer: nothing but patience depends on it.
    """
    try:
        if row.job_id is not None:
            return dcmread(
                jobs / row.job_id / "input" / row.file, stop_before_pixels=True, specific_tags=list(keywords)
            )
        head = part10_head(
            sop_class_uid=row.sop_class_uid,
            sop_uid=row.sop_uid,
            transfer_syntax_uid=row.transfer_syntax_uid,
            calling_aet=row.calling_aet,
        )
        data = read_data(spool / row.segment, row.data_offset, row.data_length)
        header = dcmread(BytesIO(head + data), stop_before_pixels=True, specific_tags=list(keywords))
        for keyword in keywords:
            header.get(keyword)  # values are decoded only now
    except (OSError, *UNDECODABLE) as error:
        LOGGER.debug("header of %s not read: %s", row.sop_uid, type(error).__name__)
        return Dataset()
    return header


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
