"""What names people in received files: read so that it can be kept out of logs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from pydicom.datadict import DicomDictionary, keyword_for_tag
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.multival import MultiValue

from dicom_io.errors import FileError
from dicom_io.header import MALFORMED
from dicom_io.reading import read_elements

_IDENTIFIERS = (
    "PatientID",
    "OtherPatientIDs",
    "AccessionNumber",
    "PatientBirthDate",
    "PatientTelephoneNumbers",
    "MilitaryRank",
)
_SEQUENCES = ("OtherPatientIDsSequence", "RequestAttributesSequence", "ReferencedRequestSequence")
_KEYWORDS = (
    *_IDENTIFIERS,
    *_SEQUENCES,
    *(keyword_for_tag(tag) for tag, entry in DicomDictionary.items() if entry[0] == "PN"),
)


def identities(files: Iterable[Path]) -> set[str]:
    """Person names (VR PN) and the identifiers of patients and orders, of all files that can be read."""
    found: set[str] = set()
    for file in files:
        try:
            header = read_elements(file, _KEYWORDS)
            found.update(_values(header))
        except (FileError, InvalidDicomError, OSError, RecursionError, MemoryError, *MALFORMED):
            continue  # what cannot be read here cannot be quoted by who reads it later; the step itself says why
    return found


def _values(dataset: Dataset) -> Iterator[str]:
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value or ():
                yield from _values(item)
        elif element.VR == "PN" or element.keyword in _IDENTIFIERS:
            yield from map(str, element.value if isinstance(element.value, MultiValue) else [element.value or ""])
