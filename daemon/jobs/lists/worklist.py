"""The worklist: jobs with patient, study, findings, verdict and deliveries, found by words as they are typed.

A job is found by how the words of its patient's name and number, of its accession number, of its UIDs and of its own
id begin. Words lie folded (no case, no accents) in a table with an index, so that typing costs the same after years.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from daemon.database.tables import (
    DELIVERIES,
    JOB_STUDIES,
    JOB_WORDS,
    JOBS,
    OPEN_DELIVERIES,
    REVIEWS,
    DeliveryState,
    JobState,
    clean,
)
from daemon.jobs.folder import JobFolder
from daemon.jobs.records import Arrival, Selection
from daemon.jobs.store import Job, JobStore, SeriesVerdict, job_of_row
from daemon.jobs.study import study_values

COLUMNS = {
    "PatientName": "patient_name",
    "PatientID": "patient_id",
    "AccessionNumber": "accession_number",
    "StudyDate": "study_date",
    "StudyDescription": "study_description",
    "SeriesDescription": "series_description",
}
"""Keyword and column of `JOB_STUDIES`."""
IDENTITIES = ("PatientName", "PatientID", "AccessionNumber")
"""What of it a job is found by."""
LONGEST_WORD = 128
MOST_TERMS = 8
_BETWEEN = re.compile(r"[\s^=,;\\]+")
_PARTS = re.compile(r"[\W_]+")
_AFTER_ALL = "\U0010ffff"


def keep_verdicts(store: JobStore, job_id: str, folder: JobFolder) -> None:
    """Keep what selection wrote about each series."""
    verdicts = [
        SeriesVerdict(
            job_id, s.series_uid, s.verdict, s.reasons, s.description, "" if s.number is None else str(s.number),
            s.instances, s.part, s.joined,
        )
        for s in Selection.read(folder.selection).series
    ]  # fmt: skip
    store.put_verdicts(job_id, verdicts)


def note_study(store: JobStore, job_id: str, folder: JobFolder) -> None:
    """Keep whose study a job is of as far as its folder says it now, and by which words it is found."""
    job = store.get(job_id)
    if job is None:
        return
    said = study_values(folder)
    arrival = Arrival.read_if_there(folder.arrival)
    selection = Selection.read_if_there(folder.selection)
    series = () if arrival is None else arrival.series_uids
    series += () if selection is None else tuple(verdict.series_uid for verdict in selection.series)
    words = words_of((said[keyword] for keyword in IDENTITIES), (job_id, job.study_uid, *series))
    store.put_study(job_id, {column: said[keyword] for keyword, column in COLUMNS.items()}, words)


def words_of(identities: Iterable[str], names: Iterable[str]) -> dict[str, bool]:
    """The words of a job; true: of a patient or an order.

    Args:
        identities: Patient's name, number and the like: found by each part, also between hyphens and the like.
        names: UIDs and ids: found as a whole.
    """
    words = {part: True for text in identities for term in terms_of(text) for part in (term, *_PARTS.split(term))}
    words |= {term: False for text in names for term in terms_of(text)}
    return {word[:LONGEST_WORD]: identity for word, identity in words.items() if word}


def terms_of(text: str) -> list[str]:
    """A text as folded words: without case, accents and the separators of person names."""
    apart = unicodedata.normalize("NFKD", clean(text))
    bare = "".join(letter for letter in apart if not unicodedata.combining(letter))
    folded = unicodedata.normalize("NFC", bare).casefold()
    return [word[:LONGEST_WORD] for word in _BETWEEN.split(folded) if word]


@dataclass(frozen=True)
class Asked:
    """What of the worklist is wanted.

    Attributes:
        text: As typed; each of its words must begin a word of the job.
        states: Of these states only; empty: of all.
        by_identity: Whether words of patients and orders count, not those of UIDs and ids alone.
    """

    text: str = ""
    states: Sequence[JobState] = ()
    by_identity: bool = False


@dataclass(frozen=True)
class Sent:
    """How many objects of a job stand where at one destination."""

    destination: str
    stored: int
    waiting: int
    dead: int

    @property
    def total(self) -> int:
        """All but those that later results replaced before they were sent."""
        return self.stored + self.waiting + self.dead


@dataclass(frozen=True)
class Row:
    """One line of the worklist.

    Attributes:
        study: Columns of `JOB_STUDIES`; empty where nothing is known.
        verdict: The reader's last one; empty: none yet.
    """

    job: Job
    study: Mapping[str, str] = field(default_factory=dict)
    verdict: str = ""
    sent: Sequence[Sent] = ()


def worklist(engine: sa.Engine, asked: Asked, *, limit: int, offset: int = 0) -> list[Row]:
    """Jobs as asked for, the newest first."""
    query = sa.select(JOBS).order_by(JOBS.c.created.desc(), JOBS.c.job_id).limit(limit).offset(offset)
    if asked.states:
        query = query.where(JOBS.c.state.in_([str(state) for state in asked.states]))
    for term in terms_of(asked.text)[:MOST_TERMS]:
        query = query.where(JOBS.c.job_id.in_(_with_word(term, by_identity=asked.by_identity)))
    with engine.connect() as connection:
        jobs = [job_of_row(row) for row in connection.execute(query)]
        ids = [job.job_id for job in jobs]
        studies = _studies(connection, ids)
        verdicts = _verdicts(connection, ids)
        sent = _sent(connection, ids)
    return [
        Row(job, studies.get(job.job_id, {}), verdicts.get(job.job_id, ""), sent.get(job.job_id, ())) for job in jobs
    ]


def study_of(engine: sa.Engine, job_id: str) -> Mapping[str, str]:
    """Whose study one job is of: columns of `JOB_STUDIES`; empty where nothing is known."""
    with engine.connect() as connection:
        return _studies(connection, [job_id]).get(job_id, {})


def _with_word(term: str, *, by_identity: bool) -> sa.Select[Any]:
    begins = sa.and_(JOB_WORDS.c.word >= term, JOB_WORDS.c.word < term + _AFTER_ALL)
    query = sa.select(JOB_WORDS.c.job_id).where(begins)
    return query if by_identity else query.where(JOB_WORDS.c.identity.is_(False))


def _studies(connection: sa.Connection, ids: Sequence[str]) -> dict[str, dict[str, str]]:
    rows = connection.execute(sa.select(JOB_STUDIES).where(JOB_STUDIES.c.job_id.in_(ids)))
    return {row.job_id: {column: row._mapping[column] for column in COLUMNS.values()} for row in rows}


def _verdicts(connection: sa.Connection, ids: Sequence[str]) -> dict[str, str]:
    query = sa.select(REVIEWS.c.job_id, REVIEWS.c.verdict).where(REVIEWS.c.job_id.in_(ids))
    return {row.job_id: row.verdict for row in connection.execute(query.order_by(REVIEWS.c.review_id))}


def _sent(connection: sa.Connection, ids: Sequence[str]) -> dict[str, list[Sent]]:
    def number(*states: DeliveryState) -> sa.ColumnElement[int]:
        return sa.func.sum(sa.case((DELIVERIES.c.state.in_([str(state) for state in states]), 1), else_=0))

    query = (
        sa.select(
            DELIVERIES.c.job_id,
            DELIVERIES.c.destination,
            number(DeliveryState.SENT).label("stored"),
            number(*OPEN_DELIVERIES).label("waiting"),
            number(DeliveryState.DEAD).label("dead"),
        )
        .where(DELIVERIES.c.job_id.in_(ids))
        .group_by(DELIVERIES.c.job_id, DELIVERIES.c.destination)
        .order_by(DELIVERIES.c.destination)
    )
    found: dict[str, list[Sent]] = {}
    for row in connection.execute(query):
        found.setdefault(row.job_id, []).append(Sent(row.destination, int(row.stored), int(row.waiting), int(row.dead)))
    return found
