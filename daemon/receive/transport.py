"""The transport of the blocking receiver: bytes, PDUs and fragments of one connection (PS3.8 9.3)."""

from __future__ import annotations

import logging
import math
import socket
import ssl
import struct
import threading
import time
import zlib
from collections.abc import Collection, Iterator

from daemon.receive.negotiation import ABORT, ASSOCIATE_RQ, P_DATA, PDU_HEADER, abort

log = logging.getLogger(__name__)

HANDSHAKE_SECONDS = 10.0
ARTIM_SECONDS = 30.0
"""PS3.8 9.1.5: how long a new connection may take to ask for an association."""
LINGER_SECONDS = 2.0
MAX_INSTANCE_BYTES = 2 << 30
LARGE_BYTES = 4 << 20
"""Instances above this size are taken one at a time, so that memory stays bounded; TCP holds the others back."""
PDU_SLACK = 64
"""Implementations disagree whether the maximum length counts the headers."""
USER, PROVIDER = 0, 2
UNRECOGNIZED_PDU, UNEXPECTED_PDU, INVALID_PARAMETER = 1, 2, 6
"""Source and reason of an A-ABORT (PS3.8 Table 9-26)."""
MIN_BYTES_PER_SECOND = 1024
"""A sender that is slower than this, beyond the time that it may be silent, holds an association for nothing."""
MIN_LARGE_BYTES_PER_SECOND = 128 << 10
"""The same while others with large instances wait for its turn to end."""
_READ_AHEAD_BYTES = 512
"""Headers and commands come many to a system call; data sets go from the kernel to their place."""
_PDV_HEADER = struct.Struct(">LBB")


class Closed(Exception):
    """The peer closed the connection or aborted; nothing more to say."""


class Abort(Exception):
    """The association cannot go on; the peer is told by an A-ABORT."""

    def __init__(self, reason: int, text: str, *, source: int = PROVIDER) -> None:
        super().__init__(text)
        self.pdu = abort(source, reason)


class Buffer:
    """Bytes of one instance; its memory is used again for the next."""

    def __init__(self, large: threading.Lock) -> None:
        self._bytes = bytearray(256 << 10)
        self._large = large
        self._holds_large = False
        self.used = 0
        self.checksum = 0
        """CRC-32 of what was received."""

    def receive(self, stream: Stream, count: int) -> None:
        """Take the next `count` bytes; the checksum is computed while the sender sends what follows."""
        was_large = self._holds_large
        place = self.room(count)  # a large one waits here for its turn
        if self._holds_large and not was_large:
            stream.limit_anew()
        stream.expect(count, MIN_LARGE_BYTES_PER_SECOND if self._holds_large else MIN_BYTES_PER_SECOND)
        stream.read_into(place)
        self.used += count
        self.checksum = zlib.crc32(place, self.checksum)

    def room(self, count: int) -> memoryview:
        """Where the next `count` bytes go."""
        needed = self.used + count
        if needed > MAX_INSTANCE_BYTES:
            raise Abort(INVALID_PARAMETER, f"an instance of more than {MAX_INSTANCE_BYTES} bytes")
        if needed > len(self._bytes):
            self._grow(needed)
        return memoryview(self._bytes)[self.used : needed]

    def _grow(self, needed: int) -> None:
        if needed > LARGE_BYTES and not self._holds_large:
            self._large.acquire()
            self._holds_large = True
        larger = bytearray(max(needed, 2 * len(self._bytes)))
        larger[: self.used] = memoryview(self._bytes)[: self.used]
        self._bytes = larger

    def view(self) -> memoryview:
        """What was received."""
        return memoryview(self._bytes)[: self.used]

    def reset(self) -> None:
        """Ready for the next instance."""
        self.used = self.checksum = 0
        if len(self._bytes) > LARGE_BYTES:
            self._bytes = bytearray(256 << 10)
        if self._holds_large:
            self._holds_large = False
            self._large.release()


