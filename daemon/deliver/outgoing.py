"""What goes out, and what became of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydicom import Dataset
from pydicom.errors import InvalidDicomError

from daemon.errors import DaemonError, Retryable
from dicom_io import header
from dicom_io.errors import FileError
from dicom_io.reading import read_elements


class NotOffered(Retryable):
    """The peer takes associations, but offers nothing of what was asked for."""


IDENTITY = ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"]
"""What is read of a file before it is sent."""


@dataclass(frozen=True)
class Outgoing:
    """One file to send; the UIDs are read from it.

    Attributes:
        sha256: Of the whole file, where it is known what it must be: it is then sent as it lies, without being decoded.
            Empty where that is not known, or where its meta information names another instance than its data set.
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
        """Read the UIDs of a Part 10 file, whose SHA-256 must be `sha256` where that is given.

        Raises:
            DaemonError: the file cannot be read, or is not DICOM.
        """
        try:
            found = read_elements(path, IDENTITY)
            named = [found.file_meta.get(k) for k in ("MediaStorageSOPClassUID", "MediaStorageSOPInstanceUID")]
            return cls(
                path,
                str(found.SOPClassUID),
                str(found.SOPInstanceUID),
                str(found.file_meta.TransferSyntaxUID),
                str(found.get("StudyInstanceUID", "")),
                str(found.get("SeriesInstanceUID", "")),
                sha256 if named == [found.SOPClassUID, found.SOPInstanceUID] else "",
            )
        except (FileError, InvalidDicomError, *header.MALFORMED) as error:
            raise DaemonError(f"{path}: expected a DICOM file (PS3.10) with SOP UIDs: {error}") from error
        except OSError as error:
            raise DaemonError(f"{path} cannot be read: {error.strerror}") from error


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


OnOutcome = Callable[[StoreOutcome], None]
"""Told of each file's outcome as soon as it is known."""

OnReport = Callable[[Dataset], None]
"""Given the Event Information of an answer to a request for storage commitment (PS3.4 Table J.3-2)."""


def no_one(_outcome: StoreOutcome) -> None:
    """An `OnOutcome` that nobody follows."""
