"""A source by DIMSE: C-FIND, then C-MOVE to our listener or C-GET (PS3.4 Annex C, Study Root)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from pydicom import Dataset
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    EnhancedMRColorImageStorage,
    EnhancedMRImageStorage,
    EnhancedSRStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    LegacyConvertedEnhancedMRImageStorage,
    MRImageStorage,
)
from pynetdicom import AE, build_role, evt
from pynetdicom.association import Association
from pynetdicom.pdu_primitives import SCP_SCU_RoleSelectionNegotiation
from pynetdicom.sop_class import (
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
)

from daemon.config.sections import Source
from daemon.deliver.dimse import FIND_PENDING, MAX_CONTEXTS, DimseClient, Peer, associate
from daemon.deliver.outgoing import NotOffered
from daemon.errors import Retryable
from daemon.pull.source import SERIES_FIELDS, STUDY_FIELDS, TELLING_FIELDS, Fetched, Inbox, SourceAway, SourceBusy
from daemon.receive.contexts import TRANSFER_SYNTAXES

Handler = Callable[[evt.Event], int]
RETRIEVE_SECONDS = 300.0
"""How long a PACS may be silent while it retrieves: some read from tapes."""
FIND_SECONDS = 60.0
UNKNOWN_DESTINATION = 0xA801
"""C-MOVE: the PACS does not know the AE title to send to (PS3.4 Table C.4-2)."""
NOT_UNDERSTOOD = (0xA900, *range(0xC000, 0xD000))
"""C-FIND: the identifier does not match, or cannot be processed (PS3.4 Table C.4-1)."""
OUT_OF_RESOURCES = range(0xA700, 0xA800)
"""C-FIND: refused for now (PS3.4 Table C.4-1)."""
GET_CLASSES = (
    MRImageStorage,
    EnhancedMRImageStorage,
    LegacyConvertedEnhancedMRImageStorage,
    EnhancedMRColorImageStorage,
)
"""What C-GET may bring: the storage classes in which a FLAIR comes."""
DOCUMENT_CLASSES = (EnhancedSRStorage,)
"""In which our reports come."""
GET_SYNTAXES = (
    (ExplicitVRLittleEndian, ImplicitVRLittleEndian),
    *((uid,) for uid in TRANSFER_SYNTAXES if UID(uid).is_compressed and uid != DeflatedExplicitVRLittleEndian),
)
"""Transfer syntaxes of each context: uncompressed ones, and each compressed one alone, as it is stored."""


@dataclass(frozen=True)
class DimseSource:
    """One PACS.

    Attributes:
        source: Its entry in the configuration, with an AE title.
        calling_aet: Our AE title, to which C-MOVE sends.
        inbox: Takes what comes by C-GET.
        find_seconds: How long it may be silent where it is only asked.
    """

    source: Source
    calling_aet: str
    inbox: Inbox | None = None
    find_seconds: float = FIND_SECONDS
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    @property
    def _peer(self) -> Peer:
        source = self.source
        return Peer(str(source.ae_title), str(source.host), int(source.port or 0), source.tls)

    def echo(self) -> None:
        """An association for C-FIND.

        Raises:
            SourceAway: it gives none.
        """
        with self._associated(StudyRootQueryRetrieveInformationModelFind, self.find_seconds):
            pass

    def studies(self, keys: Mapping[str, str]) -> list[Dataset]:
        """By C-FIND at study level.

        Raises:
            Retryable: it refuses the query.
        """
        identifier = _identifier("STUDY", STUDY_FIELDS)
        for keyword, value in keys.items():
            setattr(identifier, keyword, value.split("\\") if "\\" in value else value)
        return self._find(identifier)

    def series(self, study_uid: str) -> list[Dataset]:
        """By C-FIND at series level; a PACS that does not take our keys is asked for the usual ones.

        Raises:
            Retryable: it refuses the query.
        """
        rich, plain = (_identifier("SERIES", fields) for fields in (SERIES_FIELDS + TELLING_FIELDS, SERIES_FIELDS))
        rich.StudyInstanceUID = plain.StudyInstanceUID = study_uid
        try:
            return self._find(rich)
        except _NotUnderstood:
            return self._find(plain)

    def fetch(self, study_uid: str, series_uids: Sequence[str]) -> Fetched:
        """By C-MOVE, or by C-GET where that is configured or C-MOVE is not possible; each series by its own request.

        Raises:
            Retryable: not all of it came.
        """
        if self.source.retrieve == "get":
            return self._get(study_uid, series_uids)
        try:
            return self._move(study_uid, series_uids)
        except _NoMove as error:
            if self.source.retrieve == "move":
                raise Retryable(str(error)) from error
            try:
                return self._get(study_uid, series_uids)
            except NotOffered as neither:
                raise Retryable(f"{error}; C-GET: {neither}") from error

    def documents(self, study_uid: str, series_uid: str) -> list[Dataset]:
        """By C-GET.

        Raises:
            Retryable: not all of them came, or there is no C-GET.
        """
        model = StudyRootQueryRetrieveInformationModelGet
        came: list[Dataset] = []

        def take(event: evt.Event) -> int:
            came.append(event.dataset)
            return 0x0000

        with self._associated(model, self.find_seconds, take, DOCUMENT_CLASSES) as association:
            self._follow("C-GET", association.send_c_get(_retrieval(study_uid, series_uid), model))
        return came

    def _find(self, identifier: Dataset) -> list[Dataset]:
        found = []
        model = StudyRootQueryRetrieveInformationModelFind
        with self._associated(model, self.find_seconds) as association:
            for answer, match in association.send_c_find(identifier, model):
                if "Status" not in answer:
                    raise SourceAway(f"{self.source.address}: C-FIND: no answer")
                if answer.Status in FIND_PENDING:
                    if match is not None:
                        found.append(match)
                elif answer.Status != 0x0000:
                    passing = SourceBusy if answer.Status in OUT_OF_RESOURCES else Retryable
                    kind = _NotUnderstood if answer.Status in NOT_UNDERSTOOD else passing
                    raise kind(f"{self.source.address}: C-FIND: {_status(answer)}")
        return found

    def _move(self, study_uid: str, series_uids: Sequence[str]) -> Fetched:
        model = StudyRootQueryRetrieveInformationModelMove
        moved: list[int | None] = []
        try:
            with self._associated(model, RETRIEVE_SECONDS) as association:
                for uid in series_uids:
                    answers = association.send_c_move(_retrieval(study_uid, uid), self.calling_aet, model)
                    moved.append(self._follow("C-MOVE", answers))
        except NotOffered as error:
            raise _NoMove(f"C-MOVE: {error}") from error
        told = [number for number in moved if number is not None]
        return Fetched(sum(told) if len(told) == len(moved) else None, "C-MOVE")

    def _get(self, study_uid: str, series_uids: Sequence[str]) -> Fetched:
        if self.inbox is None:
            raise RuntimeError("a client without an inbox can fetch nothing")
        model, inbox = StudyRootQueryRetrieveInformationModelGet, self.inbox
        sender = inbox.association(self.source, next(self._numbers))
        refused: list[str] = []
        got: set[str] = set()

        def take(event: evt.Event) -> int:
            request = event.request
            status, why = inbox.put(
                str(request.AffectedSOPClassUID), str(request.AffectedSOPInstanceUID),
                str(event.context.transfer_syntax), request.DataSet.getvalue(), sender,
            )  # fmt: skip
            refused.extend([why] if why else [])
            got.update([] if status else [str(request.AffectedSOPInstanceUID)])
            return status

        try:
            with self._associated(model, RETRIEVE_SECONDS, take) as association:
                for uid in series_uids:
                    self._follow("C-GET", association.send_c_get(_retrieval(study_uid, uid), model))
        finally:
            inbox.end(sender)
        if refused:
            raise Retryable(f"{len(refused)} instances could not be kept: {refused[0]}")
        return Fetched(len(got), "C-GET")

    def _follow(self, what: str, answers: Iterator[tuple[Dataset, Dataset | None]]) -> int | None:
        """To the final answer; how many instances were sent, None where it leaves that out (PS3.7 9.3.4.2).

        Raises:
            _NoMove: the PACS does not know where to send to.
            Retryable: some failed, or there was no answer.
        """
        where = self.source.address
        for answer, failed in answers:
            if "Status" not in answer:
                raise Retryable(f"{where}: {what}: the association ended before the answer")
            if answer.Status == UNKNOWN_DESTINATION:
                raise _NoMove(f"{where}: {what}: it does not know us as {self.calling_aet!r} (0xA801)")
            if answer.Status in FIND_PENDING:
                continue
            lost = int(answer.get("NumberOfFailedSuboperations") or 0)
            if answer.Status not in (0x0000, 0xB000) or lost:
                named = len(failed.get("FailedSOPInstanceUIDList") or ()) if failed is not None else 0
                number = f", {lost or named} instances were not sent" if lost or named else ""
                raise Retryable(f"{where}: {what}: {_status(answer)}{number}")
            sent = answer.get("NumberOfCompletedSuboperations")
            return None if sent is None else int(sent) + int(answer.get("NumberOfWarningSuboperations") or 0)
        raise Retryable(f"{where}: {what}: no answer")

    @contextmanager
    def _associated(
        self, model: str, seconds: float, take: Handler | None = None, classes: Sequence[UID] = GET_CLASSES
    ) -> Iterator[Association]:
        """An association for one query model; with `take`, one on which instances come to us."""
        ae = DimseClient(self._peer, self.calling_aet).application_entity(seconds)
        ae.add_requested_context(model)
        try:
            handlers, roles = _provide(ae, take, classes) if take is not None else ((), ())
            association = associate(ae, self._peer, handlers, roles)
        except NotOffered:
            if model == StudyRootQueryRetrieveInformationModelFind:
                raise SourceAway(f"{self.source.address} offers no C-FIND (Study Root), or not to us") from None
            raise
        except Retryable as error:
            raise SourceAway(str(error)) from error
        try:
            if not any(context.abstract_syntax == model for context in association.accepted_contexts):
                raise NotOffered(f"{self.source.address} accepted no {UID(model).name}")
            yield association
        except BaseException:  # answers may still be under way
            association.abort()
            raise
        if association.is_established:
            association.release()


class _NotUnderstood(Retryable):
    """The PACS does not take the keys of a query."""


class _NoMove(Retryable):
    """C-MOVE is not possible here at all."""


def _provide(
    ae: AE, take: Handler, classes: Sequence[UID]
) -> tuple[list[tuple[evt.EventType, Handler]], list[SCP_SCU_RoleSelectionNegotiation]]:
    """Contexts and roles in which instances come to us."""
    contexts = [(sop_class, syntaxes) for syntaxes in GET_SYNTAXES for sop_class in classes]
    for sop_class, syntaxes in contexts[: MAX_CONTEXTS - 1]:
        ae.add_requested_context(sop_class, [str(uid) for uid in syntaxes])
    return [(evt.EVT_C_STORE, take)], [build_role(uid, scp_role=True) for uid in classes]


def _identifier(level: str, fields: Sequence[str]) -> Dataset:
    identifier = Dataset()
    identifier.QueryRetrieveLevel = level
    for keyword in fields:
        setattr(identifier, keyword, "" if keyword != "NumberOfSeriesRelatedInstances" else None)
    return identifier


def _retrieval(study_uid: str, series_uid: str) -> Dataset:
    identifier = Dataset()
    identifier.QueryRetrieveLevel = "SERIES"
    identifier.StudyInstanceUID = study_uid
    identifier.SeriesInstanceUID = series_uid
    return identifier


def _status(answer: Dataset) -> str:
    comment = str(answer.get("ErrorComment", "")).strip()
    return f"status 0x{answer.Status:04X}" + (f" ({comment})" if comment else "")
