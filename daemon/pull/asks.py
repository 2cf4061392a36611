"""What a pull asks a PACS for: single studies, accession numbers and patients, or a query by keywords."""

from __future__ import annotations

import csv
import difflib
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from pydicom import Dataset
from pydicom.datadict import dictionary_VR, tag_for_keyword

from daemon.errors import DaemonError
from dicom_io import header

UID = re.compile(r"[0-9]+(\.[0-9]+)*")
DATE = re.compile(r"\d{8}(-(\d{8})?)?|-\d{8}")
TIME = re.compile(r"\d{2,6}(\.\d{1,6})?(-(\d{2,6}(\.\d{1,6})?)?)?|-\d{2,6}(\.\d{1,6})?")
STUDY_KEYS = (
    "StudyInstanceUID", "StudyDate", "StudyTime", "AccessionNumber", "StudyID", "StudyDescription", "PatientID",
    "PatientName", "PatientBirthDate", "PatientSex", "IssuerOfPatientID", "ModalitiesInStudy", "ReferringPhysicianName",
    "InstitutionName", "SOPClassesInStudy", "NumberOfStudyRelatedInstances",
)  # fmt: skip
"""Keywords by which studies are commonly asked for (PS3.4 C.6.2.1.2, .3); a PACS may know others."""
SERIES_KEYS = {"Modality": "ModalitiesInStudy"}
"""Keywords of the series level, with what is meant at the study level."""
SINGLE = {"study": "StudyInstanceUID", "accession": "AccessionNumber", "patient": "PatientID"}
"""Ways to ask for something by one value, which must be answered literally."""
COLUMNS = {
    "studyinstanceuid": "study", "study_uid": "study", "study": "study", "accessionnumber": "accession",
    "accession": "accession", "patientid": "patient", "patient_id": "patient", "patient": "patient",
}  # fmt: skip
"""Columns of a list, in lower case."""


@dataclass(frozen=True)
class Ask:
    """One thing that is asked for.

    Attributes:
        keys: Keyword to value, as C-FIND and QIDO-RS take them.
        literal: Whether values mean themselves, wildcards included.
    """

    keys: Mapping[str, str]
    literal: bool = False

    @property
    def label(self) -> str:
        """For people."""
        return " ".join(f"{keyword}={value}" for keyword, value in self.keys.items())

    def missing(self, study: Dataset) -> str:
        """Why a study that the PACS gave is not what was asked for; empty where it is.

        A PACS that does not know a key answers as if it had not been asked for (PS3.4 C.2.2.1.3), so all are held
        against what it says of the study.
        """
        for keyword, wanted in self.keys.items():
            if keyword not in study:
                return f"the PACS does not tell its {keyword}: whether it is meant is not known"
            said = header.texts(study, keyword)
            matches = wanted in said if self.literal else any(_matches(keyword, wanted, value) for value in said)
            if not matches:
                return f"its {keyword} is {chr(92).join(said) or 'empty'}, not {wanted}"
        return ""

    def to_json(self) -> str:
        """For the database."""
        return json.dumps([dict(self.keys), self.literal])

    @classmethod
    def from_json(cls, text: str) -> Ask:
        """What `to_json` wrote."""
        keys, literal = json.loads(text)
        return cls(keys, literal)


def single(kind: str, value: str) -> Ask:
    """Ask by one value.

    Args:
        kind: Of `SINGLE`.
        value: The UID, number or id.

    Raises:
        DaemonError: it can be no such value.
    """
    value = value.strip()
    if not value:
        raise DaemonError(f"{kind}: expected a value, got none")
    if kind == "study" and not (UID.fullmatch(value) and len(value) <= 64):
        raise DaemonError(f"study: expected a UID (digits and dots, at most 64), got {value!r}")
    if re.search(r"[*?\\]", value):
        raise DaemonError(
            f"{kind}: expected one value, got {value!r}; with wildcards: --query '{SINGLE[kind]}={value}'"
        )
    return Ask({SINGLE[kind]: value}, literal=True)


