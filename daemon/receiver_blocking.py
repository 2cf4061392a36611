"""The fast receiver: one thread for each association, blocking reads, encoded data sets kept as they come.

pynetdicom polls its socket and its queues every millisecond, which is most of what an instance costs there. Here the
association's thread sleeps in the kernel until bytes are there, reads them to where the writer takes them from, and
answers after the commit. Negotiation is pynetdicom's (`receiver_negotiation`); C-STORE and C-ECHO are all that follows.
"""

from __future__ import annotations

import logging
import select
import socket
import ssl
import struct
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from daemon.config import Listener
from daemon.receiver_messages import (
    C_CANCEL_RQ,
    C_ECHO_RQ,
    C_STORE_RQ,
    MAX_COMMAND_BYTES,
    RESPONSE,
    UNRECOGNIZED_OPERATION,
    Command,
    MalformedCommand,
    read_command,
    response,
)
from daemon.receiver_negotiation import (
    ABORT,
    ASSOCIATE_RQ,
    P_DATA,
    PDU_HEADER,
    RELEASE_RQ,
    AssociationRequest,
    Context,
    MalformedRequest,
    abort,
    accept,
    read_request,
    refuse,
    release_response,
)
from daemon.receiver_stock import HANDSHAKE_SECONDS, server_tls_context, supported_contexts
from daemon.receiver_store import Refusal, Sender, Status, StoreRequest, refuse_sender, store
from daemon.spool import SpoolWriter

LOGGER = logging.getLogger(__name__)

ARTIM_SECONDS = 30.0
"""PS3.8 9.1.5: how long a new connection may take to ask for an association."""
LINGER_SECONDS = 2.0
MAX_REQUEST_BYTES = 1 << 20
MAX_INSTANCE_BYTES = 2 << 30
LARGE_BYTES = 4 << 20
"""Instances above this size are taken one at a time, so that memory stays bounded; TCP holds the others back."""
PDU_SLACK = 64
"""Implementations disagree whether the maximum length counts the headers."""
_IDLE_AT_STOP = 0.5
_PDV_HEADER = struct.Struct(">LBB")
_USER, _PROVIDER = 0, 2
_UNRECOGNIZED_PDU, _UNEXPECTED_PDU, _INVALID_PARAMETER = 1, 2, 6
_TOO_MANY = Refusal(2, 3, 2, "listener.max_associations reached")


class _Closed(Exception):
    """The peer closed the connection, aborted, or fell silent; nothing more to say."""


class _Abort(Exception):
    """The association cannot go on; the peer is told by an A-ABORT."""

    def __init__(self, reason: int, text: str, *, source: int = _PROVIDER) -> None:
        super().__init__(text)
        self.pdu = abort(source, reason)


class _Buffer:
    """Bytes of one instance; its memory is used again for the next."""

    def __init__(self, large: threading.Lock) -> None:
        self._bytes = bytearray(256 << 10)
        self._large = large
        self._holds_large = False
        self.used = 0

    def room(self, count: int) -> memoryview:
        """Where the next `count` bytes go."""
        needed = self.used + count
        if needed > MAX_INSTANCE_BYTES:
            raise _Abort(_INVALID_PARAMETER, f"an instance of more than {MAX_INSTANCE_BYTES} bytes")
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
        self.used = 0
        if len(self._bytes) > LARGE_BYTES:
            self._bytes = bytearray(256 << 10)
        if self._holds_large:
            self._holds_large = False
            self._large.release()


