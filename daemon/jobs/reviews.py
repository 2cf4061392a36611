"""The reader's verdict on a report: agree, edit, or reject with a reason; kept for statistics and for training.

Verdicts are added, never changed: a second verdict of the same job stands beside the first, and the last one counts.
A row holds what was judged, so that it outlives the job's files. It does not say whose study it was: the job's id is a
digest.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from daemon.database.tables import REVIEWS
from daemon.errors import DaemonError
from daemon.jobs.folder import JobFolder
from daemon.jobs.report import read_report
from daemon.jobs.store import now

LONGEST_TEXT = 20_000
"""Characters of an edited report or a reason."""


class Verdict(enum.StrEnum):
    """What a reader says of a report."""

    AGREE = "agree"
    EDIT = "edit"
    REJECT = "reject"


@dataclass(frozen=True)
class Review:
    """One verdict.

    Attributes:
        report: The text that was judged.
        edited: The reader's text, where the verdict is `edit`.
        facts: Findings, model and input of the report that was judged.
        created: Seconds since the epoch, UTC.
    """

    review_id: int
    job_id: str
    verdict: Verdict
    reader: str
    reason: str
    report: str
    edited: str
    facts: Mapping[str, Any]
    created: float

    @property
    def text(self) -> str:
        """The report as the reader leaves it; empty where it was rejected."""
        if self.verdict is Verdict.REJECT:
            return ""
        return self.edited if self.verdict is Verdict.EDIT else self.report

    def to_json(self) -> dict[str, Any]:
        """One line of the export."""
        return {**vars(self), "verdict": str(self.verdict), "facts": dict(self.facts)}


def add_review(
    engine: sa.Engine, folder: JobFolder, job_id: str, *, verdict: str, reader: str, reason: str = "", edited: str = ""
) -> Review:
    """Keep a verdict on a job's report.

    Raises:
        DaemonError: there is no report, or the verdict lacks what belongs to it.
    """
    if verdict not in list(Verdict):
        raise DaemonError(f"expected a verdict of {', '.join(Verdict)}, got {verdict!r}")
    if not folder.report_json.exists():
        raise DaemonError(f"job {job_id} has no report to judge")
    report = read_report(folder)
    edited, reason = edited.replace("\r\n", "\n").strip(), reason.strip()
    _check(Verdict(verdict), report.report, reason, edited)
    row = {
        "job_id": job_id,
        "verdict": verdict,
        "reader": reader,
        "reason": reason,
        "report": report.report,
        "edited": edited if verdict == Verdict.EDIT else "",
        "facts": report.model_dump_json(include={"findings", "model", "input"}),
        "created": now(),
    }
    with engine.begin() as connection:
        added = sa.insert(REVIEWS).values(**row).returning(REVIEWS.c.review_id)
        review_id = connection.execute(added).scalar_one()
    return _review({"review_id": review_id, **row})


def _check(verdict: Verdict, report: str, reason: str, edited: str) -> None:
    if max(len(reason), len(edited)) > LONGEST_TEXT:
        raise DaemonError(f"expected at most {LONGEST_TEXT} characters")
    if verdict is Verdict.REJECT and not reason:
        raise DaemonError("a rejected report needs a reason")
    if verdict is Verdict.EDIT and (not edited or edited == report.strip()):
        raise DaemonError("an edited report needs a text that differs from the draft")


def reviews_of(engine: sa.Engine, job_id: str) -> list[Review]:
    """Verdicts on a job's report, the oldest first."""
    query = sa.select(REVIEWS).where(REVIEWS.c.job_id == job_id).order_by(REVIEWS.c.review_id)
    with engine.connect() as connection:
        return [_review(row._mapping) for row in connection.execute(query)]


def all_reviews(engine: sa.Engine) -> Iterator[Review]:
    """Every verdict, the oldest first."""
    with engine.connect() as connection:
        for row in connection.execute(sa.select(REVIEWS).order_by(REVIEWS.c.review_id)):
            yield _review(row._mapping)


def count_reviews(engine: sa.Engine) -> dict[Verdict, int]:
    """How many jobs' last verdict is which."""
    last = sa.select(sa.func.max(REVIEWS.c.review_id)).group_by(REVIEWS.c.job_id)
    query = (
        sa.select(REVIEWS.c.verdict, sa.func.count().label("number"))
        .where(REVIEWS.c.review_id.in_(last))
        .group_by(REVIEWS.c.verdict)
    )
    with engine.connect() as connection:
        found = {Verdict(row.verdict): int(row.number) for row in connection.execute(query)}
    return {verdict: found.get(verdict, 0) for verdict in Verdict}


def _review(row: Mapping[Any, Any]) -> Review:
    return Review(**{**row, "verdict": Verdict(row["verdict"]), "facts": json.loads(row["facts"])})
