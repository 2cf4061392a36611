"""Association negotiation (PS3.8 9.3): the A-ASSOCIATE-RQ read, and its answer made.

Senders are taken as they are: AE titles padded with NUL or blank, items and sub-items that nobody knows (PS3.8 9.3.1:
ignored), even presentation context identifiers, a maximum length of a few bytes. What is cut off is malformed.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from pydicom.uid import PYDICOM_IMPLEMENTATION_UID

from daemon.receive.store import Refusal
from daemon.spool.commitment_reports import STORAGE_COMMITMENT

PDU_HEADER = struct.Struct(">BxL")
ASSOCIATE_RQ, ASSOCIATE_AC, ASSOCIATE_RJ, P_DATA, RELEASE_RQ, RELEASE_RP, ABORT = range(1, 8)
APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"
IMPLEMENTATION_VERSION = "BRAINGEMMA3D"

_FIXED = struct.Struct(">H2x16s16s32s")  # protocol version, called and calling AE title, reserved
_ITEM = struct.Struct(">BxH")
_PROPOSED, _ANSWERED, _ABSTRACT, _TRANSFER, _USER = 0x20, 0x21, 0x30, 0x40, 0x50
_MAXIMUM_LENGTH, _IMPLEMENTATION_UID, _ROLE, _IMPLEMENTATION_VERSION = 0x51, 0x52, 0x54, 0x55
_ACCEPTED, _REFUSED_BY_USER, _NO_ABSTRACT, _NO_TRANSFER = 0, 1, 3, 4
"""Results of a presentation context (PS3.8 Table 9-18)."""


class MalformedRequest(Exception):
    """The A-ASSOCIATE-RQ cannot be understood."""


@dataclass(frozen=True)
class Context:
    """An accepted presentation context."""

    abstract_syntax: str
    transfer_syntax_uid: str


@dataclass(frozen=True)
class Proposed:
    """A presentation context that a peer asks for."""

    abstract_syntax: str
    transfer_syntaxes: tuple[str, ...]


@dataclass(frozen=True)
class AssociationRequest:
    """What a peer asks for."""

    called_aet: str
    """Without padding; characters that no AE title has (PS3.5 6.2) are question marks, so that none reaches a log."""
    calling_aet: str
    titles: bytes
    """The fixed fields as they came: the answer repeats them (PS3.8 Table 9-17)."""
    contexts: Mapping[int, Proposed]
    """By presentation context ID."""
    max_pdu: int = 0
    """The longest PDU that the peer takes, bytes; 0: any."""
    as_scp: Mapping[str, bool] | None = None
    """By SOP class, where the peer proposes roles: whether it wants to be the SCP (PS3.7 D.3.3.4)."""


def read_request(pdu: bytes) -> AssociationRequest:
    """Decode an A-ASSOCIATE-RQ, header included.

    Raises:
        MalformedRequest: it cannot be understood.
    """
    body = memoryview(pdu)[PDU_HEADER.size :]
    if len(body) < _FIXED.size:
        raise MalformedRequest(f"{len(body)} bytes, expected at least {_FIXED.size}")
    _, called, calling, _ = _FIXED.unpack_from(body)
    contexts: dict[int, Proposed] = {}
    user: list[tuple[int, bytes]] = []
    for kind, value in _items(bytes(body[_FIXED.size :])):
        if kind == _PROPOSED:
            number, proposed = _proposed(value)
            contexts.setdefault(number, proposed)
        elif kind == _USER:
            user += _items(value)
    if not contexts:
        raise MalformedRequest("no presentation context")
    lengths = [value for kind, value in user if kind == _MAXIMUM_LENGTH and len(value) == 4]
    return AssociationRequest(
        _title(called),
        _title(calling),
        bytes(body[: _FIXED.size]),
        contexts,
        int.from_bytes(lengths[0], "big") if lengths else 0,
        dict(_role(value) for kind, value in user if kind == _ROLE),
    )


def _items(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and value of each item (PS3.8 9.3.2)."""
    at = 0
    while at < len(data):
        if at + _ITEM.size > len(data):
            raise MalformedRequest("an item that is cut off")
        kind, length = _ITEM.unpack_from(data, at)
        at += _ITEM.size + length
        if at > len(data):
            raise MalformedRequest(f"an item 0x{kind:02X} of {length} bytes that is cut off")
        yield kind, data[at - length : at]


