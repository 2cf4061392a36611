"""The index of what was received: tables in the daemon's database, rebuildable from segments and job folders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from daemon.database.engine import upsert
from daemon.database.tables import ARRIVALS, COMPLETE_NOW, INSTANCES, InstanceState
from daemon.errors import DaemonError

_KEY = ("study_uid", "series_uid", "sop_uid", "sha256")


def is_instance() -> sa.ColumnElement[bool]:
    """The condition for one row, with parameters that `instance_keys` fills."""
    return sa.and_(*(INSTANCES.c[name] == sa.bindparam(f"of_{name}") for name in _KEY))


def instance_keys(row: Mapping[Any, Any]) -> dict[str, Any]:
    """Parameters of `is_instance`."""
    return {f"of_{name}": row[name] for name in _KEY}


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


def complete_now(engine: sa.Engine, study_uid: str) -> None:
    """Let a study that waits be handed over at once, whatever it seems to lack.

    Raises:
        DaemonError: nothing of it waits.
    """
    waits = sa.select(INSTANCES.c.study_uid).where(
        INSTANCES.c.study_uid == study_uid, INSTANCES.c.state == InstanceState.PENDING.value
    )
    with engine.begin() as connection:
        if connection.execute(waits.limit(1)).first() is None:
            raise DaemonError("no study of this UID waits: it was handed over meanwhile, or never came")
        connection.execute(upsert(engine, COMPLETE_NOW, {"study_uid": study_uid}, update=()))


@dataclass(frozen=True)
class SharedUids:
    """Instances of a series whose SOP Instance UIDs stand in another series, too."""

    series_uid: str
    instances: int
    study_uid: str
    """Study of the other series."""
    other_series_uid: str


def shared_uids(engine: sa.Engine, study_uid: str) -> tuple[SharedUids, ...]:
    """Where SOP Instance UIDs of a study were received in another series, of this study or of another one."""
    other = INSTANCES.alias()
    query = (
        sa.select(
            INSTANCES.c.series_uid,
            sa.func.count(INSTANCES.c.sop_uid.distinct()).label("instances"),
            other.c.study_uid,
            other.c.series_uid.label("other_series_uid"),
        )
        .join(other, other.c.sop_uid == INSTANCES.c.sop_uid)
        .where(
            INSTANCES.c.study_uid == study_uid,
            sa.or_(other.c.study_uid != INSTANCES.c.study_uid, other.c.series_uid != INSTANCES.c.series_uid),
        )
        .group_by(INSTANCES.c.series_uid, other.c.study_uid, other.c.series_uid)
        .order_by(INSTANCES.c.series_uid, other.c.study_uid, other.c.series_uid)
    )
    with engine.connect() as connection:
        return tuple(SharedUids(*row) for row in connection.execute(query))


def notes_on_study(engine: sa.Engine, study_uid: str) -> tuple[str, ...]:
    """What is to be known of a study's instances beside its jobs, in sentences; as it stands now."""
    with engine.connect() as connection:
        rows = connection.execute(sa.select(INSTANCES).where(INSTANCES.c.study_uid == study_uid)).all()
    notes = []
    conflicts = sum(row.state == InstanceState.CONFLICT for row in rows)
    if conflicts:
        notes.append(f"{conflicts} instances are duplicates of others by their UIDs, with other bytes: kept aside")
    repeats = sum(row.copies - 1 for row in rows)
    if repeats:
        notes.append(f"{repeats} instances came again with the same bytes")
    notes += [
        f"{shared.instances} instances of series {shared.series_uid} share their SOP Instance UIDs with series "
        f"{shared.other_series_uid} of study {shared.study_uid}"
        for shared in shared_uids(engine, study_uid)
    ]
    return tuple(notes)


_WORDS = {
    InstanceState.PENDING: "waiting for the study to be complete",
    InstanceState.HANDED_OVER: "handed over",
    InstanceState.OWN_RESULT: "results of our own that came back",
    InstanceState.CONFLICT: "duplicates of others by their UIDs, with other bytes, kept aside",
    InstanceState.DAMAGED: "damaged on the disk",
    InstanceState.PASSED_ON: "passed on to the receiver that assembles the study",
    InstanceState.SET_ASIDE: "of a study that could not be handed over",
}


def arrival_of_series(engine: sa.Engine, series_uid: str) -> str | None:
    """How many instances of a series came, and what became of them, in words; None where none ever came."""
    query = (
        sa.select(
            INSTANCES.c.state, sa.func.count().label("number"), sa.func.sum(INSTANCES.c.copies - 1).label("repeats")
        )
        .where(INSTANCES.c.series_uid == series_uid)
        .group_by(INSTANCES.c.state)
        .order_by(INSTANCES.c.state)
    )
    with engine.connect() as connection:
        rows = connection.execute(query).all()
    if not rows:
        return None
    repeats = sum(int(row.repeats) for row in rows)
    found = [f"{row.number} {_WORDS[InstanceState(row.state)]}" for row in rows]
    if repeats:
        found.append(f"{repeats} came again with the same bytes")
    return "received: " + ", ".join(found)
