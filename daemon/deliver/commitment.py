"""Storage commitment (PS3.4 Annex J): ask a PACS to take responsibility for what it accepted, and take its answer.

We ask by N-ACTION. The answer, N-EVENT-REPORT, comes on the same association or, sooner or later, on one that the
PACS opens to our listener. A receiver process writes it to a file before it answers Success; the service moves it into
the database, where the delivery finds it by its transaction.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid
from pynetdicom import evt
from pynetdicom.sop_class import StorageCommitmentPushModel, StorageCommitmentPushModelInstance

from daemon.database.tables import COMMITMENTS
from daemon.deliver.dimse import Peer, application_entity, associate
from daemon.deliver.outgoing import NotOffered, Outgoing
from daemon.jobs.store import now
from daemon.spool.commitment_reports import Report, read_kept, read_report

log = logging.getLogger(__name__)

REQUEST = 1
"""Action Type ID (PS3.4 Table J.3-1)."""

SAME_ASSOCIATION_SECONDS = 1.0
"""How long the association of a request stays open for the answer; after that it comes on another one."""


@dataclass(frozen=True)
class Commitment:
    """What was asked for in one transaction, and what was answered; times are seconds since the epoch, UTC."""

    requested: float
    answered: float | None
    committed: frozenset[str]
    failed: Mapping[str, str]


def request(
    engine: sa.Engine,
    job_id: str,
    destination: str,
    files: Sequence[Outgoing],
    peer: Peer,
    calling_aet: str,
    *,
    timeout: float = 60,
) -> str:
    """Ask for storage commitment of all files in one transaction.

    Returns:
        Its transaction UID; the answer may be there already.

    Raises:
        NotOffered: the peer has no storage commitment, or refuses it for these.
        Retryable: the peer cannot be reached.
    """
    transaction_uid = str(generate_uid())
    answered = threading.Event()

    def on_report(event: evt.Event) -> tuple[int, Dataset | None]:
        record_answer(engine, read_report(event.event_information))
        answered.set()
        return 0x0000, None

    ae = application_entity(calling_aet, timeout)
    ae.add_requested_context(StorageCommitmentPushModel, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
    association = associate(ae, peer, [(evt.EVT_N_EVENT_REPORT, on_report)])
    try:
        _record_request(engine, transaction_uid, job_id, destination)  # first: the answer may overtake the response
        status, _ = association.send_n_action(
            _references(transaction_uid, files), REQUEST, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
        )
        if "Status" not in status or status.Status != 0x0000:
            got = f"status 0x{status.Status:04X}" if "Status" in status else "no answer"
            raise NotOffered(f"{peer}: N-ACTION for storage commitment: expected status 0x0000, got {got}")
        answered.wait(SAME_ASSOCIATION_SECONDS)
    finally:
        if association.is_established:
            association.release()
    return transaction_uid


def _references(transaction_uid: str, files: Sequence[Outgoing]) -> Dataset:
    dataset = Dataset()
    dataset.TransactionUID = transaction_uid
    dataset.ReferencedSOPSequence = []
    for outgoing in files:
        item = Dataset()
        item.ReferencedSOPClassUID = outgoing.sop_class_uid
        item.ReferencedSOPInstanceUID = outgoing.sop_instance_uid
        dataset.ReferencedSOPSequence.append(item)
    return dataset


def take_reports(engine: sa.Engine, folder: Path) -> int:
    """Move the reports that receivers wrote into the database; how many."""
    files = sorted(folder.glob("report-*.json")) if folder.is_dir() else []
    for file in files:
        record_answer(engine, read_kept(file))
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
