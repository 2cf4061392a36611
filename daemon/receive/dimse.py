"""DIMSE command sets of the blocking receiver (PS3.7 6.3.1: implicit VR little endian, group 0000)."""

from __future__ import annotations

import struct
from dataclasses import dataclass

C_STORE_RQ, C_ECHO_RQ, C_CANCEL_RQ, N_EVENT_REPORT_RQ = 0x0001, 0x0030, 0x0FFF, 0x0100
RESPONSE = 0x8000
UNRECOGNIZED_OPERATION = 0x0211
"""PS3.7 Annex C.5.22."""
NO_DATA_SET = 0x0101
MAX_COMMAND_BYTES = 1 << 16

_ELEMENT = struct.Struct("<HHL")
_SOP_CLASS, _COMMAND, _MESSAGE_ID, _RESPONDED_TO = 0x0002, 0x0100, 0x0110, 0x0120
_DATA_SET_TYPE, _STATUS, _COMMENT, _SOP_INSTANCE = 0x0800, 0x0900, 0x0902, 0x1000


class MalformedCommand(Exception):
    """A command set that is cut off, or lacks what every request must have."""


@dataclass(frozen=True)
class Command:
    """The elements of a request that the receiver uses."""

    command: int
    message_id: int
    has_data_set: bool
    sop_class_uid: str
    sop_instance_uid: str


def read_command(data: bytes | bytearray) -> Command:
    """Decode a command set.

    Raises:
        MalformedCommand: it cannot be understood.
    """
    elements: dict[int, bytes] = {}
    position = 0
    try:
        while position < len(data):
            group, element, length = _ELEMENT.unpack_from(data, position)
            position += _ELEMENT.size
            if group != 0 or position + length > len(data):
                raise MalformedCommand(f"({group:04X},{element:04X}) of length {length}")
            elements[element] = bytes(data[position : position + length])
            position += length
        command = _short(elements, _COMMAND)
        message_id = 0 if command == C_CANCEL_RQ else _short(elements, _MESSAGE_ID)
        has_data_set = _short(elements, _DATA_SET_TYPE) != NO_DATA_SET
        uids = [elements.get(tag, b"").rstrip(b"\0 ").decode("ascii") for tag in (_SOP_CLASS, _SOP_INSTANCE)]
    except struct.error as error:
        raise MalformedCommand("the command set is cut off") from error
    except UnicodeDecodeError as error:
        raise MalformedCommand("a UID that is not ASCII") from error
    return Command(command, message_id, has_data_set, *uids)


def _short(elements: dict[int, bytes], element: int) -> int:
    value = elements.get(element)
    if value is None or len(value) != 2:
        raise MalformedCommand(f"no (0000,{element:04X})")
    return int.from_bytes(value, "little")


def response(request: Command, status: int, comment: str = "") -> bytes:
    """The command set that answers a request, without data set."""
    elements: list[tuple[int, int | str]] = [
        (_SOP_CLASS, request.sop_class_uid),
        (_COMMAND, request.command | RESPONSE),
        (_RESPONDED_TO, request.message_id),
        (_DATA_SET_TYPE, NO_DATA_SET),
        (_STATUS, status),
        (_COMMENT, comment),
        (_SOP_INSTANCE, request.sop_instance_uid),
    ]
    body = b"".join(_element(tag, value) for tag, value in elements if value != "")
    return _ELEMENT.pack(0, 0, 4) + struct.pack("<L", len(body)) + body


def _element(tag: int, value: int | str) -> bytes:
    if isinstance(value, int):
        return _ELEMENT.pack(0, tag, 2) + struct.pack("<H", value)
    padding = b" " if tag == _COMMENT else b"\0"
    raw = value.encode("ascii", "replace")
    raw += padding * (len(raw) % 2)
    return _ELEMENT.pack(0, tag, len(raw)) + raw
