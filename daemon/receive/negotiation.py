"""Association negotiation for the blocking receiver (PS3.8 9.3), done by pynetdicom's own classes.

What is used of pynetdicom here is not all of its documented interface, so the release is pinned, a test holds these
names to their behaviour, and `self_check` tries them at start: where it fails, the stock receiver takes over.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydicom.uid import UID
from pynetdicom import PYNETDICOM_IMPLEMENTATION_UID, PYNETDICOM_IMPLEMENTATION_VERSION
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    ImplementationVersionNameNotification,
    MaximumLengthNotification,
    SCP_SCU_RoleSelectionNegotiation,
)
from pynetdicom.presentation import PresentationContext, build_context, negotiate_as_acceptor

from daemon.receive.store import Refusal

PDU_HEADER = struct.Struct(">BxL")
ASSOCIATE_RQ, ASSOCIATE_AC, ASSOCIATE_RJ, P_DATA, RELEASE_RQ, RELEASE_RP, ABORT = range(1, 8)
APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"

_MALFORMED = (ValueError, LookupError, TypeError, AttributeError, AssertionError, OverflowError, struct.error)
"""What pynetdicom's decoders raise on an A-ASSOCIATE-RQ that is not one."""


class MalformedRequest(Exception):
    """The A-ASSOCIATE-RQ cannot be understood."""


class Incompatible(Exception):
    """This release of pynetdicom does not negotiate as expected."""


@dataclass(frozen=True)
class Context:
    """An accepted presentation context."""

    abstract_syntax: str
    transfer_syntax_uid: str


@dataclass(frozen=True)
class AssociationRequest:
    """What a peer asks for."""

    primitive: Any
    called_aet: str
    calling_aet: str
    contexts: dict[int, str]
    """Abstract syntax by presentation context ID."""


def read_request(pdu: bytes) -> AssociationRequest:
    """Decode an A-ASSOCIATE-RQ, header included.

    Raises:
        MalformedRequest: it cannot be understood.
    """
    try:
        decoded = A_ASSOCIATE_RQ()
        decoded.decode(pdu)
        primitive = decoded.to_primitive()
        contexts = primitive.presentation_context_definition_list
        if any(not context.transfer_syntax or not context.abstract_syntax for context in contexts):
            raise MalformedRequest("a presentation context without abstract or transfer syntax")
        asked = {context.context_id: str(context.abstract_syntax) for context in contexts}
        return AssociationRequest(
            primitive, primitive.called_ae_title.strip(), primitive.calling_ae_title.strip(), asked
        )
    except _MALFORMED as error:
        raise MalformedRequest(type(error).__name__) from error


def accept(
    request: AssociationRequest, supported: Sequence[PresentationContext], max_pdu: int
) -> tuple[bytes, dict[int, Context]]:
    """The A-ASSOCIATE-AC, and the accepted contexts by their id.

    Raises:
        MalformedRequest: the request cannot be answered.
    """
    try:
        return _accept(request, supported, max_pdu)
    except _MALFORMED as error:
        raise MalformedRequest(type(error).__name__) from error


def _accept(
    request: AssociationRequest, supported: Sequence[PresentationContext], max_pdu: int
) -> tuple[bytes, dict[int, Context]]:
    asked = request.primitive
    # A PACS that reports on storage commitment is the SCP, although it opens the association (PS3.7 D.3.3.4).
    roles = {
        item.sop_class_uid: (item.scu_role, item.scp_role)
        for item in asked.user_information
        if isinstance(item, SCP_SCU_RoleSelectionNegotiation)
    }
    results, role_answers = negotiate_as_acceptor(asked.presentation_context_definition_list, list(supported), roles)
    answer = A_ASSOCIATE()
    answer.application_context_name = UID(APPLICATION_CONTEXT)
    answer.calling_ae_title, answer.called_ae_title = asked.calling_ae_title, asked.called_ae_title
    answer.result, answer.result_source = 0, 1
    answer.presentation_context_definition_results_list = results
    length, implementation, version = (
        MaximumLengthNotification(),
        ImplementationClassUIDNotification(),
        ImplementationVersionNameNotification(),
    )
    length.maximum_length_received = max_pdu
    implementation.implementation_class_uid = UID(PYNETDICOM_IMPLEMENTATION_UID)
    version.implementation_version_name = PYNETDICOM_IMPLEMENTATION_VERSION
    answer.user_information = [length, implementation, version, *role_answers]
    accepted = {
        context.context_id: Context(str(context.abstract_syntax), str(context.transfer_syntax[0]))
        for context in results
        if context.result == 0
    }
    return A_ASSOCIATE_AC(answer).encode(), accepted


def refuse(refusal: Refusal) -> bytes:
    """The A-ASSOCIATE-RJ (PS3.8 9.3.4)."""
    return PDU_HEADER.pack(ASSOCIATE_RJ, 4) + bytes((0, refusal.result, refusal.source, refusal.reason))


def abort(source: int, reason: int) -> bytes:
    """The A-ABORT (PS3.8 9.3.8): source 0 is the service user, 2 the provider."""
    return PDU_HEADER.pack(ABORT, 4) + bytes((0, 0, source, reason))


def release_response() -> bytes:
    """The A-RELEASE-RP (PS3.8 9.3.7)."""
    return PDU_HEADER.pack(RELEASE_RP, 4) + bytes(4)


def self_check() -> None:
    """Negotiate a request of our own.

    Raises:
        Incompatible: the answer is not the expected one.
    """
    verification, explicit = "1.2.840.10008.1.1", "1.2.840.10008.1.2.1"
    try:
        request = read_request(_sample_request(verification, explicit))
        pdu, contexts = accept(request, [build_context(verification, explicit)], 16384)
        decoded = A_ASSOCIATE_AC()
        decoded.decode(pdu)
        found = (request.called_aet, request.calling_aet, contexts, decoded.to_primitive().maximum_length_received)
    except (*_MALFORMED, MalformedRequest) as error:
        raise Incompatible(f"negotiation fails: {type(error).__name__}: {error}") from error
    expected = ("CALLED", "CALLING", {3: Context(verification, explicit)}, 16384)
    if found != expected:
        raise Incompatible(f"negotiation gives {found!r}, expected {expected!r}")


def _sample_request(abstract_syntax: str, transfer_syntax: str) -> bytes:
    """An A-ASSOCIATE-RQ put together by hand (PS3.8 Table 9-11 and following)."""

    def item(kind: int, body: bytes) -> bytes:
        return struct.pack(">BxH", kind, len(body)) + body

    user = item(0x51, struct.pack(">L", 65536)) + item(0x52, b"1.2.3")
    syntaxes = item(0x30, abstract_syntax.encode()) + item(0x40, transfer_syntax.encode())
    items = item(0x10, APPLICATION_CONTEXT.encode()) + item(0x20, b"\x03\0\0\0" + syntaxes) + item(0x50, user)
    body = struct.pack(">H2x16s16s32x", 1, b"CALLED".ljust(16), b"CALLING".ljust(16)) + items
    return PDU_HEADER.pack(ASSOCIATE_RQ, len(body)) + body
