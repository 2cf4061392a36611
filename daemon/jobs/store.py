"""What the daemon knows about its work: jobs, the verdict on each series, and every delivery.

The command line and the web page read these tables, also while the daemon is stopped. DBOS keeps its own record of
each workflow beside them in the same database; these tables hold what people ask about.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from daemon.database.engine import upsert
from daemon.database.tables import (
    DELIVERIES,
    JOB_STUDIES,
    JOB_WORDS,
    JOBS,
    OPEN_DELIVERIES,
    PAUSES,
    VERDICTS,
    DeliveryState,
    JobState,
)
from daemon.jobs.priority import SENT, turn
from dicom_io.objects.kinds import KINDS


@dataclass(frozen=True)
class Job:
    """One row of the job list.

    Attributes:
        created: Seconds since the epoch, UTC; so is `updated`.
        timings: Seconds by step.
        runs: How often the job was started by a person or by arrival (retries within a run not counted).
        result: The report's findings in one line; empty until it is written.
        series_uid: The series that it reports; empty until that is decided.
        deaths: How often what worked on it ended without a word, or was given up, in the step that it is at. Above 0
            in a job that was set aside: it was for this, and not for what its images show.
        priority: Its class, by `[[rules]]`.
    """

    job_id: str
    study_uid: str
    supersedes: str | None
    state: JobState
    step: str
    reason: str
    created: float
    updated: float
    runs: int
    progress: str
    timings: Mapping[str, float] = field(default_factory=dict)
    result: str = ""
    series_uid: str = ""
    deaths: int = 0
    priority: str = SENT

    @property
    def turn(self) -> int:
        """The engine's number for it: the smallest goes first."""
        return turn(self.created, self.priority)

    def to_json(self) -> dict[str, Any]:
        """As `braingemma jobs list --json` prints it."""
        return {**vars(self), "state": str(self.state), "timings": dict(self.timings)}


@dataclass(frozen=True)
class SeriesVerdict:
    """What selection said of one series, with each rule's reason.

    Attributes:
        part: 1, 2, ... of several acquisitions under one series UID, which are judged apart; 0 otherwise.
        joined: The SeriesInstanceUIDs of all slices, where each came as a series of its own.
    """

    job_id: str
    series_uid: str
    verdict: str
    reasons: tuple[str, ...]
    description: str = ""
    number: str = ""
    instances: int = 0
    part: int = 0
    joined: tuple[str, ...] = ()

    @property
    def named(self) -> str:
        """The series in words: its UID, and which of its acquisitions."""
        return f"{self.series_uid}, acquisition {self.part}" if self.part else self.series_uid


@dataclass(frozen=True)
class Delivery:
    """One object on its way to one destination.

    Attributes:
        status: DIMSE status of the last attempt, hexadecimal; HTTP's reason code where it went by STOW-RS.
        attempts: How often it was sent, or its destination could not be reached.
        transaction_uid: The storage commitment that was asked for since it was accepted; empty: none.
        checks: How often since then the destination was asked in vain whether it holds the object.
        confirmed: How the destination said that it holds the object; empty: it did not.
    """

    job_id: str
    destination: str
    sop_instance_uid: str
    kind: str
    file: str
    state: DeliveryState
    status: str
    attempts: int
    reason: str
    updated: float
    transaction_uid: str = ""
    checks: int = 0
    confirmed: str = ""


@dataclass(frozen=True)
class Pause:
    """Since when the queue is paused, seconds since the epoch, UTC, and who did it."""

    since: float
    by: str


QUEUE = "queue"
"""Row of `PAUSES` that stops the pipeline before the next study."""


def now() -> float:
    """Seconds since the epoch, UTC."""
    return datetime.datetime.now(datetime.UTC).timestamp()


DeliveryKey = tuple[str, str, str]
"""Job, destination and SOP Instance UID."""


def _key(delivery: Delivery) -> DeliveryKey:
    return delivery.job_id, delivery.destination, delivery.sop_instance_uid


