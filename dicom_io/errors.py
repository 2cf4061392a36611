"""Errors of `dicom_io`; each text names what was expected and what came.

DicomIoError
├── FileError         one file cannot be read as a DICOM instance
├── SeriesError       the instances do not form one series
│   └── GeometryError   they do not form one regular volume
├── ConversionError   a sound series could not be converted
├── DeidentificationError  an instance cannot be sent without identities
└── PackError         a result object broke a rule and must not be sent
"""

from __future__ import annotations

from pydantic import ValidationError

SHOWN = 60
"""Characters of a wrong value that an error shows."""
LONGEST = 2000
"""Characters of an error; a row of a table or of the page has to hold it."""


class DicomIoError(Exception):
    """Base of all errors raised on purpose by `dicom_io`; the text is fit for a user.

    A text that quotes a header's value may be as long as that value; the middle of a longer one is left out.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text if len(text) <= LONGEST else f"{text[: LONGEST - SHOWN]} ... {text[-SHOWN:]}")


class FileError(DicomIoError):
    """A file is not DICOM, is truncated, or lacks what every instance must have."""


class SeriesError(DicomIoError):
    """Instances contradict one another or lack what a series needs."""


class GeometryError(SeriesError):
    """The slices do not form one regular volume (gaps, mixed orientations, gantry tilt, ...)."""


class ConversionError(DicomIoError):
    """No converter could turn the series into a volume that agrees with its headers."""


class DeidentificationError(DicomIoError):
    """An instance cannot be de-identified: its pixels may hold text, or it cannot be read."""


class PackError(DicomIoError):
    """A result object fails the checks made before it may be sent."""


def faults_of(error: ValidationError) -> str:
    """What a record was expected to hold and what came, field by field, in one line."""
    said = []
    for fault in error.errors(include_url=False):
        place = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "missing":
            said.append(f"{place}: field missing")
        else:
            came = repr(fault["input"])
            shown = came if len(came) <= SHOWN else f"{came[:SHOWN]}..."
            said.append(f"{place + ': ' if place else ''}{fault['msg']}, got {shown}")
    return "; ".join(said)
