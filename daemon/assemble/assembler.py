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
from dataclasses import dataclass, field, replace
from pathlib import Path

import sqlalchemy as sa
from pydicom import Dataset

from daemon.assemble.arrival import (
    Arrival,
    Duplicate,
    Row,
    arrival_record,
    job_name,
    read_arrival,
    record_of_what_failed,
)
from daemon.assemble.completeness import Completeness
from daemon.assemble.follower import SegmentFollower
from daemon.assemble.index import instance_keys, is_instance, shared_uids
from daemon.assemble.part10 import DamagedInstance, pixel_digest, sync_files, write_instance
from daemon.assemble.receivers import Receivers
from daemon.config.data_folder import DataFolder
from daemon.config.sections import Settings
from daemon.database.engine import upsert
from daemon.database.tables import ARRIVALS, INSTANCES, OF_A_JOB, UNDER_WAY, InstanceState
from daemon.errors import Permanent, Retryable
from daemon.files import make_private_folder, sync_folder
from daemon.jobs import records
from daemon.jobs.folder import JobFolder
from daemon.observe.logs import tag
from daemon.spool.backpressure import set_behind
from dicom_io.content.equipment import is_own_result

log = logging.getLogger(__name__)

POLL_SECONDS = 0.25
RETRY_SECONDS = 30.0
TROUBLE_SECONDS = 2.0
"""Pause after a round that failed as a whole."""
RECLAIM_SECONDS = 60.0
MOST_FAILURES = 2
"""A study that so often could not be handed over, for another reason than a disk or a database, is set aside."""
MOST_KILLS = 2
"""So is a study during whose hand-over the process was killed so often in a row."""
_DATABASE_AWAY = (sa.exc.OperationalError, sa.exc.InterfaceError)


Submit = Callable[[Arrival], None]


