"""The index of what was received: tables in the daemon's database, rebuildable from segments and job folders."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass

import sqlalchemy as sa

from daemon.database.engine import metadata


class InstanceState(enum.StrEnum):
    """What became of a received instance."""

    PENDING = "pending"
    """Waits until its study is complete."""
    HANDED_OVER = "handed_over"
    """Lies in the input folder of a job."""
    OWN_RESULT = "own_result"
    """One of our results that a PACS sent back; never starts work."""
    CONFLICT = "conflict"
    """Has the SOP Instance UID of an earlier instance, but other bytes; kept aside, the earlier one stands."""
    DAMAGED = "damaged"
    """Its bytes in the spool no longer have their checksum."""


INSTANCES = sa.Table(
    "received_instances",
    metadata,
    sa.Column("sop_uid", sa.String(64), primary_key=True),
    sa.Column("sha256", sa.String(64), primary_key=True),  # of the encoded data set
    sa.Column("study_uid", sa.String(64), nullable=False, index=True),
    sa.Column("series_uid", sa.String(64), nullable=False, index=True),
    sa.Column("sop_class_uid", sa.String(64), nullable=False),
    sa.Column("transfer_syntax_uid", sa.String(64), nullable=False),
    sa.Column("state", sa.String(16), nullable=False, index=True),
    sa.Column("job_id", sa.String(64), index=True),  # the job whose input folder holds its bytes
    sa.Column("file", sa.Text, nullable=False, default=""),  # name in that folder
    sa.Column("segment", sa.String(128), nullable=False, index=True),
    sa.Column("data_offset", sa.BigInteger, nullable=False),
    sa.Column("data_length", sa.BigInteger, nullable=False),
    sa.Column("association", sa.String(128), nullable=False, index=True),
    sa.Column("calling_aet", sa.String(16), nullable=False),
    sa.Column("peer", sa.String(64), nullable=False),
    sa.Column("received", sa.Float, nullable=False),
    sa.Column("last_received", sa.Float, nullable=False),  # later than `received` where it came again
    sa.Column("copies", sa.Integer, nullable=False, default=1),
)
"""One row for each distinct instance: the same UID with the same bytes is one."""

OPEN_ASSOCIATIONS = sa.Table(
    "received_open_associations",
    metadata,
    sa.Column("association", sa.String(128), primary_key=True),
    sa.Column("study_uid", sa.String(64), primary_key=True),
    sa.Column("receiver", sa.String(64), nullable=False, index=True),
)
"""Associations that sent instances of a study and are not known to have ended."""

SEGMENTS = sa.Table(
    "received_segments",
    metadata,
    sa.Column("segment", sa.String(128), primary_key=True),
    sa.Column("consumed", sa.BigInteger, nullable=False),  # bytes that are indexed
    sa.Column("finished", sa.Boolean, nullable=False),  # nobody writes it and all of it is indexed
)
"""How far each segment is indexed."""

ARRIVALS = sa.Table(
    "received_arrivals",
    metadata,
    sa.Column("job_id", sa.String(64), primary_key=True),
    sa.Column("study_uid", sa.String(64), nullable=False, index=True),
    sa.Column("supersedes", sa.String(64)),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("submitted", sa.Boolean, nullable=False),
)
"""Studies that were found complete, each with its input folder; `submitted` once the pipeline knows."""


@dataclass(frozen=True)
class ReceivedStudy:
    """What the job list and the web page show of one study."""

    study_uid: str
    series_uids: tuple[str, ...]
    instances: int
    pending: int
    """Instances that wait for the study to be complete."""
    conflicts: int
    own_results: int
    damaged: int
    repeats: int
    """How often an instance came again with the same bytes."""
    calling_aets: tuple[str, ...]
    first_received: float
    last_received: float
    receiving: bool
    """Whether an association that sent instances of it is open."""
    job_ids: tuple[str, ...]
    """Jobs made of it, oldest first; a later one supersedes those before it."""


def received_studies(engine: sa.Engine, study_uids: Iterable[str] | None = None) -> tuple[ReceivedStudy, ...]:
    """The received studies, the latest first; all of them, or those asked for."""
    query = sa.select(INSTANCES)
    if study_uids is not None:
        query = query.where(INSTANCES.c.study_uid.in_(list(study_uids)))
    with engine.connect() as connection:
        rows = connection.execute(query).all()
        jobs = connection.execute(sa.select(ARRIVALS).order_by(ARRIVALS.c.created)).all()
        receiving = set(connection.execute(sa.select(OPEN_ASSOCIATIONS.c.study_uid)).scalars())
    studies: dict[str, list[sa.Row[tuple[object, ...]]]] = {}
    for row in rows:
        studies.setdefault(row.study_uid, []).append(row)
    found = [
        _summary(uid, members, tuple(job.job_id for job in jobs if job.study_uid == uid), receiving=uid in receiving)
        for uid, members in studies.items()
    ]
    return tuple(sorted(found, key=lambda study: study.last_received, reverse=True))


def _summary(
    study_uid: str, rows: list[sa.Row[tuple[object, ...]]], job_ids: tuple[str, ...], *, receiving: bool
) -> ReceivedStudy:
    states = [row.state for row in rows]
    return ReceivedStudy(
        study_uid=study_uid,
        series_uids=tuple(sorted({row.series_uid for row in rows if row.state != InstanceState.OWN_RESULT})),
        instances=states.count(InstanceState.PENDING) + states.count(InstanceState.HANDED_OVER),
        pending=states.count(InstanceState.PENDING),
        conflicts=states.count(InstanceState.CONFLICT),
        own_results=states.count(InstanceState.OWN_RESULT),
        damaged=states.count(InstanceState.DAMAGED),
        repeats=sum(row.copies - 1 for row in rows),
        calling_aets=tuple(sorted({row.calling_aet for row in rows})),
        first_received=min(row.received for row in rows),
        last_received=max(row.last_received for row in rows),
        receiving=receiving,
        job_ids=job_ids,
    )


def forget_study(engine: sa.Engine, study_uid: str) -> None:
    """Forget the handed-over instances and arrivals of a study whose job folders were purged.

    Sent again, its instances then count as new and start a new job.
    """
    with engine.begin() as connection:
        connection.execute(
            sa.delete(INSTANCES).where(
                INSTANCES.c.study_uid == study_uid, INSTANCES.c.state != InstanceState.PENDING.value
            )
        )
        connection.execute(sa.delete(ARRIVALS).where(ARRIVALS.c.study_uid == study_uid, ARRIVALS.c.submitted.is_(True)))
