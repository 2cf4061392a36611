"""At each start, and now and then: every job that has not ended has a workflow that will end it.

After an upgrade that changed the order of steps, workflows of the version before cannot be resumed: they are
cancelled, and their jobs start anew (each step is idempotent; what was delivered is not sent again). The same look
finds jobs whose workflow was never queued because the process was killed in between, and those whose workflow ended
with an error that nobody foresaw, such as a database that was away in the middle of a step.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field

import sqlalchemy as sa

from daemon.database.tables import DELIVERIES, JOBS, OPEN_DELIVERIES, JobState
from daemon.engine.client import engine_client, engine_has_run, enqueue_delivery, enqueue_report
from daemon.engine.identifiers import DESTINATION_QUEUE, REPORT_WORKFLOW, WORKFLOW_VERSION
from daemon.jobs.store import JobStore, now
from daemon.observe import metrics

log = logging.getLogger(__name__)

LIVE = ["PENDING", "ENQUEUED", "DELAYED"]
MOST_MENDED = 3
"""So often in its life a job whose workflow broke gets a new one; then it has failed, and a person must look."""

MOST_DEATHS = 2
"""So often a job may be at the same step when the process that works on it ends without a word; then it is set aside.

It may be innocent, and the machine have lost its power twice: it says what happened, and a person may retry it."""

AGAIN = 10.0
"""Seconds between two tries to make deliveries due."""

STEP_SECONDS = 2.0
"""A clock that differs by so much from the monotonic one was set."""

SETTLED_SECONDS = 30.0
"""A job that changed later than this may be on its way into a queue just now; with several hosts it is left alone."""


def give_every_job_a_workflow(engine: sa.Engine, *, alone: bool) -> list[str]:
    """Queue what has none; call it when the engine runs.

    Args:
        engine: The daemon's database.
        alone: Nobody hands studies over meanwhile: neither another process nor this one's assembler.

    Returns:
        The workflows that were queued.
    """
    live = _live_workflows(engine)
    limit = now() + 1 if alone else now() - SETTLED_SECONDS
    stamp = f"u{int(now())}"
    queued = []
    for job_id in _jobs(engine, (JobState.QUEUED, JobState.RUNNING), limit):
        if any(_job_of(name) == job_id and ":" not in name for name in live):
            continue
        if _times_mended(engine, job_id) >= MOST_MENDED:
            _give_up(engine, job_id)
            continue
        job = JobStore(engine).get(job_id)
        if job is None:  # removed meanwhile
            continue
        queued.append(f"{job_id}-{stamp}")
        enqueue_report(engine, job, workflow_id=queued[-1])
    for job_id, destination in _open_deliveries(engine, limit):
        if not any(_job_of(name) == job_id and _destination_of(name) == destination for name in live):
            queued.append(f"{job_id}-{stamp}:{destination}")
            enqueue_delivery(engine, queued[-1], job_id, destination)
    for name in queued:
        log.warning("workflow %s was queued: its job had none that this version can go on with", name)
    return queued


def count_deaths(engine: sa.Engine, executor_id: str) -> list[str]:
    """After a process of this name ended without a word: its jobs remember it, and too often sets them aside.

    Returns:
        The jobs that were set aside.
    """
    if not engine_has_run(engine):
        return []
    with engine_client(engine) as client:
        found = client.list_workflows(
            status="PENDING", executor_id=executor_id, name=REPORT_WORKFLOW, load_input=False, load_output=False
        )
        by_job = {_job_of(workflow.workflow_id): workflow.workflow_id for workflow in found}
        given_up = _add_deaths(engine, list(by_job))
        if given_up:
            client.cancel_workflows([by_job[job_id] for job_id in given_up])
    return given_up


def _add_deaths(engine: sa.Engine, job_ids: list[str]) -> list[str]:
    """Count one more death for running jobs; those that are over the limit are set aside."""
    mine = (JOBS.c.job_id.in_(job_ids), JOBS.c.state == str(JobState.RUNNING))
    given_up = []
    with engine.begin() as connection:
        connection.execute(sa.update(JOBS).where(*mine).values(deaths=JOBS.c.deaths + 1))
        for row in connection.execute(sa.select(JOBS).where(*mine, JOBS.c.deaths >= MOST_DEATHS)).all():
            reason = (
                f"the process that worked on it ended {row.deaths} times without a word in step {row.step}; "
                f"`braingemma jobs retry {row.job_id}` tries it again"
            )
            values = {"state": str(JobState.SET_ASIDE), "reason": reason, "updated": now()}
            still = (*mine, JOBS.c.job_id == row.job_id)  # not cancelled meanwhile
            if not connection.execute(sa.update(JOBS).where(*still).values(**values)).rowcount:
                continue
            log.error("job %s: %s", row.job_id, reason)
            metrics.JOBS_ENDED.labels(str(JobState.SET_ASIDE), "Killed").inc()
            given_up.append(str(row.job_id))
    return given_up


@dataclass
class ClockWatch:
    """Lets the machine's clock be set back without making deliveries wait for as long again.

    The engine says by the machine's clock when a delivery that waits is due. After the clock went back, by the measure
    of the monotonic one, all of them are due: one attempt too early costs less than an hour. At the start those are
    that would wait longer than any delivery does.
    """

    engine: sa.Engine
    longest: float
    """A delivery waits for so long at the most, s."""
    _difference: float = field(default_factory=lambda: time.time() - time.monotonic())
    _due: float | None = None
    """Deliveries that wait longer than this, s, are to be started; None: none are."""
    _next: float = 0.0
    """Monotonic time of the next try."""

    def __post_init__(self) -> None:
        self._due = self.longest

    def look(self) -> list[str]:
        """Call it now and then; the workflows that were made due. A database that is away is asked the next time."""
        difference = time.time() - time.monotonic()
        if difference < self._difference - STEP_SECONDS:
            log.warning("the machine's clock was set back by %.0f s", self._difference - difference)
            self._due = 0.0
        self._difference = difference
        if self._due is None or time.monotonic() < self._next:
            return []
        try:
            released = self._release(time.time() + self._due)
        except Exception as error:  # noqa: BLE001 - the database, by whatever error of the engine: it comes back
            log.warning(
                "deliveries that wait by the clock as it was, next try in %g s: %s", AGAIN, type(error).__name__
            )
            self._next = time.monotonic() + AGAIN
            return []
        self._due = None
        return released

    def _release(self, after: float) -> list[str]:
        if not engine_has_run(self.engine):
            return []
        with engine_client(self.engine) as client:
            found = client.list_workflows(
                status="DELAYED", queue_name=DESTINATION_QUEUE, load_input=False, load_output=False
            )
            late = [w.workflow_id for w in found if (w.delay_until_epoch_ms or 0) > 1000 * after]
            for workflow_id in late:
                client.set_workflow_delay(workflow_id, delay_seconds=0)
        return late


def _live_workflows(engine: sa.Engine) -> list[str]:
    """Names of unfinished workflows of this version; those of others are cancelled."""
    with engine_client(engine) as client:
        found = client.list_workflows(status=LIVE, load_input=False, load_output=False)
        others = [w.workflow_id for w in found if w.app_version != WORKFLOW_VERSION]
        if others:
            log.warning("%d workflows of another version are replaced by new ones", len(others))
            client.cancel_workflows(others)
    return [w.workflow_id for w in found if w.app_version == WORKFLOW_VERSION]


def _times_mended(engine: sa.Engine, job_id: str) -> int:
    """How many workflows of this version were queued here for a job, and ended without ending it."""
    with engine_client(engine) as client:
        found = client.list_workflows(
            workflow_id_prefix=f"{job_id}-u", status="ERROR", load_input=False, load_output=False
        )
    return sum(w.app_version == WORKFLOW_VERSION and ":" not in w.workflow_id for w in found)


def _give_up(engine: sa.Engine, job_id: str) -> None:
    reason = f"its workflow ended {MOST_MENDED} times with an error that was not foreseen; see the log of the service"
    log.error("job %s: %s", job_id, reason)
    with engine.begin() as connection:
        connection.execute(
            sa.update(JOBS)
            .where(JOBS.c.job_id == job_id, JOBS.c.state.in_([str(JobState.QUEUED), str(JobState.RUNNING)]))
            .values(state=str(JobState.FAILED), reason=reason, updated=now())
        )


def _settled(before: float) -> sa.ColumnElement[bool]:
    """Not changed just now; what was changed in the future was changed before the machine's clock was set back."""
    return sa.or_(JOBS.c.updated < before, JOBS.c.updated > now() + SETTLED_SECONDS)


