"""What the assembler asks about pulls: which studies are being fetched, and of which one was given up in the middle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import sqlalchemy as sa

from daemon.database.tables import INSTANCES, OF_A_JOB, PULLED, InstanceState, PulledState
from daemon.pull.store import PulledStudy, study_of_row

LATE_SECONDS = 60.0
"""What comes so soon after a study was given up was still sent for the pull: a PACS does not hear of it at once."""


@dataclass(frozen=True)
class Fetches:
    """What is fetched on one database.

    Attributes:
        engine: The daemon's database.
        index: This host's index of received instances (`open_index`).
    """

    engine: sa.Engine
    index: sa.Engine

    def under_way(self) -> set[str]:
        """Studies of which something is still to be fetched: none of them is complete, however long nothing comes.

        Of one that somebody else sends meanwhile nothing is missing any more.
        """
        with self.engine.connect() as connection:
            rows = connection.execute(sa.select(PULLED).where(PULLED.c.state == PulledState.FETCHING.value)).all()
        return {row.study_uid for row in rows if not self._is_whole(study_of_row(row))}

    def left_half(self, study_uid: str) -> str:
        """Why what came of a study is not to be reported: its pull ended in the middle; empty where it may be.

        What was sent afterwards was sent for its own sake.
        """
        begun = (PULLED.c.study_uid == study_uid, PULLED.c.started.is_not(None))
        with self.engine.connect() as connection:
            row = connection.execute(sa.select(PULLED).where(*begun).order_by(PULLED.c.updated.desc())).first()
        if row is None:
            return ""
        study = study_of_row(row)
        given_up = study.state in (PulledState.FAILED, PulledState.CANCELLED) and not study.instances
        if not given_up or self._is_whole(study) or self._came_after(study):
            return ""
        return f"pull {study.pull_id}, {study.state}, did not fetch all of it (`braingemma pull show` says why)"

    def _is_whole(self, study: PulledStudy) -> bool:
        """Whether as much is here of each series that was to be fetched as the PACS told; False where it did not."""
        told: Mapping[str, int | None] = {s["series_uid"]: s["instances"] for s in study.series if s["taken"]}
        mine = (INSTANCES.c.study_uid == study.study_uid, INSTANCES.c.state.in_(OF_A_JOB))
        number = sa.func.count(INSTANCES.c.sop_uid.distinct())
        query = sa.select(INSTANCES.c.series_uid, number).where(*mine).group_by(INSTANCES.c.series_uid)
        with self.index.connect() as connection:
            here = {str(uid): int(n) for uid, n in connection.execute(query)}
        return bool(told) and all(n is not None and 0 < n <= here.get(uid, 0) for uid, n in told.items())

    def _came_after(self, study: PulledStudy) -> bool:
        pending = (INSTANCES.c.study_uid == study.study_uid, INSTANCES.c.state == InstanceState.PENDING.value)
        with self.index.connect() as connection:
            last = connection.execute(sa.select(sa.func.max(INSTANCES.c.last_received)).where(*pending)).scalar()
        return last is not None and last > study.updated + LATE_SECONDS
