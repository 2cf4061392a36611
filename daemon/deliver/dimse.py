"""Destinations by DIMSE: C-ECHO, C-STORE, C-FIND, storage commitment (PS3.7 9.1 and 10.1, PS3.4 Annexes B, C, J)."""

from __future__ import annotations

import logging
import ssl
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from pydicom import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from pynetdicom import AE, _config, evt
from pynetdicom.association import Association
from pynetdicom.pdu_primitives import SCP_SCU_RoleSelectionNegotiation
from pynetdicom.sop_class import (
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
    StudyRootQueryRetrieveInformationModelFind,
    Verification,
)

from daemon.config.sections import ClientTls
from daemon.deliver.addresses import addresses_of
from daemon.deliver.outgoing import NotOffered, OnOutcome, OnReport, Outgoing, StoreOutcome, no_one
from daemon.errors import DaemonError, Permanent, Retryable
from dicom_io.errors import FileError
from dicom_io.header import MALFORMED
from dicom_io.reading import read_dataset

log = logging.getLogger(__name__)

_config.STORE_SEND_CHUNKED_DATASET = True  # a file is sent as it lies, and not decoded and encoded again

MAX_CONTEXTS = 128
"""Presentation contexts in one association (PS3.8 9.3.2.2: odd identifiers 1 to 255)."""

CONVERTIBLE = frozenset(
    {ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian}
)
"""Uncompressed transfer syntaxes, between which pynetdicom re-encodes when the peer accepts another one."""

FIND_PENDING = (0xFF00, 0xFF01)
"""A match, PS3.4 Table C.4-1."""

COMMITMENT_REQUEST = 1
"""Action Type ID (PS3.4 Table J.3-1)."""

SAME_ASSOCIATION_SECONDS = 1.0
"""How long the association of a request for commitment stays open for the answer; then it comes on another one."""

ECHO_SECONDS = 10.0
"""How long the answer to a C-ECHO may take."""

NO_ANSWER = "no answer: the association timed out, was aborted or lost"

CONNECT_SECONDS = 10.0
"""How long a TCP connection may take."""


Contexts = list[tuple[str, tuple[str, ...]]]
"""SOP classes, each with the transfer syntaxes of one presentation context."""


@dataclass(frozen=True)
class Peer:
    """An application entity to call."""

    ae_title: str
    host: str
    port: int
    tls: ClientTls | None = None
    loopback_only: bool = False
    """What it is sent must not leave this machine."""

    def __str__(self) -> str:
        return f"{self.ae_title}@{self.host}:{self.port}"


def parse_peer(text: str) -> Peer:
    """Read `AET@HOST:PORT`.

    Raises:
        DaemonError: the text has another form.
    """
    ae_title, at, address = text.rpartition("@")
    host, colon, port = address.rpartition(":")
    if not (at and colon and ae_title and host and port.isdigit() and 0 < int(port) < 65536):
        raise DaemonError(f"peer: expected AET@HOST:PORT, got {text!r}")
    if len(ae_title) > 16:
        raise DaemonError(f"peer: an AE title has at most 16 characters (PS3.5 6.2), got {ae_title!r}")
    return Peer(ae_title, host.strip("[]"), int(port))


