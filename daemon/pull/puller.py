"""The daemon's puller: searches, fetches, and follows what it fetched until it is reported.

Everything that it knows is in the database, so it goes on wherever it was killed: a study that was being fetched is
fetched again, and what had come already is known by its bytes. One thread for each source, so that a PACS that is away
holds up no other. While a study is fetched, it is not complete, and one that was given up in the middle is set aside
(`fetches`): half of it is never reported.
"""

from __future__ import annotations

import datetime
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import sqlalchemy as sa
from pydicom import Dataset

from daemon.config.sections import Settings, Source
from daemon.database.engine import open_index
from daemon.database.tables import (
    ARRIVALS,
    INSTANCES,
    JOBS,
    RESULTS,
    STUDY_OWNERS,
    InstanceState,
    JobState,
    PulledState,
    PullState,
)
from daemon.errors import Retryable
from daemon.files import free_bytes
from daemon.jobs.store import JobStore, now
from daemon.observe.logs import tag
from daemon.pull.asks import Ask
from daemon.pull.client import SourceClient, client_of
from daemon.pull.source import Fetched, Inbox, SourceAway, SourceBusy
from daemon.pull.store import Found, Pull, PulledStudy, PullStore
from daemon.spool.backpressure import is_behind
from daemon.spool.writer import SpoolWriter
from dicom_io import header
from dicom_io.content.equipment import MANUFACTURER
from dicom_io.select.selection import SelectionRules, judge_entry

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
OTHERS_SECONDS = 5.0
"""How often a process looks whether the one that pulls is gone."""
PULL_LOCK = 7_361_024_509
"""PostgreSQL advisory lock of the one process that pulls."""
FIRST_PAUSE, LONGEST_PAUSE = 2.0, 60.0
"""Seconds until a source that is away, or a study that did not come, is tried again: at first, and at the most."""
ARRIVAL_SECONDS = 60.0
"""So long, and three quiet times, a fetched study may take to become a job."""
ACTIVE = (PullState.RUNNING, PullState.PAUSED)
REPORTED = (JobState.DELIVERING, JobState.DONE)
_GIB = 1 << 30

Row = sa.Row[Any]


