"""What the listener decides about senders and instances, independent of how the bytes came in."""

from __future__ import annotations

import errno
import ipaddress
import logging
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from daemon.config.data_folder import DataFolder
from daemon.config.sections import Listener
from daemon.files import Buffer, FileBytes
from daemon.receive.counters import count
from daemon.receive.dataset import DEFLATED, DatasetError, Identity, check_inflated, read_identity
from daemon.spool.commitment_reports import MAX_BYTES, take_event
from daemon.spool.segment import InstanceMeta, Part, pieces_of
from daemon.spool.writer import NotDurable, SpoolFull, SpoolWriter

log = logging.getLogger(__name__)


class Status(IntEnum):
    """DIMSE status of a C-STORE response (PS3.4 B.2.3, PS3.7 Annex C)."""

    SUCCESS = 0x0000
    PROCESSING_FAILURE = 0x0110
    SOP_CLASS_NOT_SUPPORTED = 0x0122
    OUT_OF_RESOURCES = 0xA700
    DATA_SET_DOES_NOT_MATCH_SOP_CLASS = 0xA900
    CANNOT_UNDERSTAND = 0xC000


@dataclass(frozen=True)
class Refusal:
    """An A-ASSOCIATE-RJ (PS3.8 Table 9-21)."""

    result: int
    source: int
    reason: int
    text: str


@dataclass(frozen=True)
class Sender:
    """The other side of an association."""

    association: str
    calling_aet: str
    peer: str


@dataclass(frozen=True)
class StoreRequest:
    """A C-STORE request without its data set."""

    affected_sop_class_uid: str
    affected_sop_instance_uid: str
    abstract_syntax: str
    transfer_syntax_uid: str
    """Both of the accepted presentation context."""


@dataclass(frozen=True)
class StoreOutcome:
    """How a C-STORE is answered."""

    status: Status
    comment: str = ""
    """Error Comment (0000,0902), 64 characters at most, free of patient data."""


TOO_MANY = Refusal(2, 3, 2, "listener.max_associations reached")
CONGESTED = Refusal(2, 3, 1, "assembly.max_waiting_jobs reached: the pipeline is behind")


def refuse_sender(listener: Listener, called_aet: str, calling_aet: str, peer: str) -> Refusal | None:
    """Why an association is refused, or None where it is welcome."""
    if called_aet.strip() != listener.ae_title.strip():
        return Refusal(1, 1, 7, f"called AE title {called_aet!r}, ours is {listener.ae_title!r}")
    if not listener.allowed_peers:
        return None
    known = [entry for entry in listener.allowed_peers if entry.ae_title.strip() == calling_aet.strip()]
    if any(entry.host is None or _is_host(entry.host, peer) for entry in known):
        return None
    what = "address" if known else "calling AE title"
    return Refusal(1, 1, 3, f"{what} not among listener.allowed_peers")


def _is_host(host: str, peer: str) -> bool:
    """Whether the network address `peer` is one of the host's."""
    address = _plain(peer)
    try:
        return any(_plain(entry[4][0]) == address for entry in socket.getaddrinfo(host, None))
    except OSError as error:
        log.warning("listener.allowed_peers: host %r cannot be resolved: %s", host, error)
        return False


def _plain(address: object) -> str:
    """An address without zone, and as IPv4 where it is one mapped into IPv6."""
    parsed = ipaddress.ip_address(str(address).split("%")[0])
    mapped = getattr(parsed, "ipv4_mapped", None)
    return str(mapped or parsed)


def store(
    writer: SpoolWriter,
    request: StoreRequest,
    data: Sequence[Part],
    sender: Sender,
    checksum: int | None = None,
    *,
    failure: OSError | None = None,
) -> StoreOutcome:
    """Check one instance and write it; Success means that it is durable.

    Args:
        writer: Where it goes.
        request: What the command set says.
        data: The encoded data set: its beginning, and where it is a large one the rest.
        sender: Who sent it.
        checksum: CRC-32 of the data set where it is known already.
        failure: Why some of the data set could not be kept.
    """
    started = time.perf_counter()
    outcome = _refused(failure) if failure is not None else _store(writer, request, data, sender, checksum)
    if outcome.status is not Status.SUCCESS:
        log.warning("instance from %s refused: 0x%04X %s", sender.calling_aet, outcome.status, outcome.comment)
    count(outcome.status.name.lower(), sum(len(part) for part in data), time.perf_counter() - started)
    return outcome