@dataclass(frozen=True)
class DimseClient:
    """One application entity as we talk to it: C-ECHO, C-STORE, C-FIND and storage commitment.

    Attributes:
        peer: Who is called.
        calling_aet: Our AE title.
        timeout: Seconds to wait for each answer.
        associations: How many `store` uses at the same time at most.
    """

    peer: Peer
    calling_aet: str
    timeout: float = 60
    associations: int = 1

    query: ClassVar[str] = "C-FIND"
    """How `held` asks."""
    sign_of_life: ClassVar[str] = "C-ECHO"
    """How `echo` asks."""

    def echo(self) -> None:
        """C-ECHO, which must be answered within 10 s.

        Raises:
            Retryable: the peer cannot be reached, refuses, or answers with a failure.
        """
        ae = self.application_entity(min(self.timeout, ECHO_SECONDS))
        ae.add_requested_context(Verification)
        association = associate(ae, self.peer)
        try:
            status = association.send_c_echo()
        finally:
            association.release()
        if "Status" not in status or status.Status != 0x0000:
            got = f"0x{status.Status:04X}" if "Status" in status else "no answer"
            raise Retryable(f"C-ECHO to {self.peer}: expected status 0x0000, got {got}")

    def refuses(self, sop_class_uids: Sequence[str]) -> list[str]:
        """Storage SOP classes that the peer does not take in any transfer syntax that our results are sent in.

        Nothing is sent: an association is negotiated as `store` does it, and released.

        Raises:
            Retryable: no association could be made.
        """
        ae = self.application_entity(min(self.timeout, ECHO_SECONDS))
        for sop_class_uid in sop_class_uids:
            for syntaxes in _proposals(ExplicitVRLittleEndian):
                ae.add_requested_context(sop_class_uid, list(syntaxes))
        try:
            association = associate(ae, self.peer)
        except NotOffered:
            return list(sop_class_uids)
        taken = {str(context.abstract_syntax) for context in association.accepted_contexts}
        association.release()
        return [uid for uid in sop_class_uids if uid not in taken]

    def store(self, files: Sequence[Outgoing], *, on_outcome: OnOutcome = no_one) -> list[StoreOutcome]:
        """C-STORE all files, in as few associations as the presentation contexts allow, or in several at a time.

        Files go out as they are encoded; only uncompressed ones are re-encoded where the peer takes another syntax.
        They are begun in their order. A peer that refuses further associations gets all by those that it takes.
        `on_outcome` is called by one thread at a time.

        Raises:
            Retryable: no association could be made. Once one is made, every file has an outcome.
        """
        outcomes: list[StoreOutcome] = []

        def note(outcome: StoreOutcome) -> None:
            outcomes.append(outcome)
            on_outcome(outcome)

        for batch, contexts in _batches(files):
            share = _Share(deque(batch), note)
            first = self._storage_association(contexts)
            with ThreadPoolExecutor(self.associations) as others:
                more = min(self.associations, len(batch)) - 1
                pending = [others.submit(self._join, share, contexts) for _ in range(more)]
                share.send(first)
                for other in pending:
                    other.result()
            share.give_up()
        return outcomes

    def _storage_association(self, contexts: Contexts) -> Association:
        """An association for these presentation contexts.

        Raises:
            Retryable: none could be made.
        """
        ae = self.application_entity(self.timeout)
        for sop_class_uid, syntaxes in contexts:
            ae.add_requested_context(sop_class_uid, list(syntaxes))
        return associate(ae, self.peer)

    def _join(self, share: _Share, contexts: Contexts) -> None:
        """Send some of the files by a further association, where one can be made; the first is there in any case."""
        try:
            association = self._storage_association(contexts)
        except DaemonError as error:
            log.info("%s takes no further association: %s", self.peer, error)
            return
        share.send(association)

    def held(self, study_uid: str, series_uid: str) -> set[str]:
        """SOP Instance UIDs of a series that the peer knows, by C-FIND at image level (PS3.4 C.4.1).

        Raises:
            NotOffered: the peer has no Study Root C-FIND, or not at this level.
            Retryable: it cannot be reached, or does not answer to the end.
        """
        identifier = Dataset()
        identifier.QueryRetrieveLevel = "IMAGE"
        identifier.StudyInstanceUID = study_uid
        identifier.SeriesInstanceUID = series_uid
        identifier.SOPInstanceUID = ""
        ae = self.application_entity(self.timeout)
        ae.add_requested_context(StudyRootQueryRetrieveInformationModelFind)
        association = associate(ae, self.peer)
        found: set[str] = set()
        try:
            for answer, match in association.send_c_find(identifier, StudyRootQueryRetrieveInformationModelFind):
                if "Status" not in answer:
                    raise Retryable(f"{self.peer}: C-FIND: no answer")
                if answer.Status in FIND_PENDING and match is not None:
                    found.add(str(match.get("SOPInstanceUID", "")))
                elif answer.Status != 0x0000:
                    raise NotOffered(f"{self.peer}: C-FIND: status 0x{answer.Status:04X}")
        finally:
            if association.is_established:
                association.release()
        return found

    def request_commitment(self, transaction_uid: str, files: Sequence[Outgoing], on_report: OnReport) -> None:
        """Ask for storage commitment of all files in one transaction, by N-ACTION (PS3.4 J.3.2).

        Args:
            transaction_uid: Of the transaction; it is on record already, as the answer may overtake the response.
            files: What was accepted.
            on_report: Given the Event Information of an answer that comes on this association.

        Raises:
            NotOffered: the peer has no storage commitment, or refuses it for these.
            Retryable: the peer cannot be reached.
        """
        answered = threading.Event()

        def take(event: evt.Event) -> tuple[int, Dataset | None]:
            on_report(event.event_information)
            answered.set()
            return 0x0000, None

        ae = self.application_entity(self.timeout)
        ae.add_requested_context(StorageCommitmentPushModel, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
        association = associate(ae, self.peer, [(evt.EVT_N_EVENT_REPORT, take)])
        try:
            status, _ = association.send_n_action(
                _references(transaction_uid, files),
                COMMITMENT_REQUEST,
                StorageCommitmentPushModel,
                StorageCommitmentPushModelInstance,
            )
            if "Status" not in status or status.Status != 0x0000:
                got = f"status 0x{status.Status:04X}" if "Status" in status else "no answer"
                raise NotOffered(f"{self.peer}: N-ACTION for storage commitment: expected status 0x0000, got {got}")
            answered.wait(SAME_ASSOCIATION_SECONDS)
        finally:
            if association.is_established:
                association.release()

    def application_entity(self, timeout: float) -> AE:
        """An AE of ours that waits `timeout` seconds for answers."""
        ae = AE(ae_title=self.calling_aet)
        ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = timeout
        ae.connection_timeout = min(timeout, CONNECT_SECONDS)
        return ae


@dataclass(eq=False)
class _Share:
    """Files that wait, and the associations that take one after the other from them."""

    waiting: deque[Outgoing]
    note: OnOutcome
    _noting: threading.Lock = field(default_factory=threading.Lock)

    def send(self, association: Association) -> None:
        """Send until nothing waits or the association has ended, and release it; an error ends the others, too."""
        try:
            while association.is_established:
                try:
                    outgoing = self.waiting.popleft()
                except IndexError:
                    return
                outcome = _store_one(association, outgoing)
                with self._noting:
                    self.note(outcome)
                if outcome.reason == NO_ANSWER:  # pynetdicom may need a moment to see that it has ended
                    return
        except BaseException:
            self.waiting.clear()
            raise
        finally:
            if association.is_established:
                association.release()

    def give_up(self) -> None:
        """What waits when all associations have ended was not sent."""
        while self.waiting:
            self.note(StoreOutcome(self.waiting.popleft(), None, "the association ended before this instance was sent"))


def _references(transaction_uid: str, files: Sequence[Outgoing]) -> Dataset:
    """The Action Information of a request (PS3.4 Table J.3-1)."""
    dataset = Dataset()
    dataset.TransactionUID = transaction_uid
    dataset.ReferencedSOPSequence = []
    for outgoing in files:
        item = Dataset()
        item.ReferencedSOPClassUID = outgoing.sop_class_uid
        item.ReferencedSOPInstanceUID = outgoing.sop_instance_uid
        dataset.ReferencedSOPSequence.append(item)
    return dataset


class Checkpoint:
    """Where the thread of an association rests while a request of ours is under way; in place of pynetdicom's event.

    That thread takes every message that it finds from the queue, also the answer that a request waits for, and
    pynetdicom's pause does not hold it for certain: `_is_paused` still says yes when the thread has just gone on. On a
    busy machine it was descheduled there, took the answer as soon as that came, and the request waited until its time
    was over. Here `clear` returns only when the thread rests, or has ended.
    """

    def __init__(self, association: threading.Thread) -> None:
        self._association = association
        self._changed = threading.Condition()
        self._open, self._rests = True, False

    def wait(self) -> None:
        """Rest until `set`, called by the association's thread."""
        with self._changed:
            while not self._open:
                self._rests = True
                self._changed.notify_all()
                self._changed.wait()

    def clear(self) -> None:
        """Let the association's thread rest, and wait until it does."""
        with self._changed:
            self._open = False
            while self._association.is_alive() and not self._rests:
                self._changed.wait(0.05)

    def set(self) -> None:
        """Let it go on."""
        with self._changed:
            self._open, self._rests = True, False
            self._changed.notify_all()


def associate(
    ae: AE,
    peer: Peer,
    handlers: Sequence[tuple[evt.EventType, Callable[..., object]]] = (),
    roles: Sequence[SCP_SCU_RoleSelectionNegotiation] = (),
) -> Association:
    """An established association with one of the peer's addresses, the first that takes a connection.

    Args:
        ae: Ours, with the presentation contexts that are asked for.
        peer: Who is called.
        handlers: Of what comes on it.
        roles: For which SOP classes we are the provider (PS3.7 D.3.3.4).

    Raises:
        NotOffered: the peer accepts none of the presentation contexts.
        Retryable: it cannot be reached, refuses, aborts, or shows no certificate that we trust.
        Permanent: what is to be sent must not leave this machine, and the peer is elsewhere.
    """
    for address in addresses_of(peer.host, peer.port, loopback_only=peer.loopback_only):
        connected: list[evt.Event] = []
        association = ae.associate(
            address,
            peer.port,
            ae_title=peer.ae_title,
            max_pdu=0,
            tls_args=None if peer.tls is None else (_tls_context(peer.tls), peer.host),
            evt_handlers=[(evt.EVT_CONN_OPEN, connected.append), *handlers],
            ext_neg=list(roles),
        )
        if association.is_established:
            association._reactor_checkpoint = Checkpoint(association)
            return association
        if connected:
            raise _unwelcome(association, peer)
    raise Retryable(f"{peer} cannot be reached: no {'TLS' if peer.tls else 'TCP'} connection")


def _unwelcome(association: Association, peer: Peer) -> Retryable:
    """Why a peer that took the connection gave no association."""
    if association.is_rejected:
        return Retryable(f"{peer} refused the association: {_refusal(association)}")
    if association.rejected_contexts:
        asked = ", ".join(sorted({context.abstract_syntax.name for context in association.rejected_contexts}))
        return NotOffered(f"{peer} accepted none of the presentation contexts: {asked}")
    return Retryable(f"{peer} aborted the association or did not answer")


def _tls_context(tls: ClientTls) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=str(tls.ca) if tls.ca else None)
        if tls.cert is not None and tls.key is not None:
            context.load_cert_chain(tls.cert, tls.key)
    except OSError as error:  # ssl.SSLError is one
        raise Permanent(f"destination's tls: {error}") from error
    return context


