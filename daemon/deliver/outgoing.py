"""What goes out, and what became of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydicom import Dataset
from pydicom.errors import InvalidDicomError

from daemon.errors import DaemonError, Retryable
from daemon.jobs.store import Delivery
from dicom_io import header
from dicom_io.errors import FileError
from dicom_io.pack.manifest import sha256_of
from dicom_io.reading import read_elements


class NotOffered(Retryable):
    """The peer takes associations, but offers nothing of what was asked for."""


IDENTITY = ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"]
"""What is read of a file before it is sent."""


@dataclass(frozen=True)
class Outgoing:
    """One file to send; the UIDs are read from it.

    Attributes:
        sha256: Of the whole file, where it is known what it must be; empty where not. It is looked at before the file
            is sent, which goes as it lies where the peer takes its transfer syntax.
    """

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    study_uid: str = ""
    series_uid: str = ""
    sha256: str = ""

    @classmethod
    def read(cls, path: Path, sha256: str = "") -> Outgoing:
        """Read the UIDs of a Part 10 file, whose SHA-256 is to be `sha256` where that is given.

        Raises:
            DaemonError: the file cannot be read, or is not DICOM.
        """
        try:
            found = read_elements(path, IDENTITY)
            return cls(
                path,
                str(found.SOPClassUID),
                str(found.SOPInstanceUID),
                str(found.file_meta.TransferSyntaxUID),
                str(found.get("StudyInstanceUID", "")),
                str(found.get("SeriesInstanceUID", "")),
                sha256,
            )
        except (FileError, InvalidDicomError, *header.MALFORMED) as error:
            raise DaemonError(f"{path}: expected a DICOM file (PS3.10) with SOP UIDs: {error}") from error
        except OSError as error:
            raise DaemonError(f"{path} cannot be read: {error.strerror}") from error

    def changed(self) -> str:
        """What is wrong with the file's bytes; empty where they are those that were encoded, or that is not known."""
        if not self.sha256:
            return ""
        try:
            found = sha256_of(self.path)
        except OSError as error:
            return f"{self.path} cannot be read: {error.strerror}"
        right = found == self.sha256
        return "" if right else f"expected the bytes that were encoded (SHA-256 {self.sha256}), got {found}"


DUPLICATE = 0x0111
"""Duplicate SOP Instance (PS3.7 C.5.9)."""


@dataclass(frozen=True)
class StoreOutcome:
    """What the peer said to one C-STORE.

    Attributes:
        status: DIMSE status, which STOW-RS gives as well; None where no answer came (context refused, association
            lost).
        reason: Empty on plain success.
    """

    outgoing: Outgoing
    status: int | None
    reason: str = ""

    @property
    def stored(self) -> bool:
        """Whether the peer says that it has the instance.

        By Success, by a warning (PS3.4 B.2.3: 0xB000, 0xB006, 0xB007), or as a duplicate (PS3.7 C.5.9), as it has it
        from an earlier attempt whose answer was lost.
        """
        return self.status in (0x0000, DUPLICATE) or (self.status is not None and self.status >> 12 == 0xB)


def legible(
    wanted: Sequence[Delivery], files: Callable[[str], Outgoing], on_illegible: Callable[[Delivery, str], None]
) -> list[Outgoing]:
    """The files of deliveries, less those that cannot be read or hold another object; `on_illegible` is told why.

    One damaged file must not keep the others from their destination.
    """
    found = []
    for delivery in wanted:
        try:
            outgoing = files(delivery.file)
        except DaemonError as error:
            on_illegible(delivery, str(error))
            continue
        if outgoing.sop_instance_uid == delivery.sop_instance_uid:
            found.append(outgoing)
        else:
            expected = f"SOP Instance UID {delivery.sop_instance_uid}, got {outgoing.sop_instance_uid}"
            on_illegible(delivery, f"{outgoing.path}: expected {expected}")
    return found


OnOutcome = Callable[[StoreOutcome], None]
"""Told of each file's outcome as soon as it is known."""

OnReport = Callable[[Dataset], None]
"""Given the Event Information of an answer to a request for storage commitment (PS3.4 Table J.3-2)."""


def no_one(_outcome: StoreOutcome) -> None:
    """An `OnOutcome` that nobody follows."""
