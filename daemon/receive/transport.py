"""The transport of the blocking receiver: bytes, PDUs and fragments of one connection (PS3.8 9.3)."""

from __future__ import annotations

import errno
import fcntl
import logging
import math
import socket
import ssl
import struct
import tempfile
import termios
import time
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO

from daemon.files import FileBytes, free_bytes, write_all
from daemon.receive.negotiation import ABORT, ASSOCIATE_RQ, P_DATA, PDU_HEADER, abort
from daemon.spool.segment import Part

log = logging.getLogger(__name__)

HANDSHAKE_SECONDS = 10.0
ARTIM_SECONDS = 30.0
"""PS3.8 9.1.5: how long a new connection may take to ask for an association."""
LINGER_SECONDS = 2.0
MAX_INSTANCE_BYTES = 2 << 30
LARGE_BYTES = 4 << 20
"""Memory of an instance above this size is given back after it."""
MEMORY_BYTES = 8 << 20
"""Of an instance, so much at the most is held in memory."""
_FIRST_BYTES = 256 << 10
_CHECK_BYTES = 16 << 20
PDU_SLACK = 64
"""Implementations disagree whether the maximum length counts the headers."""
USER, PROVIDER = 0, 2
UNRECOGNIZED_PDU, UNEXPECTED_PDU, INVALID_PARAMETER = 1, 2, 6
"""Source and reason of an A-ABORT (PS3.8 Table 9-26)."""
MIN_BYTES_PER_SECOND = 1024
"""A sender that is slower than this, beyond the time that it may be silent, holds an association for nothing."""
_READ_AHEAD_BYTES = 512
"""Headers and commands come many to a system call; data sets go from the kernel to their place."""
_PDV_HEADER = struct.Struct(">LBB")
_BYTES_RECEIVED, _RECEIVED_AT, _TCP_INFO_BYTES = struct.Struct("=Q"), 128, 256
"""tcpi_bytes_received in struct tcp_info of Linux (include/uapi/linux/tcp.h)."""
LEAST_FRAGMENT_BYTES = 2
_COMMAND_FRAGMENT, _LAST_FRAGMENT = 1, 2
"""Bits of the message control header (PS3.8 E.2)."""


class Closed(Exception):
    """The peer closed the connection or aborted; nothing more to say."""


class Abort(Exception):
    """The association cannot go on; the peer is told by an A-ABORT."""

    def __init__(self, reason: int, text: str, *, source: int = PROVIDER) -> None:
        super().__init__(text)
        self.pdu = abort(source, reason)


