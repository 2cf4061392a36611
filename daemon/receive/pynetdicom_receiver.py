"""The receiver on pynetdicom's public event handlers: the reference path, and the fall-back of the fast one."""

from __future__ import annotations

import logging
import socket
import ssl
import time
import uuid
from socketserver import BaseServer
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import AE, _config, evt
from pynetdicom.transport import ThreadedAssociationServer

from daemon.config.sections import Listener
from daemon.receive.contexts import _register_storage_classes, server_tls_context, supported_contexts
from daemon.receive.refusals import RefusalLog
from daemon.receive.store import CONGESTED, Sender, Status, StoreRequest, refuse_sender, store, take_commitment
from daemon.receive.transport import HANDSHAKE_SECONDS
from daemon.spool.backpressure import is_behind
from daemon.spool.writer import SpoolWriter

log = logging.getLogger(__name__)


class SharedSocketServer(ThreadedAssociationServer):
    """An association server on a listening socket that it inherited and shares with its sibling processes.

    Overrides `server_bind`, `server_activate`, `get_request`, `finish_request` and the two ways to close.
    """

    daemon_threads = True

    def __init__(self, inherited: socket.socket, *arguments: Any, **keywords: Any) -> None:
        self._inherited = inherited
        self.socket: Any
        super().__init__(*arguments, **keywords)

    def server_bind(self) -> None:
        """Take the inherited socket instead of binding one; siblings race for each connection, so it never blocks."""
        self.socket.close()
        self.socket = self._inherited
        self.socket.setblocking(False)
        self.server_address = self.socket.getsockname()

    def server_activate(self) -> None:
        """It listens already."""

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept without the TLS handshake, with which a bad client could hold up all others."""
        client, address = self.socket.accept()
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return client, address

    def finish_request(self, request: Any, client_address: Any) -> None:
        """In the connection's own thread: TLS handshake, then the association."""
        if self.ssl_context is not None:
            request.settimeout(HANDSHAKE_SECONDS)
            try:
                request = self.ssl_context.wrap_socket(request, server_side=True)
            except (OSError, ssl.SSLError) as error:
                log.warning("TLS handshake with %s failed: %s", client_address[0], error)
                self.shutdown_request(request)
                return
            request.settimeout(None)
        super().finish_request(request, client_address)

    def server_close(self) -> None:
        """Close our descriptor only; a shutdown would stop the siblings too."""
        self.socket.close()

    def shutdown(self) -> None:
        """Stop accepting."""
        BaseServer.shutdown(self)
        self.server_close()


class StockReceiver:
    """C-ECHO and C-STORE by pynetdicom's reactor threads."""

    def __init__(
        self, listener: Listener, inherited: socket.socket, writer: SpoolWriter, refusals: RefusalLog | None = None
    ) -> None:
        _config.LOG_HANDLER_LEVEL = "none"  # its handlers write data sets into debug logs
        self._listener = listener
        self._writer = writer
        self._refusals = refusals or RefusalLog()
        entity = AE(ae_title=listener.ae_title)
        entity.maximum_associations = listener.max_associations
        entity.maximum_pdu_size = listener.max_pdu
        entity.network_timeout = listener.idle_seconds
        entity.dimse_timeout = listener.idle_seconds
        entity.supported_contexts = supported_contexts(listener)
        _register_storage_classes(entity.supported_contexts[1:])
        self._entity = entity
        self._server = SharedSocketServer(
            inherited,
            entity,
            inherited.getsockname(),
            listener.ae_title,
            entity.supported_contexts,
            server_tls_context(listener),
            evt_handlers=[
                (evt.EVT_REQUESTED, self._on_requested),
                (evt.EVT_ACCEPTED, self._on_accepted),
                (evt.EVT_C_ECHO, self._on_echo),
                (evt.EVT_C_STORE, self._on_store),
                (evt.EVT_N_EVENT_REPORT, self._on_event_report),
                (evt.EVT_CONN_CLOSE, self._on_close),
            ],
        )

    def serve(self) -> None:
        """Accept associations until `stop_accepting`."""
        self._server.serve_forever(poll_interval=0.2)

    def stop_accepting(self) -> None:
        """Take no new association; open ones go on."""
        self._server.shutdown()

    def finish(self, seconds: float) -> None:
        """Let open associations end, and abort those that are still there after `seconds`."""
        deadline = time.monotonic() + seconds
        while self._server.active_associations and time.monotonic() < deadline:
            time.sleep(0.05)
        for association in self._server.active_associations:
            association.abort()

    def _on_requested(self, event: Any) -> None:
        association = event.assoc
        association.spool_name = f"{self._writer.receiver}/{uuid.uuid4().hex}"
        request = association.requestor.primitive
        called, calling = request.called_ae_title, request.calling_ae_title
        peer = association.requestor.address
        refusal = refuse_sender(self._listener, called, calling, peer)
        if refusal is None and is_behind(self._writer.folder):
            refusal = CONGESTED
        if refusal is None:
            log.info("association from %r at %s", calling, peer)
            return
        self._refusals.association(refusal, calling_aet=calling, called_aet=called, peer=peer)
        association.acse.send_reject(refusal.result, refusal.source, refusal.reason)
        association.kill()

    def _on_accepted(self, event: Any) -> None:
        self._refusals.contexts(
            (context.abstract_syntax for context in event.assoc.rejected_contexts),
            calling_aet=event.assoc.requestor.ae_title,
            peer=event.assoc.requestor.address,
        )

    def _on_echo(self, event: Any) -> int:
        del event
        return Status.SUCCESS

    def _on_store(self, event: Any) -> Dataset:
        association = event.assoc
        sender = Sender(association.spool_name, association.requestor.ae_title, association.requestor.address)
        request = StoreRequest(
            affected_sop_class_uid=str(event.request.AffectedSOPClassUID),
            affected_sop_instance_uid=str(event.request.AffectedSOPInstanceUID),
            abstract_syntax=str(UID(event.context.abstract_syntax)),
            transfer_syntax_uid=str(event.context.transfer_syntax),
        )
        association.has_stored = True
        outcome = store(self._writer, request, [event.request.DataSet.getbuffer()], sender)
        answer = Dataset()
        answer.Status = int(outcome.status)
        if outcome.comment:
            answer.ErrorComment = outcome.comment
        return answer

    def _on_event_report(self, event: Any) -> tuple[int, None]:
        encoded = event.request.EventInformation.getvalue()
        sender = event.assoc.requestor.ae_title
        outcome = take_commitment(self._writer, encoded, str(event.context.transfer_syntax), sender)
        return int(outcome.status), None

    def _on_close(self, event: Any) -> None:
        if getattr(event.assoc, "has_stored", False):
            self._writer.end_association(event.assoc.spool_name)
