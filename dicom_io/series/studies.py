"""The studies of a folder: whose and of which day, so that nobody's is taken for another's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dicom_io import header
from dicom_io.errors import SeriesError
from dicom_io.series.group import Series


@dataclass(frozen=True)
class Study:
    """One study.

    Attributes:
        study_uid: StudyInstanceUID.
        patient: PatientID, IssuerOfPatientID, PatientName and PatientBirthDate, as text; empty ones are left out.
        date: StudyDate; empty where absent.
        description: StudyDescription.
        series: Its series in the folder.
    """

    study_uid: str
    patient: tuple[str, ...]
    date: str
    description: str
    series: int

    @property
    def line(self) -> str:
        """As lists for people show it."""
        whose = ", ".join(self.patient) or "patient unknown"
        day = self.date or "no date"
        return f"{self.study_uid} ({whose}; {day}; {self.description or 'no description'}; {self.series} series)"


def studies_of(series_list: Iterable[Series]) -> tuple[Study, ...]:
    """The studies of several series, in the order of their first series."""
    groups: dict[str, list[Series]] = {}
    for series in series_list:
        groups.setdefault(series.study_uid, []).append(series)
    return tuple(_study(uid, members) for uid, members in groups.items())


def of_one_study(series_list: Sequence[Series], study_uid: str | None = None) -> tuple[Series, ...]:
    """The series among which a FLAIR may be chosen: of one patient and day, or of the study that was named.

    Args:
        series_list: All of a folder.
        study_uid: The study to take; None: there must be nothing to choose.

    Raises:
        SeriesError: no such study, or studies of several patients or days; the text names them.
    """
    studies = studies_of(series_list)
    named = ", ".join(study.line for study in studies)
    if study_uid is not None:
        if study_uid not in (study.study_uid for study in studies):
            raise SeriesError(f"expected a study {study_uid}, found {named or 'none'}")
        return tuple(series for series in series_list if series.study_uid == study_uid)
    if len({(tuple(map(str.casefold, study.patient)), study.date) for study in studies}) > 1:
        raise SeriesError(f"{len(studies)} studies of several patients or days: name one by --study UID. Found {named}")
    return tuple(series_list)


def _study(uid: str, members: Sequence[Series]) -> Study:
    first = members[0].header
    patient = (header.text(first, k) for k in ("PatientID", "IssuerOfPatientID", "PatientName", "PatientBirthDate"))
    return Study(
        study_uid=uid,
        patient=tuple(text for text in patient if text),
        date=header.text(first, "StudyDate"),
        description=header.text(first, "StudyDescription"),
        series=len(members),
    )