@dataclass(eq=False)
class _Connection:
    """One TCP connection and the association on it."""

    receiver: BlockingReceiver
    socket: socket.socket
    peer: str
    established: bool = False
    stopping: bool = False
    between_messages_since: float = field(default_factory=time.monotonic)
    """Monotonic time at which the last message ended; infinite within a message."""
    _contexts: dict[int, Context] = field(default_factory=dict)
    _counts: Counter[int] = field(default_factory=Counter)

    def run(self) -> None:
        """From the TLS handshake to the end of the connection."""
        buffer = _Buffer(self.receiver.large)
        try:
            self._handshake()
            self._associate(buffer)
        except _Closed as end:
            LOGGER.info("connection from %s ended: %s", self.peer, end)
        except _Abort as fault:
            LOGGER.warning("association with %s aborted: %s", self.peer, fault)
            self._say_last(fault.pdu)
        except OSError as error:
            LOGGER.info("connection from %s broke: %s", self.peer, error)
        finally:
            buffer.reset()
            self.socket.close()
            self.receiver.forget(self)

    def interrupt(self) -> None:
        """Make a blocked read return, so that the association ends between two messages."""
        self.stopping = True
        try:
            self.socket.shutdown(socket.SHUT_RD)
        except OSError:
            LOGGER.debug("connection from %s was closed already", self.peer)

    # --- bytes

    def _handshake(self) -> None:
        context = self.receiver.tls
        if context is None:
            self._set_timeout(ARTIM_SECONDS)
            return
        self.socket.settimeout(HANDSHAKE_SECONDS)
        try:
            self.socket = context.wrap_socket(self.socket, server_side=True)
        except (ssl.SSLError, OSError) as error:
            raise _Closed(f"TLS handshake failed: {error}") from error
        self._set_timeout(ARTIM_SECONDS)

    def _set_timeout(self, seconds: float) -> None:
        """A plain socket really blocks, with the kernel's timeouts; Python's own would poll before each call."""
        if isinstance(self.socket, ssl.SSLSocket):
            self.socket.settimeout(seconds)
            return
        whole, part = divmod(seconds, 1)
        value = struct.pack("@ll", int(whole), int(part * 1e6))
        self.socket.settimeout(None)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)

    def _read_into(self, view: memoryview) -> None:
        flags = 0 if isinstance(self.socket, ssl.SSLSocket) else socket.MSG_WAITALL
        while len(view):
            try:
                count = self.socket.recv_into(view, 0, flags)
            except (BlockingIOError, TimeoutError) as error:
                raise _Abort(0, "silent for too long", source=_USER) from error
            if count == 0:
                if self.stopping:
                    raise _Abort(0, "the receiver is shutting down", source=_USER)
                raise _Closed("closed by the peer")
            view = view[count:]

    def _read(self, count: int) -> bytearray:
        data = bytearray(count)
        self._read_into(memoryview(data))
        return data

    def _pdu_header(self) -> tuple[int, int]:
        kind, length = PDU_HEADER.unpack(self._read(PDU_HEADER.size))
        if not ASSOCIATE_RQ <= kind <= ABORT:
            raise _Abort(_UNRECOGNIZED_PDU, f"PDU of unknown type {kind:#04x}")
        return kind, length

    def _say_last(self, pdu: bytes) -> None:
        """Send the last PDU and wait a little for the peer to close, so that a reset cannot overtake it."""
        try:
            self._set_timeout(LINGER_SECONDS)
            self.socket.sendall(pdu)
            self.socket.shutdown(socket.SHUT_WR)
            deadline = time.monotonic() + LINGER_SECONDS
            while time.monotonic() < deadline and self.socket.recv(1 << 16):
                pass
        except OSError as error:
            LOGGER.debug("connection from %s: last PDU not delivered: %s", self.peer, error)

    # --- association

    def _associate(self, buffer: _Buffer) -> None:
        kind, length = self._pdu_header()
        if kind != ASSOCIATE_RQ:
            raise _Abort(_UNEXPECTED_PDU, f"expected an A-ASSOCIATE-RQ, got PDU type {kind}")
        if length > MAX_REQUEST_BYTES:
            raise _Abort(_INVALID_PARAMETER, f"an A-ASSOCIATE-RQ of {length} bytes")
        try:
            request = read_request(PDU_HEADER.pack(kind, length) + bytes(self._read(length)))
        except MalformedRequest as error:
            raise _Abort(_INVALID_PARAMETER, f"A-ASSOCIATE-RQ: {error}") from error
        refusal = refuse_sender(self.receiver.listener, request.called_aet, request.calling_aet, self.peer)
        if refusal is None and not self.receiver.admit(self):
            refusal = _TOO_MANY
        if refusal is not None:
            LOGGER.warning("association from %r at %s refused: %s", request.calling_aet, self.peer, refusal.text)
            self._say_last(refuse(refusal))
            return
        self._serve(request, buffer)

    def _serve(self, request: AssociationRequest, buffer: _Buffer) -> None:
        try:
            answer, self._contexts = accept(request, self.receiver.contexts, self.receiver.listener.max_pdu)
        except MalformedRequest as error:
            raise _Abort(_INVALID_PARAMETER, f"A-ASSOCIATE-RQ: {error}") from error
        name = f"{self.receiver.writer.receiver}/{uuid.uuid4().hex}"
        sender = Sender(name, request.calling_aet, self.peer)
        LOGGER.info("association from %r at %s", request.calling_aet, self.peer)
        self._set_timeout(self.receiver.listener.idle_seconds)
        try:
            self.socket.sendall(answer)
            while self._serve_pdu(sender, buffer):
                pass
        finally:
            if self._counts[Status.SUCCESS]:
                self.receiver.writer.end_association(name)
            counts = ", ".join(f"{count} x 0x{status:04X}" for status, count in sorted(self._counts.items()))
            LOGGER.info("association from %r at %s over: %s", request.calling_aet, self.peer, counts or "no C-STORE")

    def _serve_pdu(self, sender: Sender, buffer: _Buffer) -> bool:
        """Take what comes next, between two messages; False where that was the end."""
        self.between_messages_since = time.monotonic()
        kind, length = self._pdu_header()
        self.between_messages_since = float("inf")
        if kind == P_DATA:
            self._serve_message(length, sender, buffer)
            return True
        if kind == RELEASE_RQ:
            self._say_last(release_response())
            return False
        if kind == ABORT:
            raise _Closed("aborted by the peer")
        raise _Abort(_UNEXPECTED_PDU, f"PDU type {kind} within an association")

    # --- messages

    def _serve_message(self, first_length: int, sender: Sender, buffer: _Buffer) -> None:
        fragments = _Fragments(self, first_length)
        command_bytes = bytearray()
        for length in fragments.of_kind(is_command=True):
            if len(command_bytes) + length > MAX_COMMAND_BYTES:
                raise _Abort(_INVALID_PARAMETER, f"a command set of more than {MAX_COMMAND_BYTES} bytes")
            command_bytes += self._read(length)
        try:
            command = read_command(command_bytes)
        except MalformedCommand as error:
            raise _Abort(_INVALID_PARAMETER, f"command set: {error}") from error
        buffer.reset()
        if command.has_data_set:
            for length in fragments.of_kind(is_command=False):
                self._read_into(buffer.room(length))
                buffer.used += length
        fragments.expect_end()
        self._answer(command, fragments.context_id, sender, buffer)

    def _answer(self, command: Command, context_id: int, sender: Sender, buffer: _Buffer) -> None:
        if command.command & RESPONSE or command.command == C_CANCEL_RQ:
            return  # nothing to answer, nothing to cancel
        status, comment = int(Status.SUCCESS), ""
        if command.command == C_STORE_RQ:
            context = self._contexts[context_id]
            request = StoreRequest(
                affected_sop_class_uid=command.sop_class_uid,
                affected_sop_instance_uid=command.sop_instance_uid,
                abstract_syntax=context.abstract_syntax,
                transfer_syntax_uid=context.transfer_syntax_uid,
            )
            outcome = store(self.receiver.writer, request, [buffer.view()], sender)
            status, comment = int(outcome.status), outcome.comment
            self._counts[status] += 1
            buffer.reset()
        elif command.command != C_ECHO_RQ:
            status = UNRECOGNIZED_OPERATION
        body = response(command, status, comment)
        pdv = _PDV_HEADER.pack(len(body) + 2, context_id, 3)
        self.socket.sendall(PDU_HEADER.pack(P_DATA, len(pdv) + len(body)) + pdv + body)

    def check_context(self, context_id: int) -> None:
        """Refuse fragments of a context that was not accepted."""
        if context_id not in self._contexts:
            raise _Abort(_INVALID_PARAMETER, f"presentation context {context_id} was not accepted")

    def next_data_pdu(self) -> int:
        """Length of the next PDU, which must be P-DATA as a message is not complete."""
        kind, length = self._pdu_header()
        if kind == P_DATA:
            self.check_length(length)
            return length
        if kind == ABORT:
            raise _Closed("aborted by the peer within a message")
        raise _Abort(_UNEXPECTED_PDU, f"PDU type {kind} within a message")

    def check_length(self, length: int) -> None:
        """Hold the peer to the maximum length that it was told."""
        limit = self.receiver.listener.max_pdu or MAX_INSTANCE_BYTES
        if length > limit + PDU_SLACK:
            raise _Abort(_INVALID_PARAMETER, f"a PDU of {length} bytes, expected at most {limit}")

    def pdv_header(self) -> tuple[int, int, int]:
        """Length of the fragment, its context, and its message control header."""
        length, context_id, control = _PDV_HEADER.unpack(self._read(_PDV_HEADER.size))
        return length - 2, context_id, control


