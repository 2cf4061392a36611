"""Storage commitment (PS3.4 Annex J): ask a PACS to take responsibility for what it accepted, and take its answer.

We ask by N-ACTION. The answer, N-EVENT-REPORT, comes on the same association or, sooner or later, on one that the
PACS opens to our listener. A receiver process writes it to a file before it answers Success; the service moves it into
the database, where the delivery finds it by its transaction.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from pydicom.uid import generate_uid

from daemon.database.tables import COMMITMENTS
from daemon.deliver.client import DestinationClient
from daemon.deliver.outgoing import Outgoing
from daemon.errors import DaemonError, Permanent
from daemon.jobs.store import now
from daemon.spool.commitment_reports import Report, read_report

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Commitment:
    """What was asked for in one transaction, and what was answered; times are seconds since the epoch, UTC."""

    requested: float
    answered: float | None
    committed: frozenset[str]
    failed: Mapping[str, str]


def request(
    engine: sa.Engine, job_id: str, destination: str, files: Sequence[Outgoing], client: DestinationClient
) -> str:
    """Ask for storage commitment of all files in one transaction.

    Returns:
        Its transaction UID; the answer may be there already.

    Raises:
        NotOffered: the destination has no storage commitment, or refuses it for these.
        Retryable: the destination cannot be reached.
    """
    transaction_uid = str(generate_uid())
    _record_request(engine, transaction_uid, job_id, destination)  # first: the answer may overtake the response
    try:
        client.request_commitment(transaction_uid, files, lambda report: record_answer(engine, read_report(report)))
    except DaemonError:
        with engine.begin() as connection:
            connection.execute(sa.delete(COMMITMENTS).where(COMMITMENTS.c.transaction_uid == transaction_uid))
        raise
    return transaction_uid


def take_reports(engine: sa.Engine, folder: Path) -> int:
    """Move the reports that receivers wrote into the database; how many. One that is damaged is renamed, and stays."""
    files = sorted(folder.glob("report-*.json")) if folder.is_dir() else []
    for file in files:
        try:
            report = Report.read(file)
        except Permanent as error:
            log.warning("%s; renamed", error)
            file.rename(file.with_suffix(".damaged"))
            continue
        record_answer(engine, report)
        file.unlink()
    return len(files)


def _record_request(engine: sa.Engine, transaction_uid: str, job_id: str, destination: str) -> None:
    row: dict[str, Any] = {
        "transaction_uid": transaction_uid, "job_id": job_id, "destination": destination, "requested": now(),
        "answered": None, "committed": "[]", "failed": "{}",
    }  # fmt: skip
    with engine.begin() as connection:
        connection.execute(sa.insert(COMMITMENTS).values(**row))


def record_answer(engine: sa.Engine, report: Report) -> None:
    """Write an answer down; one to a question that we never asked is left aside."""
    mine = COMMITMENTS.c.transaction_uid == report.transaction_uid
    values = {
        "answered": now(),
        "committed": json.dumps(list(report.committed)),
        "failed": json.dumps(dict(report.failed)),
    }
    with engine.begin() as connection:
        found = connection.execute(sa.update(COMMITMENTS).where(mine).values(**values)).rowcount
    if not found:
        log.warning("storage commitment: a report on transaction %s, which is not ours", report.transaction_uid)


def find(engine: sa.Engine, transaction_uid: str) -> Commitment | None:
    """A transaction, or None where there is none of that UID."""
    query = sa.select(COMMITMENTS).where(COMMITMENTS.c.transaction_uid == transaction_uid)
    with engine.connect() as connection:
        row = connection.execute(query).one_or_none()
    if row is None:
        return None
    return Commitment(row.requested, row.answered, frozenset(json.loads(row.committed)), json.loads(row.failed))


def forget(engine: sa.Engine, job_id: str) -> None:
    """Remove the transactions of a job that is removed."""
    with engine.begin() as connection:
        connection.execute(sa.delete(COMMITMENTS).where(COMMITMENTS.c.job_id == job_id))
