"""What is asked of a PACS, what comes of it, and where that goes."""

from __future__ import annotations

from dataclasses import dataclass

from daemon.config.sections import Source
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


class SourceBusy(SourceAway):
    """It answers with an error of its own, or breaks off in its answer: another time it may not.

    A search is then repeated a few times; what is asked about one study counts as an attempt at that.
    """


@dataclass(frozen=True)
class Fetched:
    """What came of a study.

    Attributes:
        instances: How many, all durable in the spool; None: all that were to come, however many.
        way: How, in the standard's words.
    """

    instances: int | None
    way: str


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