class _Fragments:
    """Walks the presentation data values of one message (PS3.8 9.3.5.1, Annex E.2)."""

    def __init__(self, connection: _Connection, first_length: int) -> None:
        connection.check_length(first_length)
        self._connection = connection
        self._left = first_length
        self.context_id = 0

    def of_kind(self, *, is_command: bool) -> Iterator[int]:
        """Lengths of the fragments of the command set or of the data set, up to the last; the caller reads each."""
        last = False
        while not last:
            while self._left == 0:
                self._left = self._connection.next_data_pdu()
            if self._left < _PDV_HEADER.size:
                raise _Abort(_INVALID_PARAMETER, "a P-DATA PDU that ends within an item")
            length, context_id, control = self._connection.pdv_header()
            self._left -= _PDV_HEADER.size
            if not 0 <= length <= self._left:
                raise _Abort(_INVALID_PARAMETER, "a presentation data value longer than its PDU")
            self._check(context_id, control, is_command=is_command)
            last = bool(control & 2)
            self._left -= length
            yield length

    def _check(self, context_id: int, control: int, *, is_command: bool) -> None:
        self._connection.check_context(context_id)
        if self.context_id not in (0, context_id):
            raise _Abort(_INVALID_PARAMETER, "one message in two presentation contexts")
        self.context_id = context_id
        if bool(control & 1) is not is_command:
            expected = "the command set" if is_command else "the data set"
            raise _Abort(_INVALID_PARAMETER, f"expected a fragment of {expected}")

    def expect_end(self) -> None:
        """A message ends with its PDU (PS3.8 Annex E.1: no PDU holds fragments of more than one message)."""
        if self._left:
            raise _Abort(_INVALID_PARAMETER, "a P-DATA PDU with more than one message")