class JobStore:
    """Reads and writes the three tables."""

    def __init__(
        self,
        engine: sa.Engine,
        *,
        may_write: Callable[[], None] = lambda: None,
        on_attempt: Callable[[str, str, str, DeliveryState, str], None] = lambda *_: None,
    ) -> None:
        """Open it.

        Args:
            engine: The daemon's database; its tables exist.
            may_write: Called before each write; ends the process where another has taken its work over.
            on_attempt: Told of each attempt to deliver: job, destination, SOP instance, state, status.
        """
        self.engine = engine
        self._may_write = may_write
        self._on_attempt = on_attempt

    def _writing(self) -> AbstractContextManager[sa.Connection]:
        self._may_write()
        return self.engine.begin()

    def add(self, job_id: str, *, study_uid: str, supersedes: str | None, priority: str = SENT) -> None:
        """Add a queued job; adding one that exists changes nothing."""
        time = now()
        row = {
            "job_id": job_id, "study_uid": study_uid, "supersedes": supersedes,
            "state": JobState.QUEUED, "step": "", "reason": "", "created": time, "updated": time,
            "runs": 1, "progress": "", "timings": "{}", "result": "", "series_uid": "", "deaths": 0,
            "priority": priority,
        }  # fmt: skip
        with self._writing() as connection:
            connection.execute(upsert(self.engine, JOBS, row, update=()))

    def update(self, job_id: str, **values: Any) -> None:
        """Set columns of a job, its state by `move`; `updated` follows by itself."""
        with self._writing() as connection:
            connection.execute(sa.update(JOBS).where(JOBS.c.job_id == job_id).values(updated=now(), **values))

    def move(
        self, job_id: str, state: JobState, *, of: Collection[JobState], settled: bool = False, **values: Any
    ) -> bool:
        """Change a job's state if it is in one of some states: asked and changed at once, so that none is undone.

        Args:
            job_id: The job.
            state: The new one.
            of: Those from which it may be reached.
            settled: Only where nothing of the job is open on its way to a destination.
            values: Further columns.

        Returns:
            Whether it was changed.
        """
        with self._writing() as connection:
            return _move(connection, job_id, state, of, settled=settled, **values)

    def add_timing(self, job_id: str, step: str, seconds: float) -> None:
        """Record that a step is done, and how long it took, seconds."""
        with self._writing() as connection:
            row = connection.execute(sa.select(JOBS.c.timings).where(JOBS.c.job_id == job_id)).one()
            timings = {**json.loads(row.timings), step: round(seconds, 3)}
            connection.execute(
                sa.update(JOBS)
                .where(JOBS.c.job_id == job_id)
                .values(timings=json.dumps(timings), updated=now(), deaths=0)
            )

    def get(self, job_id: str) -> Job | None:
        """The job, or None where there is none of that id."""
        with self.engine.connect() as connection:
            row = connection.execute(sa.select(JOBS).where(JOBS.c.job_id == job_id)).one_or_none()
        return None if row is None else job_of_row(row)

    def latest_of_series(self, series_uids: tuple[str, ...], *, before: Job) -> str | None:
        """The newest job of a study that reports a series and is older than `before`, a job of the same study.

        Args:
            series_uids: Of the series, which may have been called by any of them.
            before: The later job.
        """
        query = sa.select(JOBS.c.job_id).where(
            JOBS.c.study_uid == before.study_uid,
            JOBS.c.series_uid.in_(series_uids),
            JOBS.c.job_id != before.job_id,
            JOBS.c.created < before.created,
        )
        with self.engine.connect() as connection:
            return connection.execute(query.order_by(JOBS.c.created.desc()).limit(1)).scalar_one_or_none()

    def recent(self, *, limit: int = 1000) -> list[Job]:
        """The newest jobs first."""
        query = sa.select(JOBS).order_by(JOBS.c.created.desc(), JOBS.c.job_id).limit(limit)
        with self.engine.connect() as connection:
            return [job_of_row(row) for row in connection.execute(query)]

    def waiting(self) -> int:
        """How many jobs the pipeline has not finished with."""
        query = sa.select(sa.func.count()).where(JOBS.c.state.in_([JobState.QUEUED, JobState.RUNNING]))
        with self.engine.connect() as connection:
            return int(connection.execute(query).scalar_one())

    def pause(self, by: str) -> None:
        """Begin no further study until `resume`; the one that is at work is finished, and deliveries go on."""
        row = {"what": QUEUE, "since": now(), "by": by}
        with self._writing() as connection:
            connection.execute(upsert(self.engine, PAUSES, row, update=()))

    def resume(self) -> None:
        """Go on with the queue."""
        with self._writing() as connection:
            connection.execute(sa.delete(PAUSES).where(PAUSES.c.what == QUEUE))

    def paused(self) -> Pause | None:
        """Whether the queue is paused."""
        with self.engine.connect() as connection:
            row = connection.execute(sa.select(PAUSES).where(PAUSES.c.what == QUEUE)).one_or_none()
        return None if row is None else Pause(row.since, row.by)

    def begin_removal(self, job: Job) -> bool:
        """Let nobody start a job again whose files are about to go; whether it is still as it was read."""
        as_read = (JOBS.c.job_id == job.job_id, JOBS.c.state == str(job.state), JOBS.c.updated == job.updated)
        with self._writing() as connection:
            begun = connection.execute(sa.update(JOBS).where(*as_read).values(state=JobState.REMOVING))
            return bool(begun.rowcount)

    def remove(self, job_id: str) -> None:
        """Forget a job with its verdicts and deliveries."""
        with self._writing() as connection:
            for table in (DELIVERIES, VERDICTS, JOB_WORDS, JOB_STUDIES, JOBS):
                connection.execute(sa.delete(table).where(table.c.job_id == job_id))

    def put_verdicts(self, job_id: str, verdicts: Iterable[SeriesVerdict]) -> None:
        """Keep the verdict on each series of a job, in place of those of an earlier run."""
        with self._writing() as connection:
            connection.execute(sa.delete(VERDICTS).where(VERDICTS.c.job_id == job_id))
            for verdict in verdicts:
                lists = {"reasons": json.dumps(list(verdict.reasons)), "joined": json.dumps(list(verdict.joined))}
                row = {**vars(verdict), "job_id": job_id, **lists}
                said = [name for name in row if name not in ("job_id", "series_uid", "part")]
                connection.execute(upsert(self.engine, VERDICTS, row, update=said))

    def put_study(self, job_id: str, study: Mapping[str, str], words: Mapping[str, bool]) -> None:
        """Keep whose study a job is of, and by which words it is found, in place of what was kept before.

        Args:
            job_id: The job.
            study: Columns of `JOB_STUDIES`.
            words: Folded words; true: of a patient or an order.
        """
        rows = [{"word": word, "job_id": job_id, "identity": identity} for word, identity in words.items()]
        row = {"job_id": job_id, **study}
        with self._writing() as connection:
            connection.execute(upsert(self.engine, JOB_STUDIES, row, update=tuple(study)))
            connection.execute(sa.delete(JOB_WORDS).where(JOB_WORDS.c.job_id == job_id))
            if rows:
                connection.execute(sa.insert(JOB_WORDS), rows)

    def verdicts(self, *, series_uid: str | None = None, job_id: str | None = None) -> list[SeriesVerdict]:
        """Verdicts on a series, or of a job; the newest job's first, in it what was accepted."""
        order = (JOBS.c.created.desc(), VERDICTS.c.verdict, VERDICTS.c.series_uid, VERDICTS.c.part)
        query = sa.select(VERDICTS).join(JOBS, JOBS.c.job_id == VERDICTS.c.job_id).order_by(*order)
        if series_uid is not None:
            joined = VERDICTS.c.joined.contains(json.dumps(series_uid), autoescape=True)
            query = query.where(sa.or_(VERDICTS.c.series_uid == series_uid, joined))
        if job_id is not None:
            query = query.where(VERDICTS.c.job_id == job_id)
        with self.engine.connect() as connection:
            return [verdict_of_row(row) for row in connection.execute(query)]

    def put_deliveries(self, job_id: str, destination: str, objects: Iterable[tuple[str, str, str]]) -> None:
        """Plan the delivery of (SOP instance UID, kind, file); objects already planned keep their state."""
        with self._writing() as connection:
            for sop_instance_uid, kind, file in objects:
                row = {
                    "job_id": job_id, "destination": destination, "sop_instance_uid": sop_instance_uid, "kind": kind,
                    "file": file, "state": DeliveryState.WAITING, "status": "", "attempts": 0, "reason": "",
                    "updated": now(), "transaction_uid": "", "checks": 0, "confirmed": "",
                }  # fmt: skip
                connection.execute(upsert(self.engine, DELIVERIES, row, update=("kind", "file")))

    def restore_delivery(
        self, job_id: str, destination: str, sop_instance_uid: str, *, state: DeliveryState, status: str
    ) -> None:
        """Put back what another record says of an object, where none is there; its plan adds what it is."""
        row = {
            "job_id": job_id, "destination": destination, "sop_instance_uid": sop_instance_uid, "kind": "", "file": "",
            "state": state, "status": status, "attempts": 1, "reason": "", "updated": now(), "transaction_uid": "",
            "checks": 0, "confirmed": "audit log" if state is DeliveryState.SENT else "",
        }  # fmt: skip
        with self._writing() as connection:
            connection.execute(upsert(self.engine, DELIVERIES, row, update=()))

    def note_delivery(
        self, job_id: str, destination: str, sop_instance_uid: str, *, state: DeliveryState, status: str, reason: str
    ) -> None:
        """Record one attempt to deliver one object; an earlier question whether it is held is over."""
        self._set_deliveries(
            [(job_id, destination, sop_instance_uid)], state=state, status=status, reason=reason,
            attempts=DELIVERIES.c.attempts + 1, transaction_uid="", checks=0, confirmed="",
        )  # fmt: skip
        self._on_attempt(job_id, destination, sop_instance_uid, state, status)

    def note_checks(
        self, deliveries: Sequence[Delivery], *, reason: str | None = None, transaction_uid: str | None = None
    ) -> None:
        """Record that accepted objects are still not confirmed: why, or which storage commitment was asked for."""
        values: dict[str, Any] = {"checks": DELIVERIES.c.checks + 1} if transaction_uid is None else {}
        if transaction_uid is not None:
            values["transaction_uid"] = transaction_uid
        if reason is not None:
            values["reason"] = reason
        self._set_deliveries([_key(d) for d in deliveries], **values)

    def settle_checks(
        self, deliveries: Sequence[Delivery], state: DeliveryState, *, reason: str | None = None, confirmed: str = ""
    ) -> None:
        """Record that accepted objects are held (sent), are not (waiting again), or cannot be asked for (dead).

        Args:
            deliveries: Of the objects; all are settled or none.
            state: What is true of all of them.
            reason: Why; None: what is on record stays.
            confirmed: How it is known.
        """
        values = {} if reason is None else {"reason": reason}
        self._set_deliveries(
            [_key(d) for d in deliveries], state=state, confirmed=confirmed, transaction_uid="", **values
        )
        for d in deliveries:
            self._on_attempt(*_key(d), state, d.status)

    def _set_deliveries(self, keys: Sequence[DeliveryKey], **values: Any) -> None:
        """Set columns of deliveries in one transaction."""
        if not keys:
            return
        with self._writing() as connection:
            for job_id, destination, sop_instance_uid in keys:
                mine = (
                    DELIVERIES.c.job_id == job_id,
                    DELIVERIES.c.destination == destination,
                    DELIVERIES.c.sop_instance_uid == sop_instance_uid,
                )
                connection.execute(sa.update(DELIVERIES).where(*mine).values(updated=now(), **values))

    def give_up_delivery(self, job_id: str, destination: str, reason: str | None = None) -> None:
        """Move what waits for a destination to the dead letter; without a reason the last attempt's stays."""
        values: dict[str, Any] = {"state": DeliveryState.DEAD}
        if reason is not None:
            values["reason"] = reason
        self._move_deliveries(job_id, destination, (DeliveryState.WAITING,), values)

    def revive_deliveries(self, job_id: str, destinations: Collection[str], *, runs: int) -> bool:
        """Let what is in the dead letter wait again, with all its attempts, where the job's results are not being made.

        Args:
            job_id: The job, which is on its way then.
            destinations: Where to.
            runs: How often the job was started, with this one.

        Returns:
            Whether that was done: the job is neither queued nor running, nor being removed.
        """
        made = set(JobState) - {JobState.QUEUED, JobState.RUNNING, JobState.REMOVING}
        mine = (DELIVERIES.c.job_id == job_id, DELIVERIES.c.destination.in_(list(destinations)))
        dead = DELIVERIES.c.state == str(DeliveryState.DEAD)
        with self._writing() as connection:
            if not _move(connection, job_id, JobState.DELIVERING, made, runs=runs, reason=""):
                return False
            waiting = {"state": DeliveryState.WAITING, "attempts": 0, "updated": now()}
            connection.execute(sa.update(DELIVERIES).where(*mine, dead).values(**waiting))
            return True

    def drop_replaced_deliveries(self, job_id: str, destination: str, by: str) -> None:
        """Send no more of a job than its report, whose successor names it: results of job `by` replace the rest."""
        values = {"state": DeliveryState.REPLACED, "reason": f"replaced by the results of job {by}"}
        images = DELIVERIES.c.kind.in_([kind.name for kind in KINDS if kind.replaced])
        self._move_deliveries(job_id, destination, tuple(OPEN_DELIVERIES), values, images)

    def drop_deliveries(self, job_id: str) -> None:
        """Plan nothing of a job: its results make room for others."""
        with self._writing() as connection:
            connection.execute(sa.delete(DELIVERIES).where(DELIVERIES.c.job_id == job_id))

    def successor(self, job_id: str, destination: str) -> str | None:
        """The job whose results replace this one's at a destination: it supersedes it, and has results for it."""
        has_results = sa.exists().where(DELIVERIES.c.job_id == JOBS.c.job_id, DELIVERIES.c.destination == destination)
        query = sa.select(JOBS.c.job_id, has_results.label("has_results")).order_by(JOBS.c.created)
        later = [job_id]
        with self.engine.connect() as connection:
            while later:
                rows = connection.execute(query.where(JOBS.c.supersedes.in_(later))).all()
                found = [row.job_id for row in rows if row.has_results]
                if found:
                    return str(found[-1])
                later = [row.job_id for row in rows]
        return None

    def superseded_by(self, job_id: str) -> list[str]:
        """The earlier jobs that a job supersedes, the latest of them first."""
        earlier: list[str] = []
        job = self.get(job_id)
        while job is not None and job.supersedes is not None and job.supersedes not in earlier:
            earlier.append(job.supersedes)
            job = self.get(job.supersedes)
        return earlier

    def _move_deliveries(
        self,
        job_id: str,
        destination: str,
        old: Sequence[DeliveryState],
        values: Mapping[str, Any],
        *more: sa.ColumnElement[bool],
    ) -> None:
        states = DELIVERIES.c.state.in_([str(state) for state in old])
        mine = (DELIVERIES.c.job_id == job_id, DELIVERIES.c.destination == destination, states, *more)
        with self._writing() as connection:
            connection.execute(sa.update(DELIVERIES).where(*mine).values(updated=now(), **values))

    def deliveries(self, job_id: str, destination: str | None = None) -> list[Delivery]:
        """Deliveries of a job, by destination and file."""
        query = sa.select(DELIVERIES).where(DELIVERIES.c.job_id == job_id)
        if destination is not None:
            query = query.where(DELIVERIES.c.destination == destination)
        with self.engine.connect() as connection:
            rows = connection.execute(query.order_by(DELIVERIES.c.destination, DELIVERIES.c.file)).mappings()
            return [Delivery(**{**row, "state": DeliveryState(row["state"])}) for row in rows]


def _move(
    connection: sa.Connection,
    job_id: str,
    state: JobState,
    of: Collection[JobState],
    *,
    settled: bool = False,
    **values: Any,
) -> bool:
    mine = [JOBS.c.job_id == job_id, JOBS.c.state.in_([str(old) for old in of])]
    if settled:
        still = sa.select(DELIVERIES.c.job_id).where(DELIVERIES.c.state.in_([str(s) for s in OPEN_DELIVERIES]))
        mine.append(JOBS.c.job_id.not_in(still.where(DELIVERIES.c.job_id == job_id)))
    moved = connection.execute(sa.update(JOBS).where(*mine).values(state=state, updated=now(), **values))
    return bool(moved.rowcount)


def job_of_row(row: sa.Row[Any]) -> Job:
    """A row of `JOBS`."""
    values = dict(row._mapping)
    return Job(**{**values, "state": JobState(values["state"]), "timings": json.loads(values["timings"])})


def verdict_of_row(row: sa.Row[Any]) -> SeriesVerdict:
    """A row of `VERDICTS`."""
    lists = {"reasons": tuple(json.loads(row.reasons)), "joined": tuple(json.loads(row.joined))}
    return SeriesVerdict(**{**row._mapping, **lists})