def _refusal(association: Association) -> str:
    primitive = association.acceptor.primitive
    if primitive is None:
        return "no reason given"
    return f"{primitive.result_str}, {primitive.source_str}, {primitive.reason_str}"


def _batches(files: Sequence[Outgoing]) -> Iterator[tuple[list[Outgoing], Contexts]]:
    """Groups of files whose presentation contexts fit into one association."""
    batch: list[Outgoing] = []
    contexts: dict[tuple[str, tuple[str, ...]], None] = {}  # in the order in which they were needed
    for outgoing in files:
        wanted = [(outgoing.sop_class_uid, syntaxes) for syntaxes in _proposals(UID(outgoing.transfer_syntax_uid))]
        if len(contexts.keys() | set(wanted)) > MAX_CONTEXTS:
            yield batch, list(contexts)
            batch, contexts = [], {}
        contexts.update(dict.fromkeys(wanted))
        batch.append(outgoing)
    if batch:
        yield batch, list(contexts)


def _proposals(own: UID) -> tuple[tuple[str, ...], ...]:
    """Transfer syntaxes of each context: a file's own alone, so that the peer cannot prefer another, then others."""
    if own not in CONVERTIBLE:
        return ((str(own),),)
    others = tuple(str(s) for s in (ExplicitVRLittleEndian, ImplicitVRLittleEndian) if s != own)
    return ((str(own),), others)