class Buffer:
    """Bytes of one instance; its memory is used again for the next.

    What goes beyond `MEMORY_BYTES` goes into a file without a name, so that no sender, however slow, holds memory that
    others need.
    """

    def __init__(self, folder: Path, min_free_bytes: int = 0) -> None:
        """An empty one.

        Args:
            folder: Where the file is made.
            min_free_bytes: Below this much free space there the rest of an instance is received and dropped.
        """
        self._folder = folder
        self._min_free_bytes = min_free_bytes
        self._bytes = bytearray(_FIRST_BYTES)
        self._piece = memoryview(b"")
        self._file: IO[bytes] | None = None
        self._in_file = 0
        self._used = 0
        self.checksum = 0
        """CRC-32 of what was received."""
        self.failure: OSError | None = None
        """Why some of it is not there."""

    @property
    def used(self) -> int:
        """Bytes received."""
        return self._used + self._in_file

    def receive(self, stream: Stream, count: int) -> None:
        """Take the next `count` bytes; the checksum is computed while the sender sends what follows."""
        if self.used + count > MAX_INSTANCE_BYTES:
            raise Abort(INVALID_PARAMETER, f"an instance of more than {MAX_INSTANCE_BYTES} bytes")
        stream.expect(count, MIN_BYTES_PER_SECOND)
        if self._in_file or self._used + count > MEMORY_BYTES:
            self._receive_into_file(stream, count)
            return
        if self._used + count > len(self._bytes):
            larger = bytearray(max(self._used + count, 2 * len(self._bytes)))
            larger[: self._used] = memoryview(self._bytes)[: self._used]
            self._bytes = larger
        place = memoryview(self._bytes)[self._used : self._used + count]
        stream.read_into(place)
        self._used += count
        self.checksum = zlib.crc32(place, self.checksum)

    def _receive_into_file(self, stream: Stream, count: int) -> None:
        if not self._piece:
            self._piece = memoryview(bytearray(_FIRST_BYTES))
        while count:
            place = self._piece[: min(count, len(self._piece))]
            stream.read_into(place)
            self.checksum = zlib.crc32(place, self.checksum)
            count -= len(place)
            if self.failure is None:
                try:
                    self._write(place)
                except OSError as error:  # the sender is told once it has sent everything
                    self.failure = error
            self._in_file += len(place)

    def _write(self, place: memoryview) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115 - closed by `reset`
        if self._in_file % _CHECK_BYTES < len(place) and free_bytes(self._folder) < self._min_free_bytes:
            raise OSError(errno.ENOSPC, "less free space than storage.min_free_gb")
        write_all(self._file.fileno(), [place], self._in_file)

    def parts(self) -> list[Part]:
        """What was received; where there are two, the first is `MEMORY_BYTES` or a little less."""
        first = memoryview(self._bytes)[: self._used]
        return [first] if self._file is None else [first, FileBytes(self._file.fileno(), self._in_file)]

    def reset(self) -> None:
        """Ready for the next instance."""
        self._used = self._in_file = self.checksum = 0
        self.failure = None
        if len(self._bytes) > LARGE_BYTES:
            self._bytes = bytearray(_FIRST_BYTES)
        if self._file is not None:
            self._file.close()
            self._file, self._piece = None, memoryview(b"")


class Stream:
    """Reads and writes one connection."""

    def __init__(self, connection: socket.socket, *, max_pdu: int) -> None:
        self._socket = connection
        self._max_pdu = max_pdu or MAX_INSTANCE_BYTES
        self._interrupted = ""
        self._deadline = math.inf
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
        self._deadline = time.monotonic() + seconds

    def expect(self, count: int, bytes_per_second: float) -> None:
        """Allow for so many more bytes at this rate."""
        self._deadline += count / bytes_per_second

    def interrupt(self, why: str) -> None:
        """From another thread: make a blocked read return, so that the association ends."""
        self._interrupted = why
        try:
            self._socket.shutdown(socket.SHUT_RD)
        except OSError as error:
            log.debug("a connection was closed already: %s", error)

    @property
    def stopping(self) -> bool:
        """Whether it was interrupted."""
        return bool(self._interrupted)

    def received(self) -> int:
        """Bytes that the kernel has got so far, also those that nobody has read yet; 0 where it does not say."""
        try:
            information = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
        except OSError:
            return 0
        return int(_BYTES_RECEIVED.unpack_from(information, _RECEIVED_AT)[0]) if len(information) >= 136 else 0

    def has_input(self) -> bool:
        """Whether bytes wait to be read."""
        if self._ahead:
            return True
        waiting = bytearray(4)
        try:
            fcntl.ioctl(self._socket.fileno(), termios.FIONREAD, waiting)
        except (OSError, ValueError):  # it is closed
            return False
        return any(waiting)

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
            if self._interrupted:
                raise Abort(0, self._interrupted, source=USER)
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

    def send_command(self, command: bytes, context_id: int, max_pdu: int) -> None:
        """Send a message without data set, in PDUs of `max_pdu` bytes at the most; 0: in one (PS3.8 D.1)."""
        step = len(command)
        if max_pdu:
            step = min(step, max(LEAST_FRAGMENT_BYTES, max_pdu - _PDV_HEADER.size & ~1))
        pdus = bytearray()
        for at in range(0, len(command), step):
            piece = command[at : at + step]
            control = _COMMAND_FRAGMENT | (_LAST_FRAGMENT if at + step >= len(command) else 0)
            pdus += PDU_HEADER.pack(P_DATA, _PDV_HEADER.size + len(piece))
            pdus += _PDV_HEADER.pack(len(piece) + 2, context_id, control) + piece
        self.send(bytes(pdus))

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