def query(text: str) -> Ask:
    """Read `KEY=VALUE …` with DICOM keywords; values with blanks stand in quotation marks.

    Raises:
        DaemonError: it has another form, a keyword is none, or a value cannot be one of its kind.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise DaemonError(f"query: {error}: {text!r}") from error
    keys: dict[str, str] = {}
    for word in words:
        keyword, equals, value = word.partition("=")
        if not equals or not value:
            raise DaemonError(f"query: expected KEY=VALUE, such as StudyDate=20260101-20260131, got {word!r}")
        _check_key(keyword, value)
        if keyword in keys:
            raise DaemonError(f"query: {keyword} stands twice")
        keys[keyword] = value
    if not keys:
        raise DaemonError("query: expected KEY=VALUE, such as StudyDate=20260101-20260131, got nothing")
    if all(set(value) <= set("*") for value in keys.values()):
        raise DaemonError(f"query: {text!r} asks for everything that the PACS holds: expected a value that limits it")
    return Ask(keys)


def _check_key(keyword: str, value: str) -> None:
    if keyword in SERIES_KEYS:
        raise DaemonError(f"query: {keyword} is an attribute of series, did you mean {SERIES_KEYS[keyword]}?")
    if tag_for_keyword(keyword) is None:
        near = _nearest(keyword)
        raise DaemonError(f"query: {keyword!r} is no DICOM keyword" + (f", did you mean {near}?" if near else ""))
    form = {"DA": DATE, "TM": TIME}.get(dictionary_VR(keyword))
    if form is not None and not form.fullmatch(value):
        example = "20260131 or 20260101-20260131" if form is DATE else "0900 or 0900-1700"
        raise DaemonError(f"query: {keyword}: expected {example}, got {value!r}")
    if dictionary_VR(keyword) == "SQ":
        raise DaemonError(f"query: {keyword} is a sequence, which cannot be asked for here")


def _nearest(keyword: str) -> str:
    known = {key.lower(): key for key in (*STUDY_KEYS, *SERIES_KEYS)}
    near = difflib.get_close_matches(keyword.lower(), known, n=1)
    return SERIES_KEYS.get(known[near[0]], known[near[0]]) if near else ""


def read_list(path: Path) -> tuple[Ask, ...]:
    """Asks of a file: one study UID a line, or CSV with a column StudyInstanceUID, AccessionNumber or PatientID.

    Raises:
        DaemonError: it cannot be read, or a line is neither.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DaemonError(f"{path}: expected a text or CSV file: {error}") from error
    asks = tuple({ask.label: ask for ask in _asks_of(path, [line for line in lines if line.strip()])}.values())
    if not asks:
        raise DaemonError(f"{path}: expected study UIDs, one a line, or CSV; found nothing")
    return asks


def _asks_of(path: Path, lines: Sequence[str]) -> Iterator[Ask]:
    columns = next(csv.reader(lines[:1]), [])
    place, kind = next(((n, COLUMNS[c.strip().lower()]) for n, c in enumerate(columns) if c.strip().lower() in COLUMNS),
                       (0, "study"))  # fmt: skip
    has_header = any(column.strip().lower() in COLUMNS for column in columns)
    if not has_header and columns and not UID.fullmatch(columns[0].strip()):
        known = "StudyInstanceUID, AccessionNumber or PatientID"
        raise DaemonError(f"{path}: line 1: expected a study UID, or a header with {known}, got {lines[0][:60]!r}")
    for number, row in enumerate(csv.reader(lines[has_header:]), start=1 + has_header):
        try:
            yield single(kind, row[place] if place < len(row) else "")
        except DaemonError as error:
            raise DaemonError(f"{path}: line {number}: {error}") from error


def _matches(keyword: str, wanted: str, value: str) -> bool:
    """As PS3.4 C.2.2.2 has it: ranges of dates and times, lists of UIDs, wildcards; names in either case."""
    kind = dictionary_VR(keyword)
    if kind in ("DA", "TM") and "-" in wanted:
        low, _, high = wanted.partition("-")
        return (not low or value[: len(low)] >= low) and (not high or value[: len(high)] <= high)
    if kind == "UI":
        return value in wanted.split("\\")
    if kind == "TM":
        return value.startswith(wanted)
    if kind == "PN":
        return True  # matched by the PACS in its own way: letter case, accents, groups of components
    return any(fnmatchcase(value, one.replace("[", "[[]")) for one in wanted.split("\\"))
