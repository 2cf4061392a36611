"""Received instances as DICOM files (PS3.10 7), written so that they are whole under their name or not there."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from pydicom import Dataset, dcmread
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import read_dataset, read_file_meta_info
from pydicom.tag import Tag
from pydicom.uid import (
    PYDICOM_IMPLEMENTATION_UID,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

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
    MemoryError,
    BytesLengthException,
    struct.error,
    zlib.error,
)
"""What pydicom raises on data sets that are not what they say."""
_SYNC_THREADS = 16
HEADER_BYTES = 256 << 10
"""Of an instance, as much as is read, or inflated, for its header."""
_PIECE_BYTES = 1 << 20
Row = sa.Row[tuple[Any, ...]]
_PREAMBLE = b"\0" * 128 + b"DICM"
_GROUP_LENGTH_BYTES = 12
"""Of File Meta Information Group Length, which comes first and counts what follows it."""


class DamagedInstance(Exception):
    """The bytes of an instance in the spool no longer have their checksum."""


def head_of(row: Row) -> bytes:
    """The head of an indexed instance."""
    return part10_head(
        sop_class_uid=row.sop_class_uid,
        sop_uid=row.sop_uid,
        transfer_syntax_uid=row.transfer_syntax_uid,
        calling_aet=row.calling_aet,
    )


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


def read_header(spool: Path, jobs: Path, row: Row, keywords: Sequence[str]) -> Dataset:
    """Some attributes of an indexed instance, from the spool or from the job that it is in.

    Args:
        spool: Folder of the segments.
        jobs: Folder of the jobs.
        row: Of the index.
        keywords: Of the attributes.

    Returns:
        Those that could be read. What cannot be read is missing: nothing but patience depends on it.
    """
    try:
        if row.job_id is None:
            start = read_data(spool / row.segment, row.data_offset, min(row.data_length, HEADER_BYTES))
        else:
            with (jobs / row.job_id / "input" / row.file).open("rb") as stored:
                stored.seek(len(head_of(row)))
                start = stored.read(HEADER_BYTES)
        return decode_header(start, row.transfer_syntax_uid, keywords)
    except (OSError, *UNDECODABLE) as error:
        log.debug("header of %s not read: %s", row.sop_uid, type(error).__name__)
        return Dataset()


def read_file_header(path: Path, keywords: Sequence[str]) -> Dataset:
    """Some attributes of a DICOM file, from its beginning; what cannot be read is missing."""
    try:
        meta = read_file_meta_info(path)
        with path.open("rb") as file:
            file.seek(len(_PREAMBLE) + _GROUP_LENGTH_BYTES + meta.FileMetaInformationGroupLength)
            return decode_header(file.read(HEADER_BYTES), meta.TransferSyntaxUID, keywords)
    except (OSError, *UNDECODABLE) as error:
        log.warning("%s: header not read: %s", path.name, type(error).__name__)
        return Dataset()


def decode_header(start: bytes, transfer_syntax_uid: str, keywords: Sequence[str]) -> Dataset:
    """Some attributes of an encoded data set, read from its first bytes; nothing else of it is decoded.

    A deflated one (PS3.5 A.5) is inflated as far as `HEADER_BYTES`, whatever it would come to.

    Args:
        start: The first `HEADER_BYTES` of the data set.
        transfer_syntax_uid: How it is encoded.
        keywords: Of the attributes.

    Raises:
        One of `UNDECODABLE`: it is not encoded so.
    """
    if transfer_syntax_uid == DeflatedExplicitVRLittleEndian:
        start = zlib.decompressobj(wbits=-zlib.MAX_WBITS).decompress(start, HEADER_BYTES)
        transfer_syntax_uid = ExplicitVRLittleEndian
    syntax = UID(transfer_syntax_uid)
    tags = [Tag(keyword) for keyword in keywords]
    last = max(tags)
    found = read_dataset(
        BytesIO(start),
        is_implicit_VR=syntax == ImplicitVRLittleEndian,
        is_little_endian=syntax != ExplicitVRBigEndian,
        stop_when=lambda tag, _vr, _length: tag > last,
        specific_tags=tags,
    )
    for keyword in keywords:
        found.get(keyword)  # values are decoded only now
    return found


def write_instance(path: Path, row: Row, spool: Path) -> None:
    """Write one instance of the spool as a DICOM file, piece by piece; `sync_files` makes it durable.

    Raises:
        DamagedInstance: its bytes are gone, or no longer have their SHA-256; there is no file then.
        OSError: it cannot be written, or cannot be read for now.
    """
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(head_of(row))
        try:
            digest = hashlib.sha256()
            for piece in _pieces(spool, row):
                digest.update(piece)
                file.write(piece)
            if digest.hexdigest() != row.sha256:
                raise DamagedInstance(f"{row.segment} at {row.data_offset}: the checksum differs")
        except DamagedInstance:
            path.unlink()
            raise


def _pieces(spool: Path, row: Row) -> Iterator[bytes]:
    """The data set of an indexed instance.

    Raises:
        DamagedInstance: it is gone.
        OSError: it cannot be read for now.
    """
    done = 0
    while done < row.data_length:
        length = min(_PIECE_BYTES, row.data_length - done)
        try:
            piece = read_data(spool / row.segment, row.data_offset + done, length)
        except FileNotFoundError as error:
            raise DamagedInstance(f"segment {row.segment} is gone") from error
        except EOFError as error:
            raise DamagedInstance(str(error)) from error
        except OSError as error:
            if error.errno != errno.EIO:
                raise  # may pass: tried again later
            raise DamagedInstance(f"{row.segment} at {row.data_offset}: {error.strerror}") from error
        done += length
        yield piece


def pixel_digest(path: Path, transfer_syntax_uid: str) -> str | None:
    """SHA-256 of what follows the header of a DICOM file: its pixel data; None where that cannot be told.

    Deflated ones are not told: all of them would have to be inflated.
    """
    if transfer_syntax_uid == DeflatedExplicitVRLittleEndian:
        return None
    try:
        with path.open("rb") as file:
            dcmread(file, specific_tags=[], stop_before_pixels=True, defer_size=_PIECE_BYTES)
            digest = hashlib.sha256()
            while piece := file.read(_PIECE_BYTES):
                digest.update(piece)
            return digest.hexdigest()
    except (OSError, *UNDECODABLE) as error:
        log.debug("pixels of %s not compared: %s", path.name, type(error).__name__)
        return None


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