@dataclass(eq=False)
class BlockingReceiver:
    """C-ECHO and C-STORE by blocking threads; the same interface as `StockReceiver`."""

    listener: Listener
    inherited: socket.socket
    writer: SpoolWriter

    def __post_init__(self) -> None:
        self.contexts = supported_contexts()
        self.tls = server_tls_context(self.listener)
        self.large = threading.Lock()
        self._lock = threading.Lock()
        self._connections: set[_Connection] = set()
        self._stop = threading.Event()
        self.inherited.setblocking(False)

    def serve(self) -> None:
        """Accept connections until `stop_accepting`."""
        poll = select.poll()
        poll.register(self.inherited, select.POLLIN)
        while not self._stop.is_set():
            if poll.poll(200) and not self._stop.is_set():
                # The process with the fewest associations takes it: the others look a little later.
                time.sleep(min(0.001 * len(self._connections), 0.02) if self.listener.processes > 1 else 0)
                self._accept()
        self.inherited.close()  # our descriptor only: the siblings go on accepting

    def _accept(self) -> None:
        try:
            client, address = self.inherited.accept()
        except OSError as error:  # a sibling was faster, the peer gave up, or out of file descriptors
            LOGGER.debug("accept: %s", error)
            return
        if len(self._connections) >= 2 * self.listener.max_associations + 32:
            LOGGER.warning("connection from %s closed: too many that have not asked for an association", address[0])
            client.close()
            return
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = _Connection(self, client, address[0])
        with self._lock:
            self._connections.add(connection)
        threading.Thread(target=connection.run, name=f"association {address[0]}", daemon=True).start()

    def admit(self, connection: _Connection) -> bool:
        """Count an association; False where there are too many."""
        with self._lock:
            if sum(other.established for other in self._connections) >= self.listener.max_associations:
                return False
            connection.established = True
            return True

    def forget(self, connection: _Connection) -> None:
        """A connection is over."""
        with self._lock:
            self._connections.discard(connection)

    def stop_accepting(self) -> None:
        """Take no new connection; open associations go on."""
        self._stop.set()

    def finish(self, seconds: float) -> None:
        """End the associations that are idle, let busy ones end by themselves, and all of them after `seconds`."""
        deadline = time.monotonic() + seconds
        while True:
            with self._lock:
                connections = list(self._connections)
            if not connections:
                return
            now = time.monotonic()
            for connection in connections:
                idle = now - connection.between_messages_since > _IDLE_AT_STOP
                if (idle or now > deadline) and not connection.stopping:
                    connection.interrupt()
            if now > deadline + LINGER_SECONDS:
                return
            time.sleep(0.05)