@dataclass(eq=False)
class Puller:
    """Carries out the pulls of one service.

    Args:
        settings: The whole configuration.
        engine: The daemon's database; its tables exist.
        clock: Local time: for the window.
    """

    settings: Settings
    engine: sa.Engine
    clock: Callable[[], datetime.time] = lambda: datetime.datetime.now().astimezone().time()
    _threads: dict[str, threading.Thread] = field(default_factory=dict, init=False)
    _lock: sa.Connection | None = field(default=None, init=False)
    _inbox: Inbox = field(init=False)
    _index: sa.Engine = field(init=False)

    def __post_init__(self) -> None:
        self.store = PullStore(self.engine)
        self._index = open_index(self.settings, self.engine)
        writer = SpoolWriter(self.settings.data.spool, int(self.settings.storage.min_free_gb * _GIB))
        self._inbox = Inbox(writer)

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set; of several receivers on one database, one alone."""
        while not stop.is_set():
            try:
                if not self._is_the_one():
                    stop.wait(OTHERS_SECONDS)
                    continue
                for pull in self.store.pulls((*ACTIVE, PullState.CANCELLED)):
                    self._give_thread(pull.source, stop)
            except sa.exc.SQLAlchemyError as error:
                log.warning("the database does not answer: %s", type(error).__name__)
            stop.wait(POLL_SECONDS)

    def _is_the_one(self) -> bool:
        """Whether no other process pulls on this database; the lock is the connection's, and goes with the process."""
        if self.engine.dialect.name != "postgresql":
            return True
        if self._lock is None or self._lock.invalidated:
            self._lock = self.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        take = sa.select(sa.func.pg_try_advisory_lock(PULL_LOCK))  # what is held already is held once more
        return bool(self._lock.execute(take).scalar_one())

    def close(self) -> None:
        """Give the spool back."""
        self._inbox.writer.close()

    def _give_thread(self, name: str, stop: threading.Event) -> None:
        thread = self._threads.get(name)
        if thread is None or not thread.is_alive():
            worker = _SourceWorker(self, name, stop)
            thread = threading.Thread(target=worker.run, name=f"pull {name}", daemon=True)
            self._threads[name] = thread
            thread.start()

    def source(self, name: str) -> Source | None:
        """The entry of the configuration."""
        return next((source for source in self.settings.sources if source.name == name), None)

    def client(self, source: Source) -> SourceClient:
        """The client of a source."""
        return client_of(self.settings, source, self._inbox)

    def no_room(self, source: Source) -> str:
        """Why our listener refuses what is sent now, or soon would; empty where it takes it."""
        limit, writer = self.settings.assembly.max_waiting_jobs, self._inbox.writer
        most = limit - min(source.in_flight, limit // 2)  # a pull leaves room for what it has in flight
        if is_behind(writer.folder) or JobStore(self.engine).waiting() >= most:
            return f"waits for the pipeline, which is behind: assembly.max_waiting_jobs is {limit}"
        if free_bytes(writer.folder) < writer.min_free_bytes:
            return f"waits for room on the disk: storage.min_free_gb is {self.settings.storage.min_free_gb:g}"
        return ""

    def waits_for_a_job(self, study_uid: str) -> bool:
        """Whether something of a study is received that no job has yet."""
        pending = (INSTANCES.c.study_uid == study_uid, INSTANCES.c.state == InstanceState.PENDING.value)
        unsubmitted = (ARRIVALS.c.study_uid == study_uid, ARRIVALS.c.submitted.is_(False))
        with self._index.connect() as connection:
            waits = connection.execute(sa.select(INSTANCES.c.sop_uid).where(*pending).limit(1)).scalar()
            made = connection.execute(sa.select(ARRIVALS.c.job_id).where(*unsubmitted).limit(1)).scalar()
        return waits is not None or made is not None

    def is_indexed(self, study: PulledStudy) -> bool:
        """Whether as many instances of the fetched series are known as came; those set aside wait to come again."""
        taken = [series["series_uid"] for series in study.series if series["taken"]]
        mine = (INSTANCES.c.study_uid == study.study_uid, INSTANCES.c.series_uid.in_(taken))
        known = INSTANCES.c.state != InstanceState.SET_ASIDE.value
        with self._index.connect() as connection:
            query = sa.select(sa.func.count(INSTANCES.c.sop_uid.distinct())).where(*mine, known)
            return int(connection.execute(query).scalar_one()) >= study.instances

    def has_owner(self, study_uid: str) -> bool:
        """Whether one of several receivers has got something of a study: its job is that one's to make."""
        with self.engine.connect() as connection:
            return (
                connection.execute(sa.select(STUDY_OWNERS).where(STUDY_OWNERS.c.study_uid == study_uid)).first()
                is not None
            )

    def result_of(self, study_uid: str) -> Row | None:
        """What is noted of the latest report of a study whose job is no longer kept."""
        gone = (RESULTS.c.study_uid == study_uid, RESULTS.c.job_id.not_in(sa.select(JOBS.c.job_id)))
        with self.engine.connect() as connection:
            return connection.execute(sa.select(RESULTS).where(*gone).order_by(RESULTS.c.created.desc())).first()

    def jobs_of(self, study_uid: str) -> Sequence[Row]:
        """Jobs of a study, the newest first."""
        with self.engine.connect() as connection:
            query = sa.select(JOBS).where(JOBS.c.study_uid == study_uid)
            return connection.execute(query.order_by(JOBS.c.created.desc())).all()


@dataclass(eq=False)
class _SourceWorker:
    """The pulls of one source, one study after the other."""

    puller: Puller
    name: str
    stop: threading.Event
    _since: float = field(default_factory=time.monotonic)
    _pause: float = FIRST_PAUSE
    _not_before: dict[tuple[str, int], float] = field(default_factory=dict)
    """By study: monotonic time of its next try."""
    _failed_searches: Counter[str] = field(default_factory=Counter)
    """By pull."""

    def run(self) -> None:
        """Until every pull of the source has ended."""
        while not self.stop.is_set():
            wait = POLL_SECONDS
            try:
                if not (pulls := self._pulls()):
                    return
                wait = self._step(pulls)
            except (sa.exc.SQLAlchemyError, OSError) as error:
                log.warning("pull from %s: %s; tried again", self.name, type(error).__name__)
                wait = FIRST_PAUSE
            except Exception:  # one pull must not end the others; what failed stays on record and is tried again
                log.exception("pull from %s", self.name)
                wait = LONGEST_PAUSE
            self.stop.wait(wait)

    def _pulls(self) -> list[Pull]:
        """Pulls that have something to do, the oldest first."""
        store = self.puller.store
        found = [pull for pull in store.pulls((*ACTIVE, PullState.CANCELLED)) if pull.source == self.name]
        here = {study.pull_id for study in store.in_flight(self.name)}
        return [pull for pull in reversed(found) if pull.state in ACTIVE or pull.pull_id in here]

    def _step(self, pulls: Sequence[Pull]) -> float:
        """Settle what ended, then search or fetch one study; how long to wait then, s."""
        store = self.puller.store
        for pull in pulls:
            for study in store.studies(pull.pull_id, (PulledState.FETCHED,)):
                self._settle(study)
            if pull.state is PullState.CANCELLED:
                for study in store.studies(pull.pull_id, (PulledState.FETCHING,)):  # cut off, and not wanted any more
                    store.update(study, PulledState.CANCELLED, reason="cancelled by request")
            store.finish(pull.pull_id)
        running = [pull for pull in pulls if pull.state is PullState.RUNNING and not store.finish(pull.pull_id)]
        source = self.puller.source(self.name)
        for pull in running:
            obstacle = "its source is no longer in the configuration" if source is None else self._obstacle(source)
            if obstacle or source is None:
                store.note(pull.pull_id, obstacle)
                continue
            try:
                done = self._work_on(pull, source)
            except SourceAway as error:
                log.warning("pull %s: %s", pull.pull_id, type(error).__name__)
                store.note(pull.pull_id, f"waits for the PACS: {error}")
                self._pause = min(2 * self._pause, LONGEST_PAUSE)
                return self._pause / 2
            self._pause = FIRST_PAUSE
            store.note(pull.pull_id, "")
            if done:
                return 0.0
        return POLL_SECONDS

    def _obstacle(self, source: Source) -> str:
        """Why nothing may be asked of the source now; empty where it may."""
        if source.window and not in_window(source.window, self.puller.clock()):
            return f"waits for its time of day, {source.window}"
        return self.puller.no_room(source)

    def _work_on(self, pull: Pull, source: Source) -> bool:
        """Search, or fetch the next study; False where there is nothing to do now."""
        if not pull.searched:
            self._search(pull, source)
            return True
        study = self._next(pull, source)
        if study is None:
            return False
        if study.state is PulledState.FETCHING or not self._is_reported(study):
            self._fetch(pull, study, source)
        return True

    def _search(self, pull: Pull, source: Source) -> None:
        """Write down what is there; a source that fails at it is asked again, `attempts` times."""
        last = self._failed_searches[pull.pull_id] + 1 >= source.attempts
        try:
            found = search(self.puller.client(source), pull.asked, last=last)
        except SourceBusy:
            self._failed_searches[pull.pull_id] += 1
            raise
        self.puller.store.put_found(pull.pull_id, found)

    def _next(self, pull: Pull, source: Source) -> PulledStudy | None:
        """The study whose turn it is: one whose fetching was cut off, else the first that waits and may be begun."""
        store = self.puller.store
        in_flight = store.in_flight(self.name)
        cut_off = [s for s in in_flight if s.pull_id == pull.pull_id and s.state is PulledState.FETCHING]
        ready = [s for s in cut_off if self._not_before.get((s.pull_id, s.position), 0.0) <= time.monotonic()]
        if ready:
            return ready[0]
        if store.slots_taken(self.name) >= source.in_flight or self._too_soon(source):
            return None
        elsewhere = {study.study_uid for study in in_flight}
        waiting = store.studies(pull.pull_id, (PulledState.WAITING,))
        return next((study for study in waiting if study.study_uid not in elsewhere), None)

    def _too_soon(self, source: Source) -> bool:
        if not source.studies_per_hour:
            return False
        return now() < self.puller.store.last_started(self.name) + 3600 / source.studies_per_hour

    def _is_reported(self, study: PulledStudy) -> bool:
        """Settle a study of which nothing was fetched, where it has a report already or is going to have one."""
        wanted = (*REPORTED, JobState.QUEUED, JobState.RUNNING)
        job = next((job for job in self.puller.jobs_of(study.study_uid) if job.state in wanted), None)
        if job is not None:
            self._end_by_job(study, job, "reported before: ")
            return True
        result = self.puller.result_of(study.study_uid)
        if result is None:
            return False
        when = datetime.datetime.fromtimestamp(result.created, datetime.UTC)
        reason = f"reported before, on {when:%Y-%m-%d}; its job is no longer kept"
        self.puller.store.update(study, PulledState.REPORTED, reason=reason, job_id=result.job_id)
        return True

    def _fetch(self, pull: Pull, study: PulledStudy, source: Source) -> None:
        """Fetch what could be a FLAIR of one study.

        Raises:
            SourceAway: the source does not answer; the study waits, and that is no attempt of it.
        """
        store = self.puller.store
        begun = store.begin(study)
        if begun is None:
            return
        try:
            fetched = self._bring(pull, begun, source)
        except SourceBusy as error:
            self._put_off(begun, source, str(error))
        except SourceAway:
            store.uncount(begun)
            raise
        except Retryable as error:
            self._put_off(begun, source, str(error))
        else:
            if fetched is not None:
                log.info("pull %s: study %s fetched by %s", pull.pull_id, tag(study.study_uid), fetched.way)
                values = {"instances": fetched.instances, "way": fetched.way, "reason": ""}
                store.update(begun, PulledState.FETCHED, **values)

    def _bring(self, pull: Pull, study: PulledStudy, source: Source) -> Fetched | None:
        """All of the series that are taken; None where none is.

        Raises:
            Retryable: not all of it came.
        """
        puller = self.puller
        client = puller.client(source)
        verdicts = judged(client.series(study.study_uid), puller.settings, all_series=pull.all_series)
        puller.store.update(study, series=verdicts)
        wanted = [v["series_uid"] for v in verdicts if v["taken"]]
        if not wanted:
            puller.store.update(study, PulledState.REFUSED, reason=_why_none(verdicts))
            return None
        fetched = client.fetch(study.study_uid, wanted)
        told = sum(v["instances"] or 0 for v in verdicts if v["taken"])
        if fetched.instances is None:
            return replace(fetched, instances=told)
        if fetched.instances < told:
            raise Retryable(f"the PACS named {told} instances, and {fetched.instances} came")
        return fetched

    def _put_off(self, begun: PulledStudy, source: Source, why: str) -> None:
        """Have it tried again later; an attempt counts where our side would have taken the study."""
        store, attempts = self.puller.store, begun.attempts
        log.warning("pull %s: study %s did not come, attempt %d", begun.pull_id, tag(begun.study_uid), attempts)
        if no_room := self.puller.no_room(source):
            store.uncount(begun, reason=f"{no_room}: {why}")
        elif attempts >= source.attempts:
            store.update(begun, PulledState.FAILED, reason=f"given up after {attempts} attempts: {why}")
        else:
            pause = min(FIRST_PAUSE * 2 ** (attempts - 1), LONGEST_PAUSE)
            self._not_before[begun.pull_id, begun.position] = time.monotonic() + pause
            store.update(begun, reason=f"attempt {attempts}: {why}")

    def _settle(self, study: PulledStudy) -> None:
        """Look what became of a fetched study."""
        puller = self.puller
        jobs = puller.jobs_of(study.study_uid)
        waited = min(now() - study.updated, time.monotonic() - self._since)  # after a start the index is read anew
        late = waited > ARRIVAL_SECONDS + 3 * puller.settings.assembly.quiet_seconds
        if any(job.state in (JobState.QUEUED, JobState.RUNNING) for job in jobs):
            return
        indexed = puller.is_indexed(study)
        if puller.waits_for_a_job(study.study_uid) or not (indexed or late):
            return
        if jobs:
            best = next((job for job in jobs if job.state in REPORTED), jobs[0])
            self._end_by_job(study, best, "")
        elif late and not puller.has_owner(study.study_uid):
            lost = (
                f"the PACS says that it sent {study.instances} instances, which did not come: does it know our address?"
            )
            reason = "it was fetched, and made no job: see the log of the service" if indexed else lost
            puller.store.update(study, PulledState.FAILED, reason=reason)

    def _end_by_job(self, study: PulledStudy, job: Row, before: str) -> None:
        state = JobState(job.state)
        if state in REPORTED:
            ended, reason = PulledState.REPORTED, job.result
        elif state is JobState.SET_ASIDE and not job.deaths:  # with deaths: for what went wrong, until a person retries
            ended, reason = PulledState.REFUSED, job.reason
        elif state in (JobState.QUEUED, JobState.RUNNING):
            ended, reason = PulledState.FETCHED, ""
        else:
            ended, reason = PulledState.FAILED, job.reason or str(state)
        self.puller.store.update(study, ended, reason=f"{before}{reason}" if reason else before, job_id=job.job_id)


def in_window(window: str, at: datetime.time) -> bool:
    """Whether a time of day lies in `HH:MM-HH:MM`, which may go over midnight; the end belongs to the next time."""
    begin, end = (datetime.time.fromisoformat(text) for text in window.split("-"))
    plain = at.replace(tzinfo=None)
    return begin <= plain < end if begin < end else plain >= begin or plain < end


def search(client: SourceClient, asked: Sequence[Ask], *, last: bool = False) -> list[Found]:
    """Every answer to what was asked for.

    Args:
        client: The source.
        asked: What is asked for.
        last: What the source fails at has failed for good.

    Raises:
        SourceAway: the source does not answer.
        SourceBusy: it fails at something; not with `last`.
    """
    found: list[Found] = []
    for ask in asked:
        try:
            studies = client.studies(ask.keys)
        except Retryable as error:
            if isinstance(error, SourceAway) and not (last and isinstance(error, SourceBusy)):
                raise
            found.append(Found(ask, None, PulledState.FAILED, f"the PACS cannot be searched for it: {error}"))
            continue
        found += _answers(ask, studies)
    return found


def _answers(ask: Ask, studies: Sequence[Dataset]) -> list[Found]:
    """Studies that a PACS named, and whether they are what was asked for."""
    named = [(study, ask.missing(study)) for study in studies if header.uid(study, "StudyInstanceUID")]
    if ask.literal:  # a PACS may take it for a pattern, or leave it out of account
        named = [(study, why) for study, why in named if not why]
    if not named:
        return [Found(ask, None, PulledState.NOT_FOUND, f"the PACS has no study of {ask.label}")]
    found = []
    for study, missing in named:
        modalities = header.texts(study, "ModalitiesInStudy")
        no_mr = bool(modalities) and "MR" not in modalities
        why = missing or (f"no MR among its modalities: {', '.join(modalities)}" if no_mr else "")
        found.append(Found(ask, study, PulledState.REFUSED if why else PulledState.WAITING, why))
    return found


def judged(entries: Sequence[Dataset], settings: Settings, *, all_series: bool) -> list[dict[str, Any]]:
    """Each series of a study: whether it is taken, and why."""
    rules = SelectionRules(include=settings.selection.include, exclude=settings.selection.exclude)
    verdicts = []
    for entry in entries:
        verdict = judge_entry(entry, rules)
        ours = header.text(entry, "Manufacturer") == MANUFACTURER
        taken = not ours and (all_series or verdict.accepted)
        against = "a result of ours" if ours else "; ".join(f"{r.rule}: {r.detail}" for r in verdict.refusals)
        verdicts.append({
            "series_uid": header.uid(entry, "SeriesInstanceUID"),
            "description": header.text(entry, "SeriesDescription"),
            "modality": header.text(entry, "Modality"),
            "instances": header.whole_number(entry, "NumberOfSeriesRelatedInstances"),
            "taken": taken,
            "reason": "asked for with all series" if taken and against else against,
        })  # fmt: skip
    return verdicts


def _why_none(verdicts: Sequence[dict[str, Any]]) -> str:
    if not verdicts:
        return "the PACS names no series of it"
    shown = " | ".join(f"{v['description'] or v['series_uid']!s}: {v['reason']}" for v in verdicts[:8])
    more = f" | and {len(verdicts) - 8} more" if len(verdicts) > 8 else ""
    return f"none of {len(verdicts)} series could be a FLAIR: {shown}{more}"
