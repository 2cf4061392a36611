"""When a study is complete: follows the spool's segments, keeps the index, and hands complete studies over.

A study counts as complete when nothing of it arrived for `assembly.quiet_seconds` and no association that sent
instances of it is open (an association that stays open holds it back for `assembly.max_wait_seconds` at most); where
a series has a gap, it is given three times as long. One that a pull fetches waits until that has ended. Its
instances are then written as DICOM files into `<folder>/jobs/<job_id>/input`. The job's name is a digest of the
instances, so that handing over twice after a crash makes the same job; slices that come later make another job with
the whole set, which names the job that it supersedes.

Order of durability: job folder, then the index (both by `handover`), then `submit`, then the note that it was
submitted. Each of them may be repeated.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import sqlalchemy as sa
from pydicom import Dataset

from daemon.assemble.arrival import Arrival, read_arrival
from daemon.assemble.completeness import Completeness
from daemon.assemble.follower import SegmentFollower
from daemon.assemble.handover import HandOver
from daemon.assemble.identities import share_identities, studies_with_late_instances
from daemon.assemble.receivers import Receivers
from daemon.config.data_folder import DataFolder
from daemon.config.sections import Settings
from daemon.database.engine import upsert
from daemon.database.tables import ARRIVALS, UNDER_WAY
from daemon.errors import Retryable
from daemon.files import make_private_folder
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
        engine: The database that holds the index (`open_index`); its tables exist.
        submit: Gives an arrival to the pipeline; may be called again with the same one. Raises Retryable where it
            should be called again later.
        own_result: Whether a data set is one of our own results.
        waiting: How many jobs the pipeline has not finished with.
        fetching: Studies of which a pull is still fetching something: none of them is complete.
        left_half: Why what came of a study is to be set aside, as only a part of it was fetched; empty: it is not.
        beat: Called after each round that worked: a sign of life.
        receivers: The others on the same database; None: there are none.
        shared: The daemon's database where the index lies apart from it, since other hosts share it; else None.
        clock: POSIX time, s: for what is written down, never for waiting.
    """

    settings: Settings
    engine: sa.Engine
    submit: Submit
    waiting: Callable[[], int] = lambda: 0
    fetching: Callable[[], set[str]] = set
    left_half: Callable[[str], str] = lambda _study_uid: ""
    own_result: Callable[[Dataset], bool] = is_own_result
    beat: Callable[[], None] = lambda: None
    receivers: Receivers | None = None
    shared: sa.Engine | None = None
    clock: Callable[[], float] = time.time
    _paused: dict[str, float] = field(default_factory=dict, init=False)
    """By study or job: monotonic time of the next try."""
    _failures: dict[str, int] = field(default_factory=dict, init=False)
    """By study or job."""
    _ended: set[str] = field(default_factory=set, init=False)
    """Studies whose hand-over ended in this process, well or not; the database does not know it yet."""
    _untold: set[str] = field(default_factory=set, init=False)
    """Studies of which other hosts may not know whose they are by what came last."""
    _follower: SegmentFollower = field(init=False)
    _completeness: Completeness = field(init=False)
    _jobs: HandOver = field(init=False)

    def __post_init__(self) -> None:
        others, data = self.receivers, self.data
        replicas = others.replicas if others is not None and others.replicates else None
        self._follower = SegmentFollower(self.engine, data.spool, data.damaged, self.own_result, replicas)
        elsewhere = set if others is None else others.receiving_elsewhere
        self._completeness = Completeness(self.settings.assembly, self.engine, data.spool, data.jobs, elsewhere)
        self._jobs = HandOver(self.engine, data, self._completeness.gaps, self.clock)

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
        self._jobs.adopt_job_folders()
        self._follower.reset()
        if self.shared is not None:
            self._untold = studies_with_late_instances(self.engine)
        self.look(now)

    def look(self, now: float) -> None:
        """Index what is new; `now` is monotonic, s."""
        fetching = self.fetching()  # before: what was fetched meanwhile may not be indexed yet
        if self.receivers is not None:
            self.receivers.look()
        self._untold |= self._follower.follow()
        if self.receivers is not None:
            self.receivers.share()
        if self.shared is not None:
            share_identities(self.engine, self.shared, self.data, self._untold)
        self._untold.clear()
        self._completeness.look(now, fetching)

    def step(self, now: float) -> tuple[Arrival, ...]:
        """Index what is new, hand over what is complete; the arrivals that were submitted.

        Args:
            now: Monotonic, s.
        """
        self.look(now)
        self._jobs.keep_conflicts()
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
                self._jobs.set_aside(study_uid, f"the service was killed {kills} times while it was handed over")
            elif half := self.left_half(study_uid):
                self._jobs.set_aside(study_uid, half)
            else:
                self._jobs.hand_over(study_uid)
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
        self._jobs.set_aside(study_uid, f"it could not be handed over: {type(error).__name__}: {error}")
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

    def reclaim(self) -> int:
        """Delete segments that nothing needs any more; bytes freed."""
        return self._follower.reclaim()