def _goes_as_it_lies(association: Association, outgoing: Outgoing) -> bool:
    """Whether the file is known to be what was encoded, and the peer takes its own transfer syntax."""
    return bool(outgoing.sha256) and any(
        context.abstract_syntax == outgoing.sop_class_uid
        and context.transfer_syntax[0] == outgoing.transfer_syntax_uid
        and context.as_scu
        for context in association.accepted_contexts
    )


def _store_one(association: Association, outgoing: Outgoing) -> StoreOutcome:
    changed = outgoing.changed()
    if changed:
        return StoreOutcome(outgoing, None, f"not sent: {changed}")
    dataset: Dataset | Path = outgoing.path
    try:
        if not _goes_as_it_lies(association, outgoing):
            dataset = read_dataset(outgoing.path)  # pydicom alone stops at an unknown VR
    except OSError as error:
        raise Permanent(f"{outgoing.path} cannot be read: {error}") from error
    except (FileError, InvalidDicomError, *MALFORMED) as error:
        return StoreOutcome(outgoing, None, f"not sent: expected a DICOM file (PS3.10): {error}")
    try:
        answer = association.send_c_store(dataset)
    except (ValueError, RuntimeError) as error:  # no accepted context, or the association ended meanwhile
        return StoreOutcome(outgoing, None, f"not sent: {error}")
    if "Status" not in answer:
        return StoreOutcome(outgoing, None, NO_ANSWER)
    status = int(answer.Status)
    if status == 0x0000:
        return StoreOutcome(outgoing, status)
    comment = str(answer.get("ErrorComment", "")) or "no comment"
    kind = "warning" if status >> 12 == 0xB else "failure"
    return StoreOutcome(outgoing, status, f"{kind} status 0x{status:04X}: {comment}")
