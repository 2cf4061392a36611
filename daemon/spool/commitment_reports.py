"""What a PACS says about storage commitment, as receiver processes take it: N-EVENT-REPORT (PS3.4 J.3.3)."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import ClassVar

import pydicom
from pydicom import Dataset
from pydicom.errors import BytesLengthException
from pydicom.uid import UID

from daemon.files import Buffer, make_private
from daemon.record import Record

STORAGE_COMMITMENT = "1.2.840.10008.1.20.1"
"""Storage Commitment Push Model SOP Class."""

MAX_BYTES = 16 << 20
"""Of Event Information: far more than any study of ours needs."""

FAILURE_REASONS = {
    0x0110: "processing failure",
    0x0112: "no such object instance",
    0x0213: "resource limitation",
    0x0122: "SOP class not supported",
    0x0119: "class and instance conflict",
    0x0131: "duplicate transaction UID",
}
"""PS3.3 C.14.1.1."""


_UNDECODABLE = (
    EOFError,
    NotImplementedError,
    AttributeError,
    LookupError,
    TypeError,
    OverflowError,
    RecursionError,
    MemoryError,
    OSError,
    struct.error,
    zlib.error,
    BytesLengthException,
)


class Report(Record):
    """SOP instances that are safe, and those that are not, each with its reason."""

    what: ClassVar[str] = "a report on storage commitment"

    transaction_uid: str
    committed: tuple[str, ...]
    failed: Mapping[str, str]


def read_report(information: Dataset) -> Report:
    """The Event Information (PS3.4 Table J.3-2).

    Raises:
        ValueError: it names no transaction, or an instance without its UID.
    """
    transaction_uid = str(information.get("TransactionUID", ""))
    if re.fullmatch(r"[0-9.]{1,64}", transaction_uid) is None:
        raise ValueError("expected a Transaction UID")
    committed = tuple(_uid(item) for item in information.get("ReferencedSOPSequence") or ())
    failed = {}
    for item in information.get("FailedSOPSequence") or ():
        reason = int(item.get("FailureReason") or 0x0110)
        failed[_uid(item)] = f"0x{reason:04X} {FAILURE_REASONS.get(reason, '')}".strip()
    return Report(transaction_uid=transaction_uid, committed=committed, failed=failed)


def _uid(item: Dataset) -> str:
    uid = item.get("ReferencedSOPInstanceUID")
    if not uid:
        raise ValueError("expected a Referenced SOP Instance UID")
    return str(uid)


def take_event(folder: Path, encoded: Buffer, transfer_syntax_uid: str) -> None:
    """Write a report durably for the service to take; the same one again replaces it.

    Args:
        folder: Where receivers leave reports for the service (`DataFolder.commitment_reports`).
        encoded: The Event Information as it came.
        transfer_syntax_uid: Of its presentation context.

    Raises:
        ValueError: it is no report on storage commitment.
        OSError: it could not be written.
    """
    if len(encoded) > MAX_BYTES:
        raise ValueError(f"expected at most {MAX_BYTES} bytes, got {len(encoded)}")
    report = read_report(_decode(encoded, UID(transfer_syntax_uid)))
    report.write(make_private(folder) / f"report-{report.transaction_uid}.json")


def _decode(encoded: Buffer, syntax: UID) -> Dataset:
    """Only our own two uncompressed syntaxes are negotiated.

    Raises:
        ValueError: the bytes are no data set.
    """
    try:
        information = pydicom.dcmread(BytesIO(_preamble(syntax) + bytes(encoded)), force=True)
        information.walk(lambda _dataset, element: str(element.value))  # everything is decoded here or not at all
    except _UNDECODABLE as error:
        raise ValueError(f"{type(error).__name__} while decoding") from error
    return information


def _preamble(syntax: UID) -> bytes:
    """File meta information that says how the data set is encoded."""
    value = syntax.encode() + b"\0" * (len(syntax) % 2)
    element = b"\x02\x00\x10\x00UI" + len(value).to_bytes(2, "little") + value
    return b"\0" * 128 + b"DICM" + element
