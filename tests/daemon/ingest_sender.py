"""A storage SCU on a bare socket, so that tests can send what a library would not, and quickly."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass, field

VERIFICATION = "1.2.840.10008.1.1"
MR = "1.2.840.10008.5.1.4.1.1.4"
EXPLICIT = "1.2.840.10008.1.2.1"


def pdu(kind: int, body: bytes) -> bytes:
    """Any PDU (PS3.8 9.3.1)."""
    return struct.pack(">BxL", kind, len(body)) + body


def item(kind: int, body: bytes) -> bytes:
    """An item of an A-ASSOCIATE PDU."""
    return struct.pack(">BxH", kind, len(body)) + body


def associate_request(
    contexts: dict[int, str], *, called: str = "BRAINGEMMA", calling: str = "RAW", syntax: str = EXPLICIT
) -> bytes:
    """A-ASSOCIATE-RQ with one transfer syntax for each context."""
    items = item(0x10, b"1.2.840.10008.3.1.1.1")
    for number, abstract in contexts.items():
        syntaxes = item(0x30, abstract.encode()) + item(0x40, syntax.encode())
        items += item(0x20, bytes((number, 0, 0, 0)) + syntaxes)
    items += item(0x50, item(0x51, struct.pack(">L", 1 << 17)) + item(0x52, b"1.2.3"))
    return pdu(1, struct.pack(">H2x16s16s32x", 1, called.encode().ljust(16), calling.encode().ljust(16)) + items)


def element(tag: int, value: int | str) -> bytes:
    """An element of a command set, implicit VR little endian."""
    raw = struct.pack("<H", value) if isinstance(value, int) else value.encode() + b"\0" * (len(value) % 2)
    return struct.pack("<HHL", 0, tag, len(raw)) + raw


def command_set(*elements: tuple[int, int | str]) -> bytes:
    """A command set with its group length."""
    body = b"".join(element(*entry) for entry in elements)
    return struct.pack("<HHLL", 0, 0, 4, len(body)) + body


def store_request(uid: str, message_id: int, *, sop_class: str = MR) -> bytes:
    """The command set of a C-STORE-RQ."""
    return command_set((0x0002, sop_class), (0x0100, 1), (0x0110, message_id), (0x0700, 2), (0x0800, 1), (0x1000, uid))


def read_status(command: bytes) -> int:
    """Status (0000,0900) of a response's command set."""
    at = 0
    while at < len(command):
        _, tag, length = struct.unpack_from("<HHL", command, at)
        if tag == 0x0900:
            return int.from_bytes(command[at + 8 : at + 10], "little")
        at += 8 + length
    raise ValueError("a response without status")


def message(context: int, command: bytes, data: bytes = b"", *, max_pdu: int = 1 << 17) -> list[bytes]:
    """The P-DATA PDUs of a message."""
    pdus = []
    for body, is_command in ((command, True), (data, False)):
        step = max_pdu - 6
        pieces = [body[at : at + step] for at in range(0, len(body), step)]
        for number, piece in enumerate(pieces):
            control = (1 if is_command else 0) | (2 if number == len(pieces) - 1 else 0)
            pdus.append(pdu(4, struct.pack(">LBB", len(piece) + 2, context, control) + piece))
    return pdus


@dataclass
class RawSender:
    """One association."""

    address: tuple[str, int]
    calling: str = "RAW"
    timeout: float = 10.0
    _message_id: int = field(default=0, init=False)

    def __enter__(self) -> RawSender:
        self.socket = socket.create_connection(self.address, timeout=self.timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def associate(self) -> int:
        """Ask for MR and Verification; the type of the PDU that answers."""
        self.socket.sendall(associate_request({1: MR, 3: VERIFICATION}, calling=self.calling))
        return self.read_pdu()[0]

    def store(self, uid: str, data: bytes) -> int:
        """One C-STORE; its status."""
        self._message_id = self._message_id % 65535 + 1
        self.socket.sendall(b"".join(message(1, store_request(uid, self._message_id), data)))
        kind, body = self.read_pdu()
        if kind != 4:
            raise ConnectionError(f"PDU type {kind}")
        return read_status(body[6:])

    def release(self) -> int:
        """A-RELEASE-RQ; the type of the PDU that answers."""
        self.socket.sendall(pdu(5, bytes(4)))
        return self.read_pdu()[0]

    def read_pdu(self) -> tuple[int, bytes]:
        """Type and body of the next PDU."""
        kind, length = struct.unpack(">BxL", self._read(6))
        return kind, self._read(length)

    def _read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = self.socket.recv(count - len(data))
            if not piece:
                raise ConnectionError("closed")
            data += piece
        return data


def rejection(
    address: tuple[str, int], *, calling: str = "SENDER", called: str = "BRAINGEMMA"
) -> tuple[int, int, int] | None:
    """(result, source, reason) of the A-ASSOCIATE-RJ; None where the association was accepted.

    Read from the wire: pynetdicom's requestor takes a rejection for an abort where the answer, and with it the end of
    the connection, is there before its thread has seen that it was connected.
    """
    with RawSender(address) as sender:
        sender.socket.sendall(associate_request({1: MR, 3: VERIFICATION}, calling=calling, called=called))
        kind, body = sender.read_pdu()
        if kind == 2:
            assert sender.release() == 6
            return None
        assert kind == 3
        return body[1], body[2], body[3]
