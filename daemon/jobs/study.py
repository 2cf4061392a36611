"""Whose study a job is of, for the pages that people look at; it stands in no record of the job."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydicom import Dataset
from pydicom.errors import InvalidDicomError

from daemon.jobs.folder import JobFolder
from daemon.jobs.records import CorrectedIdentity, Selection, SourceFile
from dicom_io import header
from dicom_io.errors import FileError
from dicom_io.reading import read_elements

FIELDS = (
    ("PatientName", "Patient"),
    ("PatientID", "Patient ID"),
    ("StudyDate", "Study date"),
    ("StudyDescription", "Study"),
    ("SeriesDescription", "Series"),
    ("SeriesNumber", "Series number"),
    ("AccessionNumber", "Accession"),
)
"""Keyword and label, in the order of the page."""
UNREADABLE = (OSError, RecursionError, MemoryError, FileError, InvalidDicomError, *header.MALFORMED)


def study_rows(folder: JobFolder) -> list[tuple[str, str]]:
    """Label and text of what the reported series says of patient, study and series, as far as it was not corrected.

    Of a NIfTI file only its name is known; what cannot be read is left out.
    """
    source = SourceFile.read_if_there(folder.source_facts)
    if source is not None:
        return [("File", source.file)]
    said = study_values(folder)
    return [(label, _plain(keyword, said[keyword])) for keyword, label in FIELDS if said[keyword]]


def study_values(folder: JobFolder) -> dict[str, str]:
    """What the reported series says in each of `FIELDS`, as far as it was not corrected; empty where it says nothing.

    Before a series was chosen any instance is asked about patient and study, and none about the series.
    """
    selection = Selection.read_if_there(folder.selection)
    chosen = None if selection is None else selection.chosen
    found = _header_of(folder.input, chosen)
    corrected = CorrectedIdentity.read_if_there(folder.identity)
    said = {keyword: header.text(found, keyword) for keyword, _ in FIELDS}
    return said | ({} if corrected is None else {k: v for k, v in corrected.values.items() if k in said})


def _header_of(folder: Path, series_uid: str | None) -> Dataset:
    """Of an instance of a series; where there is none, what another instance says of patient and study."""
    other = Dataset()
    for found in _headers(folder):
        if header.text(found, "SeriesInstanceUID") == series_uid:
            return found
        other = other or found
        if series_uid is None:
            break
    for keyword in ("SeriesDescription", "SeriesNumber"):
        if keyword in other:
            del other[keyword]
    return other


def _headers(folder: Path) -> Iterator[Dataset]:
    tags = ["SeriesInstanceUID", "SpecificCharacterSet", *(keyword for keyword, _ in FIELDS)]
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            with header.quiet("pydicom"):
                found = read_elements(path, tags)
        except UNREADABLE:
            continue
        yield found


def _plain(keyword: str, value: str) -> str:
    """A value as people write it: PS3.5 6.2 writes dates as 20260102, and names with "^"."""
    if keyword == "PatientName":
        return header.readable_name(value)
    if keyword == "StudyDate" and len(value) == 8:
        return f"{value[:4]}-{value[4:6]}-{value[6:]}"
    return value
