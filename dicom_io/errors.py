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


class DicomIoError(Exception):
    """Base of all errors raised on purpose by `dicom_io`; the text is fit for a user."""


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
