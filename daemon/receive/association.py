"""The fast receiver: one thread for each association, blocking reads, encoded data sets kept as they come.

pynetdicom polls its socket and its queues every millisecond, which is most of what an instance costs there. Here the
association's thread sleeps in the kernel until bytes are there, reads them to where the writer takes them from, and
answers after the commit. Negotiation is pynetdicom's (`negotiation`); C-STORE, C-ECHO and N-EVENT-REPORT are
all that follows.
"""

from __future__ import annotations

import logging
import math
import select
import socket
import threading
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field

from daemon.config.sections import Listener
from daemon.receive.contexts import server_tls_context, supported_contexts
from daemon.receive.dimse import (
    C_CANCEL_RQ,
    C_ECHO_RQ,
    C_STORE_RQ,
    MAX_COMMAND_BYTES,
    N_EVENT_REPORT_RQ,
    RESPONSE,
    UNRECOGNIZED_OPERATION,
    Command,
    MalformedCommand,
    read_command,
    response,
)
from daemon.receive.negotiation import (
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
from daemon.receive.refusals import RefusalLog
from daemon.receive.slots import Slots
from daemon.receive.store import (
    CONGESTED,
    TOO_MANY,
    Sender,
    Status,
    StoreRequest,
    refuse_sender,
    store,
    take_commitment,
)
from daemon.receive.transport import (
    ARTIM_SECONDS,
    INVALID_PARAMETER,
    LINGER_SECONDS,
    PROVIDER,
    UNEXPECTED_PDU,
    Abort,
    Buffer,
    Closed,
    Fragments,
    Stream,
)
from daemon.spool.backpressure import is_behind
from daemon.spool.commitment_reports import STORAGE_COMMITMENT
from daemon.spool.writer import SpoolWriter

log = logging.getLogger(__name__)

MAX_REQUEST_BYTES = 1 << 20
_IDLE_AT_STOP = 0.5


@dataclass(eq=False)
class _Connection:
    """One TCP connection and the association on it."""

    receiver: BlockingReceiver
    stream: Stream
    peer: str
    between_messages_since: float = field(default_factory=time.monotonic)
    """Monotonic time at which the last message ended; infinite within a message."""
    answering: bool = False
    """Whether a message is all there and its answer is not."""
    _contexts: dict[int, Context] = field(default_factory=dict)
    _max_pdu: int = 0
    """The longest that the peer takes, bytes; 0: any."""
    _counts: Counter[int] = field(default_factory=Counter)

    def run(self) -> None:
        """From the TLS handshake to the end of the connection."""
        buffer = Buffer(self.receiver.writer.folder, self.receiver.writer.min_free_bytes)
        try:
            self.stream.handshake(self.receiver.tls)
            self._associate(buffer)
        except Closed as end:
            log.info("connection from %s ended: %s", self.peer, end)
        except Abort as fault:
            log.warning("association with %s aborted: %s", self.peer, fault)
            self.stream.send_last(fault.pdu)
        except OSError as error:
            log.info("connection from %s broke: %s", self.peer, error)
        except Exception:
            log.exception("association with %s aborted", self.peer)
            self.stream.send_last(abort(PROVIDER, INVALID_PARAMETER))
        finally:
            buffer.reset()
            self.stream.close()
            self.receiver.slots.leave(self)

    def received(self) -> int:
        """Bytes that came so far."""
        return self.stream.received()

    def has_input(self) -> bool:
        """Whether bytes wait to be read."""
        return self.stream.has_input()

    def push_out(self, why: str) -> None:
        """End it, from another thread."""
        if not self.stream.stopping:
            self.stream.interrupt(why)

    def _associate(self, buffer: Buffer) -> None:
        self.stream.limit(ARTIM_SECONDS)
        kind, length = self.stream.pdu_header()
        if kind != ASSOCIATE_RQ:
            raise Abort(UNEXPECTED_PDU, f"expected an A-ASSOCIATE-RQ, got PDU type {kind}")
        if length > MAX_REQUEST_BYTES:
            raise Abort(INVALID_PARAMETER, f"an A-ASSOCIATE-RQ of {length} bytes")
        try:
            request = read_request(PDU_HEADER.pack(kind, length) + bytes(self.stream.read(length)))
        except MalformedRequest as error:
            raise Abort(INVALID_PARAMETER, f"A-ASSOCIATE-RQ: {error}") from error
        refusal = refuse_sender(self.receiver.listener, request.called_aet, request.calling_aet, self.peer)
        if refusal is None and is_behind(self.receiver.writer.folder):
            refusal = CONGESTED
        if refusal is None and not self.receiver.slots.admit(self):
            refusal = TOO_MANY
        if refusal is not None:
            self.receiver.refusals.association(
                refusal, calling_aet=request.calling_aet, called_aet=request.called_aet, peer=self.peer
            )
            self.stream.send_last(refuse(refusal))
            return
        self._serve(request, buffer)

    def _serve(self, request: AssociationRequest, buffer: Buffer) -> None:
        answer, self._contexts = accept(request, self.receiver.contexts, self.receiver.listener.max_pdu)
        self._max_pdu = request.max_pdu
        name = f"{self.receiver.writer.receiver}/{uuid.uuid4().hex}"
        sender = Sender(name, request.calling_aet, self.peer)
        log.info("association from %r at %s", request.calling_aet, self.peer)
        refused = (c.abstract_syntax for number, c in request.contexts.items() if number not in self._contexts)
        self.receiver.refusals.contexts(refused, calling_aet=request.calling_aet, peer=self.peer)
        self.stream.set_timeout(self.receiver.listener.idle_seconds)
        try:
            self.stream.send(answer)
            while self._serve_pdu(sender, buffer):
                pass
        finally:
            if self._counts[Status.SUCCESS]:
                self.receiver.writer.end_association(name)
            counts = ", ".join(f"{count} x 0x{status:04X}" for status, count in sorted(self._counts.items()))
            log.info("association from %r at %s over: %s", request.calling_aet, self.peer, counts or "no C-STORE")

    def _serve_pdu(self, sender: Sender, buffer: Buffer) -> bool:
        """Take what comes next, between two messages; False where that was the end."""
        self.between_messages_since = time.monotonic()
        self.stream.limit(math.inf)
        kind, length = self.stream.pdu_header()
        self.between_messages_since = float("inf")
        if kind == P_DATA:
            self.stream.limit(self.receiver.listener.idle_seconds)
            self._serve_message(length, sender, buffer)
            return True
        if kind == RELEASE_RQ:
            self.stream.send_last(release_response())
            return False
        if kind == ABORT:
            raise Closed("aborted by the peer")
        raise Abort(UNEXPECTED_PDU, f"PDU type {kind} within an association")

    def _serve_message(self, first_length: int, sender: Sender, buffer: Buffer) -> None:
        fragments = Fragments(self.stream, first_length, self._contexts)
        command_bytes = bytearray()
        for length in fragments.of_kind(is_command=True):
            if len(command_bytes) + length > MAX_COMMAND_BYTES:
                raise Abort(INVALID_PARAMETER, f"a command set of more than {MAX_COMMAND_BYTES} bytes")
            command_bytes += self.stream.read(length)
        try:
            command = read_command(command_bytes)
        except MalformedCommand as error:
            raise Abort(INVALID_PARAMETER, f"command set: {error}") from error
        buffer.reset()
        if command.has_data_set:
            for length in fragments.of_kind(is_command=False):
                buffer.receive(self.stream, length)
        fragments.expect_end()
        self.answering = True
        self._answer(command, fragments.context_id, sender, buffer)
        self.answering = False

    def _answer(self, command: Command, context_id: int, sender: Sender, buffer: Buffer) -> None:
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
            outcome = store(
                self.receiver.writer, request, buffer.parts(), sender, buffer.checksum, failure=buffer.failure
            )
            status, comment = int(outcome.status), outcome.comment
            self._counts[status] += 1
            buffer.reset()
        elif command.command == N_EVENT_REPORT_RQ and command.sop_class_uid == STORAGE_COMMITMENT:
            syntax = self._contexts[context_id].transfer_syntax_uid
            outcome = take_commitment(self.receiver.writer, buffer.parts(), syntax, sender.calling_aet)
            status, comment = int(outcome.status), outcome.comment
            buffer.reset()
        elif command.command != C_ECHO_RQ:
            status = UNRECOGNIZED_OPERATION
        body = response(command, status, comment)
        self.stream.send_command(body, context_id, self._max_pdu)


@dataclass(eq=False)
class BlockingReceiver:
    """C-ECHO, C-STORE and reports of storage commitment by blocking threads."""

    listener: Listener
    inherited: socket.socket
    writer: SpoolWriter
    refusals: RefusalLog = field(default_factory=RefusalLog)

    def __post_init__(self) -> None:
        self.contexts = supported_contexts(self.listener)
        self.tls = server_tls_context(self.listener)
        self.slots = Slots(self.listener.max_associations)
        self._stop = threading.Event()
        self.inherited.setblocking(False)

    def serve(self) -> None:
        """Accept connections until `stop_accepting`."""
        poll = select.poll()
        poll.register(self.inherited, select.POLLIN)
        while not self._stop.is_set():
            if poll.poll(200) and not self._stop.is_set():
                # The process with the fewest associations takes it: the others look a little later.
                time.sleep(min(0.001 * len(self.slots), 0.02) if self.listener.processes > 1 else 0)
                self._accept()
        self.inherited.close()  # our descriptor only: the siblings go on accepting

    def _accept(self) -> None:
        try:
            client, address = self.inherited.accept()
        except OSError as error:  # a sibling was faster, the peer gave up, or out of file descriptors
            log.debug("accept: %s", error)
            return
        connection = _Connection(self, Stream(client, max_pdu=self.listener.max_pdu), address[0])
        if not self.slots.enter(connection):
            log.warning("connection from %s closed: too many that have not asked for an association", address[0])
            client.close()
            return
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=connection.run, name=f"association {address[0]}", daemon=True).start()

    def stop_accepting(self) -> None:
        """Take no new connection; open associations go on."""
        self._stop.set()

    def finish(self, seconds: float) -> None:
        """End the associations that are idle, let busy ones end by themselves, and all of them after `seconds`."""
        deadline = time.monotonic() + seconds
        while True:
            connections = self.slots.connections()
            if not connections:
                return
            now = time.monotonic()
            for connection in connections:
                idle = now - connection.between_messages_since > _IDLE_AT_STOP
                if idle or now > deadline:
                    connection.push_out("the receiver is shutting down")
            if now > deadline + LINGER_SECONDS:
                return
            time.sleep(0.05)
