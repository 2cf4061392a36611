"""What is removed when: by age for each way a job can end, and sooner where the disk runs low.

But for cancelled jobs, nothing that was not delivered is ever removed by itself: a job with an object that waits, or
that lies in the dead letter, stays until a person retries it. The received instances of a job go with it; sent again
they count as new.
What lies outside a job's folder goes with the job, too: copies on other hosts, instances that were kept aside.
"""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from daemon.assemble.identities import forget_identity
from daemon.assemble.index import forget_study
from daemon.assemble.receivers import forget_owner
from daemon.config.sections import Settings, Storage
from daemon.database.engine import open_index
from daemon.database.tables import (
    DELIVERIES,
    INSTANCES,
    JOBS,
    OPEN_DELIVERIES,
    STOPPED_STATES,
    DeliveryState,
    JobState,
)
from daemon.deliver.commitment import forget as forget_commitments
from daemon.engine.client import forget_workflows
from daemon.jobs.store import Job, JobStore, job_of_row, now
from daemon.pipeline import earlier

log = logging.getLogger(__name__)

SECONDS_PER_DAY = 86400.0
GB = 1e9
EVERY_SECONDS = 600.0
"""How often the service looks."""

UNDELIVERED = (*OPEN_DELIVERIES, DeliveryState.DEAD)
"""An object in one of these states keeps its job."""


@dataclass(frozen=True)
class Purged:
    """One job that was (or would be) removed; `size` in bytes."""

    job_id: str
    state: str
    size: int
    why: str


def purge(
    store: JobStore,
    settings: Settings,
    *,
    dry_run: bool,
    forget_files: Callable[[str], None] = lambda _job_id: None,
    on_removed: Callable[[Purged], None] = lambda _purged: None,
    free: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free,
) -> list[Purged]:
    """Remove jobs whose time is over, and delivered ones before their time while the disk is low.

    Args:
        store: The jobs.
        settings: `[storage]` counts.
        dry_run: Only say what would be removed.
        forget_files: Removes a job's files from where several hosts share them.
        on_removed: Told of each job as soon as it is removed: a later one may fail.
        free: Free space at a folder, bytes.
    """
    index = open_index(settings, store.engine)

    def remove(job: Job, why: str) -> Purged | None:
        purged = _remove(store, index, settings.data.job(job.job_id), job, why, forget_files, dry_run=dry_run)
        if purged is not None and not dry_run:
            on_removed(purged)
        return purged

    removed = [purged for job in _over(store, settings.storage) if (purged := remove(job, "its time is over"))]
    gone = {purged.job_id for purged in removed}
    wanted = settings.storage.low_free_gb * GB
    promised = sum(purged.size for purged in removed) if dry_run else 0
    for job in _delivered_oldest_first(store.engine) if wanted else ():
        if free(settings.storage.folder) + promised >= wanted:
            break
        if job.job_id in gone:
            continue
        purged = remove(job, "the disk is low")
        if purged is not None:
            removed.append(purged)
            promised += purged.size if dry_run else 0
    return removed


def _over(store: JobStore, rules: Storage) -> Iterator[Job]:
    """Jobs that ended longer ago than their state is kept, after those whose removal a stop cut off."""
    yield from _ended(store.engine, JobState.REMOVING, sa.true(), before=now())
    troubled, told = JOBS.c.deaths > 0, JOBS.c.deaths == 0
    days: list[tuple[JobState, float | None, sa.ColumnElement[bool]]] = [
        (JobState.DONE, rules.keep_days, sa.true()),
        (JobState.SET_ASIDE, rules.keep_days_set_aside, told),
        (JobState.SET_ASIDE, rules.keep_days_failed, troubled),
        (JobState.CANCELLED, rules.keep_days_set_aside, sa.true()),
        (JobState.FAILED, rules.keep_days_failed, sa.true()),
    ]
    for state, kept, which in days:
        if kept is not None:
            yield from _ended(store.engine, state, which, before=now() - kept * SECONDS_PER_DAY)


def _delivered_oldest_first(engine: sa.Engine) -> list[Job]:
    return _ended(engine, JobState.DONE, sa.true(), before=now())


def _ended(engine: sa.Engine, state: JobState, which: sa.ColumnElement[bool], *, before: float) -> list[Job]:
    """Jobs in a final state since `before` or longer, with nothing undelivered; the oldest first."""
    undelivered = sa.select(DELIVERIES.c.job_id).where(DELIVERIES.c.state.in_([str(s) for s in UNDELIVERED]))
    ended = (JOBS.c.state == str(state), JOBS.c.updated <= before, which)
    query = sa.select(JOBS).where(*ended).order_by(JOBS.c.updated)
    if state not in STOPPED_STATES:  # a person said that nothing more shall be sent
        query = query.where(JOBS.c.job_id.not_in(undelivered))
    with engine.connect() as connection:
        return [job_of_row(row) for row in connection.execute(query)]


def _remove(
    store: JobStore,
    index: sa.Engine,
    folder: Path,
    job: Job,
    why: str,
    forget_files: Callable[[str], None],
    *,
    dry_run: bool,
) -> Purged | None:
    """None: somebody started it again since it was listed."""
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    if not dry_run:
        if not store.begin_removal(job):
            return None
        if job.state not in (JobState.DONE, JobState.REMOVING):  # nobody got its report, which counts as none
            earlier.forget(store.engine, job.job_id)
        if folder.exists():
            shutil.rmtree(folder)
        forget_files(job.job_id)
        forget_workflows(store.engine, job.job_id)
        forget_commitments(store.engine, job.job_id)
        store.remove(job.job_id)
        if not _has_jobs(store.engine, job.study_uid):
            forget_study(index, job.study_uid)
            forget_owner(store.engine, job.study_uid)
            forget_identity(store.engine, job.study_uid)
        log.info("job %s (%s) removed: %s", job.job_id, job.state, why)
    return Purged(job.job_id, str(job.state), size, why)


def _has_jobs(engine: sa.Engine, study_uid: str) -> bool:
    """Whether another job of the study is still there: then the index of its instances must stay."""
    query = sa.select(sa.func.count()).select_from(JOBS).where(JOBS.c.study_uid == study_uid)
    with engine.connect() as connection:
        return bool(connection.execute(query).scalar_one())


def forget_conflicts(index: sa.Engine, conflicts: Path) -> list[Path]:
    """Remove instances that were kept aside of studies that are no longer known.

    Args:
        index: Where the index of received instances is (`open_index`).
        conflicts: Where they are kept (`DataFolder.conflicts`).

    Returns:
        The files that were removed.
    """
    removed = []
    for path in sorted(conflicts.glob("*.dcm")):
        sop_uid, _, digest = path.stem.rpartition(".")
        known = sa.select(sa.func.count()).where(INSTANCES.c.sop_uid == sop_uid, INSTANCES.c.sha256.startswith(digest))
        with index.connect() as connection:
            there = connection.execute(known).scalar_one()
        if not there and path.stat().st_mtime < now() - SECONDS_PER_DAY:
            path.unlink()
            removed.append(path)
    return removed


def keep_house(works: Sequence[Callable[[], object]], stop: threading.Event, *, every: float = EVERY_SECONDS) -> None:
    """Do the `works`, one after the other, every ten minutes until `stop` is set.

    A disk or database that fails is tried again the next time, and does not keep the other works from being done.
    """
    while not stop.wait(every):
        for work in works:
            try:
                work()
            except (OSError, sa.exc.SQLAlchemyError) as error:
                log.warning("housekeeping failed, next try in %.0f s: %s", every, type(error).__name__)
