"""What a pull may ask of a PACS, and which way each entry of `[[sources]]` is reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from pydicom import Dataset

from daemon.config.sections import Settings, Source
from daemon.errors import Retryable
from daemon.receive.store import Sender, Status, StoreRequest, store
from daemon.spool.writer import SpoolWriter

STUDY_FIELDS = ("StudyInstanceUID", "AccessionNumber", "PatientID", "StudyDate", "ModalitiesInStudy")
"""What is asked of each study, beside the keys of the query."""
SERIES_FIELDS = (
    "SeriesInstanceUID", "Modality", "SeriesDescription", "SeriesNumber", "NumberOfSeriesRelatedInstances",
)  # fmt: skip
"""What every PACS tells of a series, or nearly every one (PS3.4 Table C.6-3)."""
TELLING_FIELDS = (
    "ProtocolName", "BodyPartExamined", "Manufacturer", "SequenceName", "ImageType", "ScanningSequence",
    "RepetitionTime", "EchoTime", "InversionTime",
)  # fmt: skip
"""What some tell besides, by which a FLAIR is known."""


class SourceAway(Retryable):
    """The source as a whole does not answer, or lets nobody in: the pull waits, and no study is to blame."""


@dataclass(frozen=True)
class Fetched:
    """What came of a study.

    Attributes:
        instances: How many, all durable in the spool.
        way: How, in the standard's words.
    """

    instances: int
    way: str


class SourceClient(Protocol):
    """A source as a pull sees it; every method may raise SourceAway."""

    def echo(self) -> None:
        """Ask for a sign of life, and whether it can be asked for studies."""

    def studies(self, keys: Mapping[str, str]) -> list[Dataset]:
        """Studies that match keywords with values, as far as the source knows the keywords.

        Raises:
            Retryable: it refuses the query.
        """

    def series(self, study_uid: str) -> list[Dataset]:
        """The series of a study.

        Raises:
            Retryable: it refuses the query.
        """

    def fetch(self, study_uid: str, series_uids: Sequence[str]) -> Fetched:
        """Bring series of a study into the spool; the same ones may come again.

        Raises:
            Retryable: not all of them came.
        """

    def documents(self, study_uid: str, series_uid: str) -> list[Dataset]:
        """The documents of a series, in memory.

        Raises:
            Retryable: not all of them came.
        """


def client_of(settings: Settings, source: Source, inbox: Inbox | None = None) -> SourceClient:
    """The client of a source: by DICOMweb where it has a URL, else by DIMSE under our AE title.

    Args:
        settings: The whole configuration.
        source: Its entry.
        inbox: Takes what does not come by C-STORE to the listener; None: nothing is going to be fetched.
    """
    from daemon.pull.dicomweb import WebSource
    from daemon.pull.dimse import DimseSource

    if source.url is not None:
        return WebSource(source, inbox)
    return DimseSource(source, settings.listener.ae_title, inbox)


@dataclass(frozen=True)
class Inbox:
    """Puts instances that we fetched ourselves where the listener puts what it is sent."""

    writer: SpoolWriter

    def association(self, source: Source, number: int) -> Sender:
        """A name for what comes in one go."""
        return Sender(f"{self.writer.receiver}/{number}", source.ae_title or source.name, source.host or source.name)

    def put(self, sop_class_uid: str, sop_uid: str, syntax: str, data: bytes, sender: Sender) -> tuple[int, str]:
        """Write one instance durably.

        Returns:
            DIMSE status and, where it is not Success, why.
        """
        request = StoreRequest(sop_class_uid, sop_uid, sop_class_uid, syntax)
        outcome = store(self.writer, request, [data], sender)
        return int(outcome.status), "" if outcome.status is Status.SUCCESS else outcome.comment

    def end(self, sender: Sender) -> None:
        """Nothing more comes in that go."""
        self.writer.end_association(sender.association)