class Stream:
    """Reads and writes one connection."""

    def __init__(self, connection: socket.socket, *, max_pdu: int) -> None:
        self._socket = connection
        self._max_pdu = max_pdu or MAX_INSTANCE_BYTES
        self._stopping = False
        self._limit = self._deadline = math.inf
        self._wait_all = int(socket.MSG_WAITALL)
        self._small = bytearray(_READ_AHEAD_BYTES)
        self._ahead = memoryview(b"")

    def handshake(self, context: ssl.SSLContext | None) -> None:
        """The TLS handshake, where there is TLS.

        Raises:
            Closed: it failed.
        """
        if context is not None:
            self._socket.settimeout(HANDSHAKE_SECONDS)
            try:
                self._socket = context.wrap_socket(self._socket, server_side=True)
            except OSError as error:  # ssl.SSLError is one
                raise Closed(f"TLS handshake failed: {error}") from error
            self._wait_all = 0  # TLS knows no flags
        self.set_timeout(ARTIM_SECONDS)

    def set_timeout(self, seconds: float) -> None:
        """A plain socket really blocks, with the kernel's timeouts; Python's own would poll before each call."""
        if isinstance(self._socket, ssl.SSLSocket):
            self._socket.settimeout(seconds)
            return
        whole, part = divmod(seconds, 1)
        value = struct.pack("@ll", int(whole), int(part * 1e6))
        self._socket.settimeout(None)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)

    def limit(self, seconds: float) -> None:
        """From now on everything must have come within this time, so that trickling bytes hold nothing up."""
        self._limit = seconds
        self.limit_anew()

    def limit_anew(self) -> None:
        """The same limit from now on, whatever time was left or went by in waiting for others."""
        self._deadline = time.monotonic() + self._limit

    def expect(self, count: int, bytes_per_second: float) -> None:
        """Allow for so many more bytes at this rate."""
        self._deadline += count / bytes_per_second

    def interrupt(self) -> None:
        """From another thread: make a blocked read return, so that the association ends."""
        self._stopping = True
        try:
            self._socket.shutdown(socket.SHUT_RD)
        except OSError as error:
            log.debug("a connection was closed already: %s", error)

    @property
    def stopping(self) -> bool:
        """Whether it was interrupted."""
        return self._stopping

    def read_into(self, view: memoryview) -> None:
        """Fill `view`.

        Raises:
            Closed: the peer went away.
            Abort: it is silent for too long, or we are shutting down.
        """
        while len(view):
            if self._ahead:
                count = min(len(view), len(self._ahead))
                view[:count] = self._ahead[:count]
                self._ahead = self._ahead[count:]
            elif len(view) < _READ_AHEAD_BYTES:
                count = 0
                self._ahead = memoryview(self._small)[: self._receive(self._small, 0)]
            else:
                count = self._receive(view, self._wait_all)
            view = view[count:]

    def _receive(self, place: memoryview | bytearray, flags: int) -> int:
        try:
            count = self._socket.recv_into(place, 0, flags)
        except (BlockingIOError, TimeoutError) as error:
            raise Abort(0, "silent for too long", source=USER) from error
        if count == 0:
            if self._stopping:
                raise Abort(0, "the receiver is shutting down", source=USER)
            raise Closed("closed by the peer")
        if time.monotonic() > self._deadline:
            raise Abort(0, "too slow", source=USER)
        return count

    def read(self, count: int) -> bytearray:
        """The next `count` bytes."""
        data = bytearray(count)
        self.read_into(memoryview(data))
        return data

    def send(self, data: bytes) -> None:
        """Send all of it."""
        self._socket.sendall(data)

    def send_command(self, command: bytes, context_id: int) -> None:
        """Send a message without data set, in one PDU."""
        pdv = _PDV_HEADER.pack(len(command) + 2, context_id, 3)
        self.send(PDU_HEADER.pack(P_DATA, len(pdv) + len(command)) + pdv + command)

    def send_last(self, pdu: bytes) -> None:
        """Send the last PDU and wait a little for the peer to close, so that a reset cannot overtake it."""
        try:
            self.set_timeout(LINGER_SECONDS)
            self.send(pdu)
            self._socket.shutdown(socket.SHUT_WR)
            deadline = time.monotonic() + LINGER_SECONDS
            while time.monotonic() < deadline and self._socket.recv(1 << 16):
                pass
        except OSError as error:
            log.debug("the last PDU was not delivered: %s", error)

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def pdu_header(self) -> tuple[int, int]:
        """Type and length of the next PDU."""
        kind, length = PDU_HEADER.unpack(self.read(PDU_HEADER.size))
        if not ASSOCIATE_RQ <= kind <= ABORT:
            raise Abort(UNRECOGNIZED_PDU, f"PDU of unknown type {kind:#04x}")
        return kind, length

    def next_data_pdu(self) -> int:
        """Length of the next PDU, which must be P-DATA as a message is not complete."""
        kind, length = self.pdu_header()
        if kind == P_DATA:
            self.check_length(length)
            return length
        if kind == ABORT:
            raise Closed("aborted by the peer within a message")
        raise Abort(UNEXPECTED_PDU, f"PDU type {kind} within a message")

    def check_length(self, length: int) -> None:
        """Hold the peer to the maximum length that it was told."""
        if length > self._max_pdu + PDU_SLACK:
            raise Abort(INVALID_PARAMETER, f"a PDU of {length} bytes, expected at most {self._max_pdu}")

    def pdv_header(self) -> tuple[int, int, int]:
        """Length of the next fragment, its context, and its message control header."""
        length, context_id, control = _PDV_HEADER.unpack(self.read(_PDV_HEADER.size))
        return length - 2, context_id, control


class Fragments:
    """Walks the presentation data values of one message (PS3.8 9.3.5.1, Annex E.2)."""

    def __init__(self, stream: Stream, first_length: int, contexts: Collection[int]) -> None:
        stream.check_length(first_length)
        self._stream = stream
        self._contexts = contexts
        self._left = first_length
        self.context_id = 0

    def of_kind(self, *, is_command: bool) -> Iterator[int]:
        """Lengths of the fragments of the command set or of the data set, up to the last; the caller reads each."""
        last = False
        while not last:
            while self._left == 0:
                self._left = self._stream.next_data_pdu()
            if self._left < _PDV_HEADER.size:
                raise Abort(INVALID_PARAMETER, "a P-DATA PDU that ends within an item")
            length, context_id, control = self._stream.pdv_header()
            self._left -= _PDV_HEADER.size
            if not 0 <= length <= self._left:
                raise Abort(INVALID_PARAMETER, "a presentation data value longer than its PDU")
            self._check(context_id, control, is_command=is_command)
            last = bool(control & 2)
            self._left -= length
            yield length

    def _check(self, context_id: int, control: int, *, is_command: bool) -> None:
        if context_id not in self._contexts:
            raise Abort(INVALID_PARAMETER, f"presentation context {context_id} was not accepted")
        if self.context_id not in (0, context_id):
            raise Abort(INVALID_PARAMETER, "one message in two presentation contexts")
        self.context_id = context_id
        if bool(control & 1) is not is_command:
            expected = "the command set" if is_command else "the data set"
            raise Abort(INVALID_PARAMETER, f"expected a fragment of {expected}")

    def expect_end(self) -> None:
        """A message ends with its PDU (PS3.8 Annex E.1: no PDU holds fragments of more than one message)."""
        if self._left:
            raise Abort(INVALID_PARAMETER, "a P-DATA PDU with more than one message")