def _proposed(value: bytes) -> tuple[int, Proposed]:
    if len(value) < 4:
        raise MalformedRequest("a presentation context that is cut off")
    items = list(_items(value[4:]))
    abstract = [_uid(part) for kind, part in items if kind == _ABSTRACT]
    transfer = tuple(_uid(part) for kind, part in items if kind == _TRANSFER)
    if not abstract or not abstract[0] or not transfer:
        raise MalformedRequest("a presentation context without abstract or transfer syntax")
    return value[0], Proposed(abstract[0], transfer)


def _role(value: bytes) -> tuple[str, bool]:
    length = int.from_bytes(value[:2], "big")
    if len(value) != length + 4:
        raise MalformedRequest("a role selection that is cut off")
    return _uid(value[2 : 2 + length]), bool(value[3 + length])


def _uid(value: bytes) -> str:
    return value.strip(b"\0 ").decode("ascii", "replace")


def _title(value: bytes) -> str:
    return "".join(chr(c) if 0x20 <= c < 0x7F and c != 0x5C else "?" for c in value.strip(b"\0 "))


def accept(
    request: AssociationRequest, supported: Mapping[str, Collection[str]], max_pdu: int
) -> tuple[bytes, dict[int, Context]]:
    """The A-ASSOCIATE-AC, and the accepted contexts by their id.

    Args:
        request: What is asked for.
        supported: Transfer syntaxes by abstract syntax, the preferred ones first.
        max_pdu: The longest PDU that we take, bytes; 0: any.
    """
    accepted: dict[int, Context] = {}
    items = _item(0x10, APPLICATION_CONTEXT.encode())
    roles: dict[str, bool] = {}
    for number, proposed in request.contexts.items():
        result, syntax = _negotiate(request, proposed, supported)
        if result == _ACCEPTED:
            accepted[number] = Context(proposed.abstract_syntax, syntax)
            if proposed.abstract_syntax == STORAGE_COMMITMENT and STORAGE_COMMITMENT in (request.as_scp or {}):
                roles[STORAGE_COMMITMENT] = True
        items += _item(_ANSWERED, bytes((number, 0, result, 0)) + _item(_TRANSFER, syntax.encode()))
    user = _item(_MAXIMUM_LENGTH, max_pdu.to_bytes(4, "big")) + _item(
        _IMPLEMENTATION_UID, PYDICOM_IMPLEMENTATION_UID.encode()
    )
    for uid, as_scp in roles.items():  # whoever reports to us on storage commitment is the SCP, and not the SCU
        user += _item(_ROLE, len(uid).to_bytes(2, "big") + uid.encode() + bytes((0, as_scp)))
    items += _item(_USER, user + _item(_IMPLEMENTATION_VERSION, IMPLEMENTATION_VERSION.encode()))
    body = struct.pack(">H", 1) + request.titles[2:] + items
    return PDU_HEADER.pack(ASSOCIATE_AC, len(body)) + body, accepted


def _negotiate(
    request: AssociationRequest, proposed: Proposed, supported: Mapping[str, Collection[str]]
) -> tuple[int, str]:
    """Result of one context, and its transfer syntax, which means something only where the result is acceptance."""
    ours = supported.get(proposed.abstract_syntax)
    if ours is None:
        return _NO_ABSTRACT, proposed.transfer_syntaxes[0]
    syntax = next((uid for uid in ours if uid in proposed.transfer_syntaxes), None)
    if syntax is None:
        return _NO_TRANSFER, proposed.transfer_syntaxes[0]
    if proposed.abstract_syntax == STORAGE_COMMITMENT and not (request.as_scp or {}).get(STORAGE_COMMITMENT, True):
        return _REFUSED_BY_USER, syntax
    return _ACCEPTED, syntax


def _item(kind: int, value: bytes) -> bytes:
    return _ITEM.pack(kind, len(value)) + value


def refuse(refusal: Refusal) -> bytes:
    """The A-ASSOCIATE-RJ (PS3.8 9.3.4)."""
    return PDU_HEADER.pack(ASSOCIATE_RJ, 4) + bytes((0, refusal.result, refusal.source, refusal.reason))


def abort(source: int, reason: int) -> bytes:
    """The A-ABORT (PS3.8 9.3.8): source 0 is the service user, 2 the provider."""
    return PDU_HEADER.pack(ABORT, 4) + bytes((0, 0, source, reason))


def release_response() -> bytes:
    """The A-RELEASE-RP (PS3.8 9.3.7)."""
    return PDU_HEADER.pack(RELEASE_RP, 4) + bytes(4)