@dataclass(eq=False)
class Assembler:
    """Follows the spool and submits complete studies.

    What is done for one study runs guarded as a whole: whatever goes wrong there, it is tried once more, then set
    aside with its reason, and the next study goes on.

    Args:
        settings: The whole configuration; spool and jobs lie in its data folder.
        engine: The daemon's database; its tables exist.
        submit: Gives an arrival to the pipeline; may be called again with the same one. Raises Retryable where it
            should be called again later.
        own_result: Whether a data set is one of our own results.
        waiting: How many jobs the pipeline has not finished with.
        beat: Called after each round that worked: a sign of life.
        receivers: The others on the same database; None: there are none.
        clock: POSIX time, s: for what is written down, never for waiting.
    """

    settings: Settings
    engine: sa.Engine
    submit: Submit
    waiting: Callable[[], int] = lambda: 0
    own_result: Callable[[Dataset], bool] = is_own_result
    beat: Callable[[], None] = lambda: None
    receivers: Receivers | None = None
    clock: Callable[[], float] = time.time
    _paused: dict[str, float] = field(default_factory=dict, init=False)
    """By study or job: monotonic time of the next try."""
    _failures: dict[str, int] = field(default_factory=dict, init=False)
    """By study or job."""
    _ended: set[str] = field(default_factory=set, init=False)
    """Studies whose hand-over ended in this process, well or not; the database does not know it yet."""
    _follower: SegmentFollower = field(init=False)
    _completeness: Completeness = field(init=False)

    def __post_init__(self) -> None:
        others, data = self.receivers, self.data
        replicas = others.replicas if others is not None and others.replicates else None
        self._follower = SegmentFollower(self.engine, data.spool, data.damaged, self.own_result, replicas)
        elsewhere = set if others is None else others.receiving_elsewhere
        self._completeness = Completeness(self.settings.assembly, self.engine, data.spool, data.jobs, elsewhere)

    @property
    def data(self) -> DataFolder:
        """Where spool and jobs are."""
        return self.settings.data

    def run(self, stop: threading.Event) -> None:
        """Recover, then step until `stop` is set; trouble with disk or database passes, acknowledging needs neither."""
        recovered, next_reclaim = False, 0.0
        while not stop.is_set():
            pause = POLL_SECONDS
            try:
                if not recovered:
                    self.recover(time.monotonic())
                    recovered = True
                self.step(time.monotonic())
                if time.monotonic() >= next_reclaim:
                    self.reclaim()
                    next_reclaim = time.monotonic() + RECLAIM_SECONDS
                self.beat()
            except _DATABASE_AWAY as error:
                pause = TROUBLE_SECONDS
                self.beat()
                log.warning("the database does not answer, next try in %g s: %s", pause, type(error.orig).__name__)
            except OSError as error:
                pause = TROUBLE_SECONDS
                self.beat()
                log.warning("the data folder does not answer, next try in %g s: %s", pause, error)
            except Exception:  # without a sign of life: health turns red, and what can go on goes on
                pause = TROUBLE_SECONDS
                log.exception("what was received cannot be followed, next try in %g s", pause)
            stop.wait(pause)

    def recover(self, now: float) -> None:
        """Bring index and disk together after a stop of any kind.

        Segments that are not fully indexed are read again from their beginning, with checksums. Job folders that the
        index does not know are taken into it. A study that was being received gets its quiet time anew.

        Args:
            now: Monotonic, s.
        """
        for folder in (self.data.spool, self.data.jobs):
            make_private_folder(folder)
        for left_over in self.data.jobs.glob(".draft-*"):
            shutil.rmtree(left_over)
        self._adopt_job_folders()
        self._follower.reset()
        self.look(now)

    def look(self, now: float) -> None:
        """Index what is new; `now` is monotonic, s."""
        if self.receivers is not None:
            self.receivers.look()
        self._follower.follow()
        if self.receivers is not None:
            self.receivers.share()
        self._completeness.look(now)

    def step(self, now: float) -> tuple[Arrival, ...]:
        """Index what is new, hand over what is complete; the arrivals that were submitted.

        Args:
            now: Monotonic, s.
        """
        self.look(now)
        self._keep_conflicts()
        room = self._room_in_pipeline()
        for study_uid in self._completeness.complete(now):
            if room <= 0:
                break
            if self._paused.get(study_uid, now) <= now:
                room -= self._guarded_hand_over(study_uid, now)
        return self._submit_arrivals(now)

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

    def _guarded_hand_over(self, study_uid: str, now: float) -> bool:
        """Hand one study over, or set it aside where that fails again; whether there is a job of it now."""
        kills = self._begin(study_uid)
        try:
            if kills >= MOST_KILLS:
                self._set_aside(study_uid, f"the service was killed {kills} times while it was handed over")
            else:
                self._hand_over(study_uid)
        except _DATABASE_AWAY:
            raise
        except OSError as error:  # disk full or failing: what was received stays in the spool
            log.warning("study %s cannot be handed over, next try in %g s: %s", tag(study_uid), RETRY_SECONDS, error)
            self._paused[study_uid] = now + RETRY_SECONDS
            return False
        except Exception as error:
            log.exception("study %s cannot be handed over", tag(study_uid))
            return self._note_failure(study_uid, now, error)
        finally:
            if kills < MOST_KILLS:
                self._ended.add(study_uid)
        for known in (self._failures, self._paused):
            known.pop(study_uid, None)
        return True

    def _note_failure(self, study_uid: str, now: float, error: Exception) -> bool:
        self._failures[study_uid] = self._failures.get(study_uid, 0) + 1
        self._paused[study_uid] = now + RETRY_SECONDS
        if self._failures[study_uid] < MOST_FAILURES:
            return False
        self._set_aside(study_uid, f"it could not be handed over: {type(error).__name__}: {error}")
        self._failures.pop(study_uid)
        return True

    def _begin(self, study_uid: str) -> int:
        """Note that a hand-over begins; how often in a row the process was killed during this study's before."""
        with self.engine.begin() as connection:
            for ended in self._ended:
                connection.execute(sa.delete(UNDER_WAY).where(UNDER_WAY.c.study_uid == ended))
            query = sa.select(UNDER_WAY.c.starts).where(UNDER_WAY.c.study_uid == study_uid)
            starts = int(connection.execute(query).scalar() or 0)
            row = {"study_uid": study_uid, "starts": starts + 1}
            connection.execute(upsert(self.engine, UNDER_WAY, row, update=("starts",)))
        self._ended.clear()
        return starts

    def _end(self) -> None:
        """Note that no hand-over is under way."""
        if self._ended:
            with self.engine.begin() as connection:
                connection.execute(sa.delete(UNDER_WAY).where(UNDER_WAY.c.study_uid.in_(self._ended)))
            self._ended.clear()

    def _rows(self, study_uid: str) -> Sequence[Row]:
        order = (INSTANCES.c.received, INSTANCES.c.segment, INSTANCES.c.data_offset)
        query = sa.select(INSTANCES).where(INSTANCES.c.study_uid == study_uid).order_by(*order)
        with self.engine.connect() as connection:
            return connection.execute(query).all()

    def _previous(self, study_uid: str) -> tuple[list[str], float]:
        """Earlier jobs of a study, oldest first; and a time for the next one that is later than theirs."""
        query = sa.select(ARRIVALS).where(ARRIVALS.c.study_uid == study_uid).order_by(ARRIVALS.c.created)
        with self.engine.connect() as connection:
            rows = connection.execute(query).all()
        latest = rows[-1].created + 1e-3 if rows else 0.0  # the machine's clock may have been set back
        return [row.job_id for row in rows], max(self.clock(), latest)

    def _hand_over(self, study_uid: str) -> None:
        rows = self._rows(study_uid)
        previous, completed = self._previous(study_uid)
        draft = self.data.jobs / f".draft-{uuid.uuid4().hex}"
        draft.mkdir(mode=0o700)
        (draft / "input").mkdir(mode=0o700)
        try:
            files, damaged = self._write_input(draft / "input", [row for row in rows if row.state in OF_A_JOB])
            self._note_damaged(damaged)
            if not files:
                return
            job_id = job_name(files)
            arrival = arrival_record(
                job_id,
                study_uid,
                next((name for name in reversed(previous) if name != job_id), None),
                completed,
                self._rows(study_uid),
                files,
                self._completeness.gaps(study_uid),
                self._duplicates(draft / "input", rows, files),
                shared_uids(self.engine, study_uid),
            )
            arrival.write(JobFolder(draft).arrival)
            sync_files(draft / "input")
            self._publish(draft, self.data.jobs / job_id)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        self._note_arrival(arrival, files)

    def _set_aside(self, study_uid: str, reason: str) -> None:
        """Make a job that only says why there is none; the bytes stay in the spool as long as it is kept."""
        log.error("study %s is set aside: %s", tag(study_uid), reason)
        rows = [row for row in self._rows(study_uid) if row.state in OF_A_JOB]
        _, completed = self._previous(study_uid)
        reason = f"{reason}; sent again, it is tried again"
        record = record_of_what_failed(study_uid, rows, completed, reason)
        draft = self.data.jobs / f".draft-{uuid.uuid4().hex}"
        draft.mkdir(mode=0o700)
        try:
            (draft / "input").mkdir(mode=0o700)
            record.write(JobFolder(draft).arrival)
            self._publish(draft, self.data.jobs / record.job_id)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        with self.engine.begin() as connection:
            self._insert_arrival(connection, record)
            connection.execute(
                sa.update(INSTANCES)
                .where(INSTANCES.c.study_uid == study_uid, INSTANCES.c.state == InstanceState.PENDING.value)
                .values(state=InstanceState.SET_ASIDE.value)
            )

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
                write_instance(folder / name, row, self.data.spool)
                files[name] = row
            except DamagedInstance as error:
                log.warning("instance %s of study %s is lost: %s", tag(row.sop_uid), tag(row.study_uid), error)
                damaged.append(row)
        return files, damaged

    def _duplicates(self, folder: Path, rows: Sequence[Row], files: dict[str, Row]) -> list[Duplicate]:
        """Instances that were kept aside, and whether their pixels are those of the one that stands."""
        standing = {(row.series_uid, row.sop_uid): name for name, row in files.items()}
        found = []
        for row in rows:
            if row.state != InstanceState.CONFLICT:
                continue
            name = standing.get((row.series_uid, row.sop_uid))
            same = None
            if name is not None and row.file:
                theirs = pixel_digest(self.data.conflicts / row.file, row.transfer_syntax_uid)
                ours = pixel_digest(folder / name, files[name].transfer_syntax_uid)
                same = None if theirs is None or ours is None else theirs == ours
            found.append(Duplicate(row, same))
        return found

    def _note_damaged(self, rows: Iterable[Row]) -> None:
        with self.engine.begin() as connection:
            for row in rows:
                lost = sa.update(INSTANCES).where(is_instance())
                connection.execute(
                    lost.values(state=InstanceState.DAMAGED.value, job_id=None, file=""), instance_keys(row._mapping)
                )

    def _keep_conflicts(self) -> None:
        """Write instances whose UIDs another instance has already into the data folder's `conflicts`."""
        aside = self.data.conflicts
        with self.engine.connect() as connection:
            rows = connection.execute(
                sa.select(INSTANCES).where(INSTANCES.c.state == InstanceState.CONFLICT.value, INSTANCES.c.file == "")
            ).all()
        for row in rows:
            make_private_folder(aside)
            path = aside / f"{row.sop_uid}.{row.sha256[:16]}.dcm"
            try:
                write_instance(path, row, self.data.spool)
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
                kept = sa.update(INSTANCES).where(is_instance()).values(file=path.name)
                connection.execute(kept, instance_keys(row._mapping))

    def _publish(self, draft: Path, final: Path) -> None:
        sync_folder(draft)
        if not final.exists():  # otherwise a crash came between this and the index: same name, same content
            draft.rename(final)
        sync_folder(self.data.jobs)

    def _note_arrival(self, arrival: records.Arrival, files: dict[str, Row]) -> None:
        with self.engine.begin() as connection:
            self._insert_arrival(connection, arrival)
            handed_over = [
                {**instance_keys(row._mapping), "new_job_id": arrival.job_id, "new_file": name}
                for name, row in files.items()
            ]
            connection.execute(_HAND_OVER, handed_over)

    def _insert_arrival(self, connection: sa.Connection, arrival: records.Arrival) -> None:
        row = {
            "job_id": arrival.job_id,
            "study_uid": arrival.study_uid,
            "supersedes": arrival.supersedes,
            "created": arrival.completed,
            "submitted": False,
        }
        connection.execute(upsert(self.engine, ARRIVALS, row, update=()))

    def _submit_arrivals(self, now: float) -> tuple[Arrival, ...]:
        with self.engine.connect() as connection:
            waiting = connection.execute(
                sa.select(ARRIVALS).where(ARRIVALS.c.submitted.is_(False)).order_by(ARRIVALS.c.created)
            ).all()
        submitted = []
        for row in waiting:
            if self._paused.get(row.job_id, now) > now:
                continue
            try:
                arrival = self._submit(row.job_id)
            except Retryable as error:
                log.warning("job %s waits: %s", row.job_id, error)
                break
            except (*_DATABASE_AWAY, OSError):
                raise
            except Exception as error:
                log.exception("job %s cannot be given to the pipeline", row.job_id)
                self._failures[row.job_id] = self._failures.get(row.job_id, 0) + 1
                self._paused[row.job_id] = now + RETRY_SECONDS
                if self._failures[row.job_id] < MOST_FAILURES:
                    continue
                arrival = self._submit_failed(row.job_id, f"it could not be begun: {type(error).__name__}: {error}")
            if arrival is not None:
                submitted.append(arrival)
        self._end()
        return tuple(submitted)

    def _submit(self, job_id: str) -> Arrival | None:
        """Give a job to the pipeline; None where its folder was deleted before."""
        if not JobFolder(self.data.jobs / job_id).arrival.exists():
            log.warning("job %s was deleted before the pipeline took it", job_id)
            self._note_submitted(job_id)
            return None
        arrival = read_arrival(self.data.jobs / job_id)
        self.submit(arrival)
        self._note_submitted(job_id)
        return arrival

    def _submit_failed(self, job_id: str, reason: str) -> Arrival | None:
        """Let the pipeline keep a job that it could not begin as one that was set aside."""
        try:
            arrival = replace(read_arrival(self.data.jobs / job_id), set_aside=reason)
            self.submit(arrival)
        except _DATABASE_AWAY:
            raise
        except Exception:
            log.exception("job %s cannot even be set aside, next try in %g s", job_id, RETRY_SECONDS)
            return None
        self._note_submitted(job_id)
        return arrival

    def _note_submitted(self, job_id: str) -> None:
        with self.engine.begin() as connection:
            connection.execute(sa.update(ARRIVALS).where(ARRIVALS.c.job_id == job_id).values(submitted=True))

    def _adopt_job_folders(self) -> None:
        """Take job folders into the index that it does not know: it was lost, or a crash came in between."""
        with self.engine.begin() as connection:
            known = set(connection.execute(sa.select(ARRIVALS.c.job_id)).scalars())
            for arrival in sorted(self._unknown_arrivals(known), key=lambda arrival: arrival.completed):
                self._insert_arrival(connection, arrival)
                for instance in arrival.instances:
                    row = {**instance.to_json(), "state": InstanceState.HANDED_OVER.value, "job_id": arrival.job_id}
                    connection.execute(upsert(self.engine, INSTANCES, row, update=("state", "job_id", "file")))

    def _unknown_arrivals(self, known: set[str]) -> list[records.Arrival]:
        """Of job folders that the index does not know, but for those that were made of a job."""
        found = []
        for folder in sorted(self.data.jobs.iterdir()):
            if folder.name.startswith(".") or folder.name in known or not JobFolder(folder).arrival.exists():
                continue
            try:
                found.append(records.Arrival.read(JobFolder(folder).arrival))
            except Permanent as error:
                log.warning("left as it is: %s", error)
        return [arrival for arrival in found if arrival.part_of is None]

    def reclaim(self) -> int:
        """Delete segments that nothing needs any more; bytes freed."""
        return self._follower.reclaim()


_HAND_OVER = (
    sa.update(INSTANCES)
    .where(is_instance())
    .values(state=InstanceState.HANDED_OVER.value, job_id=sa.bindparam("new_job_id"), file=sa.bindparam("new_file"))
)


def _link(source: Path, target: Path) -> bool:
    """Hard-link a file of an earlier job; False where it is no longer there."""
    try:
        os.link(source, target)
    except FileNotFoundError:
        return False
    return True
