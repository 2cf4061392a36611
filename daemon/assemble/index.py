"""The index of what was received: tables in the daemon's database, rebuildable from segments and job folders."""

from __future__ import annotations

import sqlalchemy as sa

from daemon.database.tables import ARRIVALS, INSTANCES, InstanceState


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


def arrival_of_series(engine: sa.Engine, series_uid: str) -> str | None:
    """How many instances of a series came, and what became of them, in words; None where none ever came."""
    query = (
        sa.select(INSTANCES.c.state, sa.func.count().label("number"))
        .where(INSTANCES.c.series_uid == series_uid)
        .group_by(INSTANCES.c.state)
        .order_by(INSTANCES.c.state)
    )
    with engine.connect() as connection:
        rows = connection.execute(query).all()
    if not rows:
        return None
    return "received: " + ", ".join(f"{row.number} {row.state.replace('_', ' ')}" for row in rows)
