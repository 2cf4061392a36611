"""What stands where, in a few indexed queries: for the page and for the metrics. Nothing here names a patient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from daemon.database.tables import (
    DELIVERIES,
    INSTANCES,
    JOBS,
    OPEN_ASSOCIATIONS,
    OPEN_DELIVERIES,
    VERDICTS,
    DeliveryState,
    InstanceState,
    JobState,
)
from daemon.jobs.store import Job, SeriesVerdict, job_of_row, verdict_of_row

OPEN = sorted(str(state) for state in OPEN_DELIVERIES)


@dataclass(frozen=True)
class Arriving:
    """A study that is not complete yet; times are seconds since the epoch, UTC."""

    study_uid: str
    instances: int
    series: int
    calling_aet: str
    first_received: float
    last_received: float
    receiving: bool
    """Whether an association that sent instances of it is open."""


@dataclass(frozen=True)
class Backlog:
    """What waits for one destination."""

    destination: str
    waiting: int
    """Objects that are tried again by themselves."""
    dead: int
    """Objects in the dead letter: a person must retry them."""
    jobs: int
    oldest: float
    """When the oldest of these jobs was received, seconds since the epoch, UTC."""
    reason: str
    """Of one of the last attempts."""


def count_by_state(engine: sa.Engine) -> dict[JobState, int]:
    """How many jobs have each state; all states are there."""
    query = sa.select(JOBS.c.state, sa.func.count().label("number")).group_by(JOBS.c.state)
    with engine.connect() as connection:
        found = {JobState(row.state): int(row.number) for row in connection.execute(query)}
    return {state: found.get(state, 0) for state in JobState}


def jobs_page(engine: sa.Engine, states: Sequence[JobState], *, limit: int, offset: int = 0) -> list[Job]:
    """Jobs of these states (none: of all), the newest first."""
    query = sa.select(JOBS).order_by(JOBS.c.created.desc(), JOBS.c.job_id).limit(limit).offset(offset)
    if states:
        query = query.where(JOBS.c.state.in_([str(state) for state in states]))
    with engine.connect() as connection:
        return [job_of_row(row) for row in connection.execute(query)]


def arriving(engine: sa.Engine, *, limit: int = 50) -> list[Arriving]:
    """Studies that wait until they are complete, the latest first."""
    query = (
        sa.select(
            INSTANCES.c.study_uid,
            sa.func.count().label("instances"),
            sa.func.count(INSTANCES.c.series_uid.distinct()).label("series"),
            sa.func.min(INSTANCES.c.calling_aet).label("calling_aet"),
            sa.func.min(INSTANCES.c.received).label("first"),
            sa.func.max(INSTANCES.c.last_received).label("last"),
        )
        .where(INSTANCES.c.state == InstanceState.PENDING.value)
        .group_by(INSTANCES.c.study_uid)
        .order_by(sa.desc("last"))
        .limit(limit)
    )
    with engine.connect() as connection:
        rows = connection.execute(query).all()
        open_studies = set(connection.execute(sa.select(OPEN_ASSOCIATIONS.c.study_uid)).scalars())
    return [
        Arriving(
            row.study_uid, row.instances, row.series, row.calling_aet, row.first, row.last,
            row.study_uid in open_studies,
        )
        for row in rows
    ]  # fmt: skip


def backlogs(engine: sa.Engine) -> list[Backlog]:
    """What waits for each destination, or lies in its dead letter."""
    waiting = sa.func.sum(sa.case((DELIVERIES.c.state.in_(OPEN), 1), else_=0))
    dead = sa.func.sum(sa.case((DELIVERIES.c.state == DeliveryState.DEAD.value, 1), else_=0))
    query = (
        sa.select(
            DELIVERIES.c.destination,
            waiting.label("waiting"),
            dead.label("dead"),
            sa.func.count(DELIVERIES.c.job_id.distinct()).label("jobs"),
            sa.func.min(JOBS.c.created).label("oldest"),
            sa.func.max(DELIVERIES.c.reason).label("reason"),
        )
        .join(JOBS, JOBS.c.job_id == DELIVERIES.c.job_id)
        .where(DELIVERIES.c.state.in_([*OPEN, DeliveryState.DEAD.value]))
        .group_by(DELIVERIES.c.destination)
        .order_by(DELIVERIES.c.destination)
    )
    with engine.connect() as connection:
        rows = connection.execute(query).all()
    return [Backlog(r.destination, int(r.waiting), int(r.dead), r.jobs, r.oldest, r.reason) for r in rows]


def with_dead_letter(engine: sa.Engine, destination: str, *, limit: int) -> list[str]:
    """Jobs of which something lies in a destination's dead letter, the oldest first."""
    query = (
        sa.select(JOBS.c.job_id)
        .join(DELIVERIES, JOBS.c.job_id == DELIVERIES.c.job_id)
        .where(DELIVERIES.c.state == DeliveryState.DEAD.value, DELIVERIES.c.destination == destination)
        .group_by(JOBS.c.job_id, JOBS.c.created)
        .order_by(JOBS.c.created)
        .limit(limit)
    )
    with engine.connect() as connection:
        return list(connection.execute(query).scalars())


def refused_series(engine: sa.Engine, *, limit: int, offset: int = 0) -> list[SeriesVerdict]:
    """Series that were not reported, the newest job's first."""
    query = (
        sa.select(VERDICTS)
        .join(JOBS, JOBS.c.job_id == VERDICTS.c.job_id)
        .where(VERDICTS.c.verdict == "refused")
        .order_by(JOBS.c.created.desc(), VERDICTS.c.series_uid, VERDICTS.c.part)
        .limit(limit)
        .offset(offset)
    )
    with engine.connect() as connection:
        return [verdict_of_row(row) for row in connection.execute(query)]


def replaced_by(engine: sa.Engine, job_id: str) -> str | None:
    """The newest job that supersedes a job, straight away or over others between; None where it stands."""
    newest, query = None, sa.select(JOBS.c.job_id).order_by(JOBS.c.created.desc()).limit(1)
    with engine.connect() as connection:
        while (found := connection.execute(query.where(JOBS.c.supersedes == (newest or job_id))).scalar()) is not None:
            newest = str(found)
    return newest


def oldest_queued(engine: sa.Engine) -> float | None:
    """When the job that waits longest for its turn was received, seconds since the epoch, UTC."""
    query = sa.select(sa.func.min(JOBS.c.created)).where(JOBS.c.state == JobState.QUEUED.value)
    with engine.connect() as connection:
        found = connection.execute(query).scalar_one()
    return None if found is None else float(found)