def take_commitment(writer: SpoolWriter, parts: Sequence[Part], transfer_syntax_uid: str, sender: str) -> StoreOutcome:
    """Keep a PACS's word on storage commitment for the service; Success means that it is durable.

    Args:
        writer: Its spool is in the data folder.
        parts: Event Information of the N-EVENT-REPORT.
        transfer_syntax_uid: Of its presentation context.
        sender: Calling AE title.
    """
    try:
        if len(parts) > 1:
            raise ValueError(f"expected at most {MAX_BYTES} bytes, got more")
        take_event(DataFolder(writer.folder.parent).commitment_reports, _beginning(parts), transfer_syntax_uid)
    except ValueError as error:
        log.warning("N-EVENT-REPORT from %s refused: %s", sender, error)
        return StoreOutcome(Status.PROCESSING_FAILURE, f"Event Information: {error}"[:64])
    except OSError as error:
        log.warning("N-EVENT-REPORT from %s failed: %s", sender, error)
        return StoreOutcome(Status.PROCESSING_FAILURE, "the report could not be written durably")
    return StoreOutcome(Status.SUCCESS)


def _store(
    writer: SpoolWriter, request: StoreRequest, data: Sequence[Part], sender: Sender, checksum: int | None
) -> StoreOutcome:
    if request.affected_sop_class_uid != request.abstract_syntax:
        return StoreOutcome(Status.SOP_CLASS_NOT_SUPPORTED, "Affected SOP Class is not that of the context")
    try:
        identity = _identity(data, request.transfer_syntax_uid)
        if request.transfer_syntax_uid == DEFLATED:
            check_inflated(data)
    except DatasetError as error:
        return StoreOutcome(Status.CANNOT_UNDERSTAND, str(error)[:64])
    except OSError as error:
        return _refused(error)
    if identity.sop_class_uid != request.affected_sop_class_uid:
        return StoreOutcome(Status.DATA_SET_DOES_NOT_MATCH_SOP_CLASS, "SOP Class UID differs from the command's")
    if identity.sop_instance_uid != request.affected_sop_instance_uid:
        return StoreOutcome(Status.DATA_SET_DOES_NOT_MATCH_SOP_CLASS, "SOP Instance UID differs from the command's")
    meta = InstanceMeta(
        sop_class_uid=identity.sop_class_uid,
        sop_instance_uid=identity.sop_instance_uid,
        study_uid=identity.study_uid,
        series_uid=identity.series_uid,
        transfer_syntax_uid=request.transfer_syntax_uid,
        association=sender.association,
        calling_aet=sender.calling_aet,
        peer=sender.peer,
        received=time.time(),
    )
    try:
        writer.append(meta, data, checksum)
    except SpoolFull as error:
        log.warning("the spool is full: %s", error)
        return StoreOutcome(Status.OUT_OF_RESOURCES, "out of storage space")
    except NotDurable as error:
        log.warning("the spool failed: %s", error)
        return StoreOutcome(Status.PROCESSING_FAILURE, "the instance could not be written durably")
    return StoreOutcome(Status.SUCCESS)


def _refused(failure: OSError) -> StoreOutcome:
    if failure.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreOutcome(Status.OUT_OF_RESOURCES, "out of storage space")
    return StoreOutcome(Status.PROCESSING_FAILURE, "the instance could not be written durably")


def _beginning(data: Sequence[Part]) -> Buffer:
    first = data[0]
    if isinstance(first, FileBytes):
        raise TypeError("expected the beginning of a data set in memory")
    return first


_ONE_AT_A_TIME = threading.Lock()
_MOST_HEADER_BYTES = 64 << 20


def _identity(data: Sequence[Part], transfer_syntax_uid: str) -> Identity:
    """The UIDs, from the beginning where they are there, else from as much as a header may be."""
    first = _beginning(data)
    if len(data) == 1:
        return read_identity(first, transfer_syntax_uid)
    try:
        return read_identity(first, transfer_syntax_uid)
    except DatasetError:
        with _ONE_AT_A_TIME:  # so that memory stays bounded; everything is here, nobody waits for a network
            header = bytearray(first)
            for piece in pieces_of(data[1:]):
                header += piece
                if len(header) >= _MOST_HEADER_BYTES:
                    break
            return read_identity(header, transfer_syntax_uid)