def _jobs(engine: sa.Engine, states: tuple[JobState, ...], before: float) -> list[str]:
    query = sa.select(JOBS.c.job_id).where(JOBS.c.state.in_([str(s) for s in states]), _settled(before))
    with engine.connect() as connection:
        return list(connection.execute(query.order_by(JOBS.c.created)).scalars())


def _open_deliveries(engine: sa.Engine, before: float) -> list[tuple[str, str]]:
    """(job, destination) of delivering jobs with something that is not settled, or of which nobody wrote the end."""
    still_open = [str(state) for state in OPEN_DELIVERIES]
    delivering = (
        sa.select(DELIVERIES.c.job_id, DELIVERIES.c.destination)
        .join(JOBS, JOBS.c.job_id == DELIVERIES.c.job_id)
        .where(JOBS.c.state == str(JobState.DELIVERING), _settled(before))
        .distinct()
    )
    unsettled = sa.select(DELIVERIES.c.job_id).where(DELIVERIES.c.state.in_(still_open))
    with engine.connect() as connection:
        rows = connection.execute(delivering.where(DELIVERIES.c.state.in_(still_open))).all()
        ended = connection.execute(delivering.where(DELIVERIES.c.job_id.not_in(unsettled))).all()
    return [(row.job_id, row.destination) for row in (*rows, *{row.job_id: row for row in ended}.values())]


def _job_of(workflow_id: str) -> str:
    """The job of a workflow called `<job>`, `<job>-<run>`, `<job>:<destination>` or `<job>-<run>:<destination>#<n>`."""
    return workflow_id.partition(":")[0].partition("-")[0]


def _destination_of(workflow_id: str) -> str:
    return workflow_id.partition(":")[2].partition("#")[0]
