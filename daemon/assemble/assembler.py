"""When a study is complete: follows the spool's segments, keeps the index, and hands complete studies over.

A study counts as complete when nothing of it arrived for `assembly.quiet_seconds` and no association that sent
instances of it is open (an association that stays open holds it back for `assembly.max_wait_seconds` at most); where
a series has a gap, it is given three times as long. Its
instances are then written as DICOM files into `<folder>/jobs/<job_id>/input`. The job's name is a digest of the
instances, so that handing over twice after a crash makes the same job; slices that come later make another job with
the whole set, which names the job that it supersedes.

Order of durability: job folder, then the index, then `submit`, then the note that it was submitted. Each of them may
be repeated.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from pydicom import Dataset

from daemon.assemble.arrival import ARRIVAL_FILE, PART_OF, Arrival, Row, arrival_record, job_name, read_arrival
from daemon.assemble.follower import SegmentFollower
from daemon.assemble.gaps import TAGS, Gap, find_gaps
from daemon.assemble.part10 import MR_IMAGE, DamagedInstance, read_header, read_instance, sync_files, write_instance
from daemon.config.data_folder import DataFolder
from daemon.config.sections import Settings
from daemon.database.engine import upsert
from daemon.database.tables import ARRIVALS, INSTANCES, OPEN_ASSOCIATIONS, InstanceState
from daemon.errors import Retryable
from daemon.files import make_private_folder, read_json, sync_folder, write_json
from daemon.observe.logs import tag
from daemon.spool.backpressure import set_behind
from dicom_io.content.equipment import is_own_result

log = logging.getLogger(__name__)

POLL_SECONDS = 0.25
RETRY_SECONDS = 30.0
DATABASE_SECONDS = 2.0
RECLAIM_SECONDS = 60.0
GAP_PATIENCE = 3
"""A study with a gap in a series waits this many quiet times."""


Submit = Callable[[Arrival], None]


@dataclass(eq=False)
class Assembler:
    """Follows the spool and submits complete studies.

    Args:
        settings: The whole configuration; spool and jobs lie in its data folder.
        engine: The daemon's database; its tables exist.
        submit: Gives an arrival to the pipeline; may be called again with the same one. Raises Retryable where it
            should be called again later.
        own_result: Whether a data set is one of our own results.
        waiting: How many jobs the pipeline has not finished with.
    """

    settings: Settings
    engine: sa.Engine
    submit: Submit
    waiting: Callable[[], int] = lambda: 0
    own_result: Callable[[Dataset], bool] = is_own_result
    beat: Callable[[], None] = lambda: None
    """Called on each round: a sign of life."""
    _not_before: float = field(default=0.0, init=False)
    _paused: dict[str, float] = field(default_factory=dict, init=False)
    _gaps: dict[str, tuple[int, tuple[Gap, ...]]] = field(default_factory=dict, init=False)
    _follower: SegmentFollower = field(init=False)

    def __post_init__(self) -> None:
        self._follower = SegmentFollower(self.engine, self.data.spool, self.data.damaged, self.own_result)

    @property
    def data(self) -> DataFolder:
        """Where spool and jobs are."""
        return self.settings.data

    def run(self, stop: threading.Event) -> None:
        """Recover, then step until `stop` is set."""
        self.recover(time.time())
        next_reclaim = 0.0
        while not stop.is_set():
            pause = POLL_SECONDS
            try:
                self.step(time.time())
                if time.monotonic() >= next_reclaim:
                    self.reclaim()
                    next_reclaim = time.monotonic() + RECLAIM_SECONDS
            except sa.exc.OperationalError as error:  # acknowledging goes on: it needs the spool only
                pause = DATABASE_SECONDS
                log.warning("the database does not answer, next try in %g s: %s", pause, type(error.orig).__name__)
            self.beat()
            stop.wait(pause)

    def recover(self, now: float) -> None:
        """Bring index and disk together after a stop of any kind.

        Segments that are not fully indexed are read again from their beginning, with checksums. Job folders that the
        index does not know are taken into it. A study that was being received gets its quiet time anew.
        """
        for folder in (self.data.spool, self.data.jobs):
            make_private_folder(folder)
        for left_over in self.data.jobs.glob(".draft-*"):
            shutil.rmtree(left_over)
        self._not_before = now
        self._adopt_job_folders()
        self._follower.reset()
        self._follower.follow()

    def step(self, now: float) -> tuple[Arrival, ...]:
        """Index what is new, hand over what is complete; the arrivals that were submitted.

        Args:
            now: POSIX time, s.
        """
        self._follower.follow()
        self._keep_conflicts()
        room = self._room_in_pipeline()
        for study_uid in self._complete_studies(now):
            if room <= 0:
                break
            if self._waits_for_slices(study_uid, now):
                continue
            try:
                self._hand_over(study_uid, now)
                room -= 1
            except OSError as error:  # disk full or failing: what was received stays in the spool
                log.warning(
                    "study %s cannot be handed over, next try in %g s: %s", tag(study_uid), RETRY_SECONDS, error
                )
                self._paused[study_uid] = now + RETRY_SECONDS
        return self._submit_arrivals()

    def _room_in_pipeline(self) -> int:
        """How many studies may be handed over; none are where the pipeline is behind, and senders are told."""
        limit = self.settings.assembly.max_waiting_jobs
        room = max(0, limit - self.waiting())
        if set_behind(self.data.spool, behind=room == 0):
            if room:
                log.info("the pipeline has caught up; associations are accepted again")
            else:
                log.warning("%d jobs wait for the pipeline; new associations are refused for now", limit)
        return room

    def _complete_studies(self, now: float) -> tuple[str, ...]:
        pending = sa.select(INSTANCES.c.study_uid).where(INSTANCES.c.state == InstanceState.PENDING.value).distinct()
        last = (
            sa.select(INSTANCES.c.study_uid, sa.func.max(INSTANCES.c.last_received).label("last"))
            .where(INSTANCES.c.study_uid.in_(pending), INSTANCES.c.state != InstanceState.OWN_RESULT.value)
            .group_by(INSTANCES.c.study_uid)
            .order_by("last")
        )
        with self.engine.connect() as connection:
            rows = connection.execute(last).all()
            receiving = set(connection.execute(sa.select(OPEN_ASSOCIATIONS.c.study_uid)).scalars())
        return tuple(
            row.study_uid
            for row in rows
            if self._is_complete(max(row.last, self._not_before), now, receiving=row.study_uid in receiving)
            and self._paused.get(row.study_uid, 0.0) <= now
        )

    def _waits_for_slices(self, study_uid: str, now: float) -> bool:
        """A study with a gap in a series gets more time, once; judged anew when more of it came."""
        with self.engine.connect() as connection:
            rows = connection.execute(
                sa.select(INSTANCES).where(
                    INSTANCES.c.study_uid == study_uid, INSTANCES.c.state.in_([state.value for state in _OF_A_JOB])
                )
            ).all()
        known = self._gaps.get(study_uid)
        if known is None or known[0] != len(rows):
            known = (len(rows), self._find_gaps(rows))
            self._gaps[study_uid] = known
        last = max(self._not_before, *(row.last_received for row in rows))
        return bool(known[1]) and now - last < GAP_PATIENCE * self.settings.assembly.quiet_seconds

    def _find_gaps(self, rows: Sequence[Row]) -> tuple[Gap, ...]:
        headers: dict[str, list[Dataset]] = {}
        for row in rows:
            if row.sop_class_uid == MR_IMAGE:
                headers.setdefault(row.series_uid, []).append(read_header(self.data.spool, self.data.jobs, row, TAGS))
        return tuple(gap for uid, found in headers.items() for gap in find_gaps(uid, found))

    def _is_complete(self, last: float, now: float, *, receiving: bool) -> bool:
        rules = self.settings.assembly
        wait = max(rules.max_wait_seconds, rules.quiet_seconds) if receiving else rules.quiet_seconds
        return now - last >= wait

    def _hand_over(self, study_uid: str, now: float) -> None:
        with self.engine.connect() as connection:
            rows = connection.execute(
                sa.select(INSTANCES).where(INSTANCES.c.study_uid == study_uid).order_by(INSTANCES.c.received)
            ).all()
            previous = (
                connection.execute(
                    sa.select(ARRIVALS.c.job_id).where(ARRIVALS.c.study_uid == study_uid).order_by(ARRIVALS.c.created)
                )
                .scalars()
                .all()
            )
        draft = self.data.jobs / f".draft-{uuid.uuid4().hex}"
        draft.mkdir(mode=0o700)
        (draft / "input").mkdir(mode=0o700)
        try:
            files, damaged = self._write_input(draft / "input", [row for row in rows if row.state in _OF_A_JOB])
            self._note_damaged(damaged)
            if not files:
                return
            job_id = job_name(files)
            supersedes = next((name for name in reversed(previous) if name != job_id), None)
            _, gaps = self._gaps.get(study_uid, (0, ()))
            arrival = arrival_record(job_id, study_uid, supersedes, now, rows, files, gaps)
            write_json(draft / ARRIVAL_FILE, arrival)
            sync_files(draft / "input")
            self._publish(draft, self.data.jobs / job_id)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        self._note_arrival(arrival, files)
        self._gaps.pop(study_uid, None)
        self._paused.pop(study_uid, None)

    def _write_input(self, folder: Path, rows: Sequence[Row]) -> tuple[dict[str, Row], list[Row]]:
        """Write or link every instance; {file name: row} and those whose bytes are lost."""
        files: dict[str, Row] = {}
        damaged: list[Row] = []
        for number, row in enumerate(rows, start=1):
            name = f"{number:06d}.dcm"
            if row.state == InstanceState.HANDED_OVER and _link(
                self.data.jobs / row.job_id / "input" / row.file, folder / name
            ):
                files[name] = row
                continue
            try:
                write_instance(folder / name, row, read_instance(self.data.spool, row))
                files[name] = row
            except DamagedInstance as error:
                log.warning("instance %s of study %s is lost: %s", tag(row.sop_uid), tag(row.study_uid), error)
                damaged.append(row)
        return files, damaged

    def _note_damaged(self, rows: Iterable[Row]) -> None:
        with self.engine.begin() as connection:
            for row in rows:
                connection.execute(
                    sa.update(INSTANCES)
                    .where(INSTANCES.c.sop_uid == row.sop_uid, INSTANCES.c.sha256 == row.sha256)
                    .values(state=InstanceState.DAMAGED.value, job_id=None, file="")
                )

    def _keep_conflicts(self) -> None:
        """Write instances whose UID another instance has already into the data folder's `conflicts`."""
        aside = self.data.conflicts
        with self.engine.connect() as connection:
            rows = connection.execute(
                sa.select(INSTANCES).where(INSTANCES.c.state == InstanceState.CONFLICT.value, INSTANCES.c.file == "")
            ).all()
        for row in rows:
            make_private_folder(aside)
            path = aside / f"{row.sop_uid}.{row.sha256[:16]}.dcm"
            try:
                write_instance(path, row, read_instance(self.data.spool, row))
            except OSError as error:
                log.warning("conflicting instance %s stays in the spool: %s", tag(row.sop_uid), error)
                return
            except DamagedInstance as error:
                log.warning("conflicting instance %s is lost: %s", tag(row.sop_uid), error)
                self._note_damaged([row])
                continue
            log.warning("instance %s came again with other bytes; kept in %s", tag(row.sop_uid), aside)
            sync_files(aside)
            with self.engine.begin() as connection:
                connection.execute(
                    sa.update(INSTANCES)
                    .where(INSTANCES.c.sop_uid == row.sop_uid, INSTANCES.c.sha256 == row.sha256)
                    .values(file=path.name)
                )

    def _publish(self, draft: Path, final: Path) -> None:
        sync_folder(draft)
        if not final.exists():  # otherwise a crash came between this and the index: same name, same content
            draft.rename(final)
        sync_folder(self.data.jobs)

    def _note_arrival(self, arrival: dict[str, Any], files: dict[str, Row]) -> None:
        with self.engine.begin() as connection:
            self._insert_arrival(connection, arrival)
            handed_over = [
                {"of_sop_uid": row.sop_uid, "of_sha256": row.sha256, "new_job_id": arrival["job_id"], "new_file": name}
                for name, row in files.items()
            ]
            connection.execute(_HAND_OVER, handed_over)

    def _insert_arrival(self, connection: sa.Connection, arrival: dict[str, Any]) -> None:
        row = {
            "job_id": arrival["job_id"],
            "study_uid": arrival["study_uid"],
            "supersedes": arrival["supersedes"],
            "created": arrival["completed"],
            "submitted": False,
        }
        connection.execute(upsert(self.engine, ARRIVALS, row, update=()))

    def _submit_arrivals(self) -> tuple[Arrival, ...]:
        with self.engine.connect() as connection:
            waiting = connection.execute(
                sa.select(ARRIVALS).where(ARRIVALS.c.submitted.is_(False)).order_by(ARRIVALS.c.created)
            ).all()
        submitted = []
        for row in waiting:
            try:
                arrival = read_arrival(self.data.jobs / row.job_id)
            except FileNotFoundError:
                log.warning("job %s was deleted before the pipeline took it", row.job_id)
                self._note_submitted(row.job_id)
                continue
            try:
                self.submit(arrival)
            except Retryable as error:
                log.warning("job %s waits: %s", row.job_id, error)
                break
            self._note_submitted(row.job_id)
            submitted.append(arrival)
        return tuple(submitted)

    def _note_submitted(self, job_id: str) -> None:
        with self.engine.begin() as connection:
            connection.execute(sa.update(ARRIVALS).where(ARRIVALS.c.job_id == job_id).values(submitted=True))

    def _adopt_job_folders(self) -> None:
        """Take job folders into the index that it does not know: it was lost, or a crash came in between."""
        with self.engine.begin() as connection:
            known = set(connection.execute(sa.select(ARRIVALS.c.job_id)).scalars())
            found = [
                read_json(path) for path in self.data.jobs.glob(f"*/{ARRIVAL_FILE}") if path.parent.name not in known
            ]
            found = [arrival for arrival in found if PART_OF not in arrival]  # made of a job, not of what was received
            for arrival in sorted(found, key=lambda entry: float(entry["completed"])):
                self._insert_arrival(connection, arrival)
                for instance in arrival["instances"]:
                    row = {**instance, "state": InstanceState.HANDED_OVER.value, "job_id": arrival["job_id"]}
                    connection.execute(upsert(self.engine, INSTANCES, row, update=("state", "job_id", "file")))

    def reclaim(self) -> int:
        """Delete segments that nothing needs any more; bytes freed."""
        return self._follower.reclaim()


_OF_A_JOB = (InstanceState.PENDING, InstanceState.HANDED_OVER)
_HAND_OVER = (
    sa.update(INSTANCES)
    .where(INSTANCES.c.sop_uid == sa.bindparam("of_sop_uid"), INSTANCES.c.sha256 == sa.bindparam("of_sha256"))
    .values(state=InstanceState.HANDED_OVER.value, job_id=sa.bindparam("new_job_id"), file=sa.bindparam("new_file"))
)


def _link(source: Path, target: Path) -> bool:
    """Hard-link a file of an earlier job; False where it is no longer there."""
    try:
        os.link(source, target)
    except FileNotFoundError:
        return False
    return True
