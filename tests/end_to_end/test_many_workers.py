"""Many workers on one PostgreSQL, with steps of the test's own whose model is a wait: each job once, workers busy.

Two workers are killed, one is frozen for longer than its lease, and PostgreSQL is ended as by a crash while the work of
a killed one is being taken over. `BRAINGEMMA_TEST_WORKERS` (20), `BRAINGEMMA_TEST_JOBS` (5000) and
`BRAINGEMMA_TEST_SEED` (random) make it smaller, or the same again; `pytest -s` shows how busy the workers were and how
long urgent jobs waited. `BRAINGEMMA_TEST_BUSY=0.95` demands that share of busy time, for a machine of its own.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import sqlalchemy as sa
from e2e_support import say
from postgres_support import Postgres, needs_postgres
from record_support import a_report, an_arrival, an_instance
from steps_support import replace_steps
from worker_support import Worker

from daemon.database.engine import create_tables
from daemon.database.tables import ARCHIVES, EXECUTORS, FIGURES, JOBS, RESULTS, JobState
from daemon.engine.client import engine_client, enqueue_report
from daemon.engine.lease import DEAD, EXIT_FENCED, TAKEOVER_LOCK
from daemon.files import make_private
from daemon.jobs.files import RECEIVED
from daemon.jobs.folder import JobFolder
from daemon.jobs.lists.figures import REPORTS
from daemon.jobs.lists.worklist import note_study
from daemon.jobs.shared_files import SharedFiles
from daemon.jobs.steps import STEPS
from daemon.jobs.store import JobStore
from daemon.service.wiring import prepare_for_enqueueing
from daemon.trial.daemon import TrialService
from dicom_io.series_writer import write_series

WORKERS = int(os.environ.get("BRAINGEMMA_TEST_WORKERS", "20"))
JOBS_IN_ALL = int(os.environ.get("BRAINGEMMA_TEST_JOBS", "5000"))
SEED = int(os.environ.get("BRAINGEMMA_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 31)
BUSY = float(os.environ.get("BRAINGEMMA_TEST_BUSY", "0"))
URGENT = max(4, JOBS_IN_ALL // 50)
LEAST_JOBS = 15
"""For each worker: what is done to them takes its time, and jobs must wait all the while."""
WAIT = 2.0
"""What the model of this test takes for a report, s."""
LEASE_SECONDS = 20 if JOBS_IN_ALL >= 500 else 10
STANDSTILL = 300.0
"""For so long nothing may end, s."""

pytestmark = [
    pytest.mark.e2e, pytest.mark.slow, needs_postgres, pytest.mark.timeout(1800 + 20 * JOBS_IN_ALL / WORKERS),
]  # fmt: skip

WAITING_STEPS = r"""
import json, os, time

PACK = {"identity": "x", "study_uid": "1.2.3", "synthetic_only": False, "objects": []}

class Steps:
    def __init__(self, settings, progress):
        self.progress = progress

    def run(self, step, folder):
        began, name = time.time(), folder.root.name
        self.note(name, step, "begins", began)
        with (folder.root / "steps").open("a") as file:
            file.write(step + "\n")
        if step == "select":
            uid = json.loads(folder.arrival.read_text())["series_uids"][0]
            series = [{"series_uid": uid, "verdict": "accepted", "reasons": []}]
            folder.selection.write_text(json.dumps({"chosen": uid, "further": [], "series": series, "problems": []}))
        elif step == "report":
            self.progress(0, 1, "writing")
            time.sleep(WAIT)
            folder.report_json.write_text('REPORT')
        elif step == "encode":
            folder.dicom.mkdir(exist_ok=True)
            (folder.dicom / "pack.json").write_text(json.dumps(PACK))
        self.note(name, step, "ended", began)

    def note(self, job, step, what, began):
        line = {"job": job, "step": step, "what": what, "began": began, "now": time.time(), "process": os.getppid()}
        with open(os.environ["TEST_EFFECTS"], "a") as file:
            file.write(json.dumps(line) + "\n")
""".replace("REPORT", a_report(findings=[]).model_dump_json()).replace("WAIT", str(WAIT))


@dataclass(frozen=True)
class Event:
    """A step began or ended: the model process wrote it down as it happened."""

    job: str
    step: str
    what: str
    began: float
    now: float
    process: int


class Site:
    """A receiver's part, played by the test with the calls of the service, and the workers."""

    def __init__(self, folder: Path, postgres: Postgres) -> None:
        self.folder = folder
        self.postgres = postgres
        self.service = TrialService(
            folder / "site",
            {
                "engine": {"database_url": postgres.url, "work": False, "lease_seconds": LEASE_SECONDS},
                "storage": {"shared_url": f"file://{folder / 'shared'}"},
                "log": {"format": "json"},
            },
        )
        self.store: JobStore = self.service.store
        self.engine = self.store.engine
        create_tables(self.engine)
        prepare_for_enqueueing(self.service.settings, self.engine)
        self.files = SharedFiles(self.engine, make_private(folder / "receiver"), f"file://{folder / 'shared'}")
        image = nibabel.Nifti1Image(np.arange(128, dtype=np.int16).reshape(8, 8, 2), np.diag([20, 20, 30, 1]))
        self._instance = pydicom.dcmread(write_series(image, folder / "series")[0])
        self.submitted: dict[str, float] = {}
        self.hits: list[float] = []
        """POSIX times at which a worker or the server was hit."""
        self.workers: list[Worker] = []

    def submit(self, number: int, priority: str) -> None:
        """One more job: a patient with one image, handed over as the receiver does it."""
        name = f"j{number:05d}"
        made = self._instance
        made.PatientID, made.StudyInstanceUID = f"P{number:05d}", f"1.2.826.0.1.{number}"
        made.SeriesInstanceUID = series = f"{made.StudyInstanceUID}.1"
        folder = JobFolder(make_private(self.files.jobs / name))
        made.save_as(make_private(folder.input) / "000001.dcm")
        instances = [an_instance("000001.dcm", series)]
        arrival = {"study_uid": made.StudyInstanceUID, "series_uids": [series], "instances": instances}
        an_arrival(name, **arrival).write(folder.arrival)
        self.files.keep(name, RECEIVED)
        self.store.add(name, study_uid=str(made.StudyInstanceUID), supersedes=None, priority=priority)
        note_study(self.store, name, folder)
        job = self.store.get(name)
        assert job is not None
        enqueue_report(self.engine, job)
        self.submitted[name] = time.time()

    def start(self, count: int) -> None:
        for number in range(count):
            self.workers.append(Worker(self.service.configuration, f"gpu{number}", self.folder / f"worker{number}.log"))

    def stop(self) -> None:
        for worker in self.workers:
            worker.stop()
        self.service.stop()

    @property
    def done(self) -> int:
        query = sa.select(sa.func.count()).where(JOBS.c.state == str(JobState.DONE))
        with self.engine.connect() as connection:
            return int(connection.execute(query).scalar_one())

    @property
    def events(self) -> list[Event]:
        lines = (self.folder / "effects").read_text().splitlines()
        return [Event(**json.loads(line)) for line in lines]

    def wait_until(self, what: str, condition: Callable[[], bool], pause: float = 0.5) -> None:
        """Until something is so; fails where no job ends for long."""
        seen, deadline = -1, 0.0
        while not condition():
            for worker in self.workers:
                worker.keep_always()
            done = self.done
            if done > seen:
                seen, deadline = done, time.monotonic() + STANDSTILL
            if time.monotonic() > deadline:
                raise AssertionError(f"{what}: {done} of {JOBS_IN_ALL} are done and no more for {STANDSTILL:.0f} s")
            time.sleep(pause)

    def executor(self, worker: Worker) -> sa.Row[tuple[object, ...]]:
        with self.engine.connect() as connection:
            ours = EXECUTORS.c.executor_id.endswith(f":{worker.name}")
            now = sa.cast(sa.extract("epoch", sa.func.clock_timestamp()), sa.Double)
            return connection.execute(sa.select(EXECUTORS, (now - EXECUTORS.c.beat).label("silent")).where(ours)).one()

    def at_work(self, worker: Worker) -> bool:
        """Whether its model is at work on a report just now."""
        last = [event for event in self.events if event.process == worker.process.pid][-1:]
        return bool(last) and (last[0].step, last[0].what) == ("report", "begins")


def kill(site: Site, worker: Worker) -> None:
    site.wait_until("at work", lambda: site.at_work(worker), pause=0.05)
    say(f"{worker.name} is killed")
    site.hits.append(time.time())
    worker.kill()


def freeze(site: Site, worker: Worker) -> None:
    """For longer than its lease: until another has taken its work over."""
    site.wait_until("at work", lambda: site.at_work(worker), pause=0.05)
    say(f"{worker.name} is frozen")
    site.hits.append(time.time())
    worker.freeze()
    try:
        site.wait_until("dead", lambda: site.executor(worker).state == DEAD)
    finally:
        worker.thaw()
        say(f"{worker.name} goes on")


def kill_and_restart_postgres_in_takeover(site: Site, worker: Worker) -> None:
    """The server crashes while another worker is about to mark the killed one dead: it holds or awaits the lock."""
    kill(site, worker)
    site.wait_until("lease nearly over", lambda: float(str(site.executor(worker).silent)) > LEASE_SECONDS - 2, 0.1)
    waiting = sa.text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
    with site.engine.connect() as ours, site.engine.connect() as looking:
        ours.execute(sa.select(sa.func.pg_advisory_lock(TAKEOVER_LOCK)))
        while float(str(site.executor(worker).silent)) < LEASE_SECONDS or not looking.execute(waiting).scalar_one():
            time.sleep(0.05)
        say(f"PostgreSQL crashes: {worker.name} is silent for {site.executor(worker).silent:.1f} s")
        site.hits.append(time.time())
        site.postgres.go_away()
        for connection in (ours, looking):
            connection.invalidate()
    site.engine.dispose()
    time.sleep(2)
    site.postgres.come_back()
    say("PostgreSQL is back")


def test_each_job_is_done_once_and_workers_are_busy(
    postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert JOBS_IN_ALL >= LEAST_JOBS * WORKERS, "too few jobs for so many workers"
    draw = random.Random(SEED)
    say(f"seed {SEED}: {WORKERS} workers, {JOBS_IN_ALL} jobs, {URGENT} of them urgent")
    replace_steps(tmp_path / "overlay", WAITING_STEPS, monkeypatch)
    monkeypatch.setenv("TEST_EFFECTS", str(tmp_path / "effects"))
    (tmp_path / "effects").touch()
    site = Site(tmp_path, postgres)
    try:
        began = time.monotonic()
        for number in range(JOBS_IN_ALL - URGENT):
            site.submit(number, "off-peak" if draw.random() < 0.2 else "routine")
        say(f"jobs are there, {1000 * (time.monotonic() - began) / len(site.submitted):.0f} ms each")
        site.start(WORKERS)
        urgent = [f"j{number:05d}" for number in range(JOBS_IN_ALL - URGENT, JOBS_IN_ALL)]
        killed, frozen, killed_too = draw.sample(site.workers, 3)
        plan: list[tuple[float, Callable[[], None]]] = [
            (0.1, lambda: kill(site, killed)),
            (0.15, lambda: freeze(site, frozen)),
            (0.4, lambda: kill_and_restart_postgres_in_takeover(site, killed_too)),
        ]
        for name in urgent:
            submit = lambda name=name: site.submit(int(name[1:]), "urgent")  # noqa: E731
            plan.append((draw.uniform(0.05, 0.85), submit))
        for share, happens in sorted(plan, key=lambda item: item[0]):
            site.wait_until("its turn", lambda share=share: site.done >= share * JOBS_IN_ALL)  # type: ignore[misc]
            happens()
        site.wait_until("the end", lambda: site.done >= JOBS_IN_ALL)
        ended = Counter(status for worker in site.workers for _, status in worker.ended)
        say(f"workers ended by {dict(ended)}")
        assert ended[-9] == 2
        assert ended[EXIT_FENCED] == 1
        assert_each_once(site)
        assert_urgent_jobs_go_first(site, urgent)
        assert_busy(site)
    finally:
        site.stop()
        for folder in ("shared", "site", "receiver"):
            shutil.rmtree(tmp_path / folder, ignore_errors=True)


def assert_each_once(site: Site) -> None:
    """Every effect that counts is there once; only what was in hand when something was hit was begun again."""
    reports = Counter(event.job for event in site.events if (event.step, event.what) == ("report", "ended"))
    assert set(reports) == set(site.submitted)
    again = {job for job, times in Counter(e.job for e in site.events if e.what == "begins").items() if times > 5}
    say(f"begun again: {sorted(again)}")
    first, last = (dict[str, float](), dict[str, float]())
    for event in site.events:
        first.setdefault(event.job, event.began)
        last[event.job] = event.now
    assert [job for job in again if not any(first[job] < at < last[job] for at in site.hits)] == []
    with site.engine.connect() as connection:
        states = Counter(connection.execute(sa.select(JOBS.c.state)).scalars())
        noted = list(connection.execute(sa.select(RESULTS.c.job_id)).scalars())
        counted = connection.execute(sa.select(FIGURES.c.number).where(FIGURES.c.name == REPORTS)).scalars().all()
        archives = connection.execute(sa.select(ARCHIVES.c.job_id, ARCHIVES.c.step)).all()
    assert states == {"done": JOBS_IN_ALL}
    assert sum(counted) == JOBS_IN_ALL
    assert sorted(noted) == sorted(site.submitted)
    kept = Counter((row.job_id, row.step) for row in archives)
    assert set(kept) == {(job, step) for job in site.submitted for step in (RECEIVED, *STEPS)}
    assert {job for (job, _), times in kept.items() if times > 1} <= again
    with engine_client(site.engine) as client:
        found = client.list_workflows(load_input=False, load_output=False)
    assert Counter(workflow.status for workflow in found) == {"SUCCESS": JOBS_IN_ALL}
    for job in (*again, *random.Random(SEED).sample(sorted(site.submitted), 20)):
        folder = site.files.fetch(job)
        steps = (folder.root / "steps").read_text().split()
        assert tuple(steps if job not in again else dict.fromkeys(steps)) == STEPS
    lines = [line for worker in site.workers for line in worker.lines()]
    assert [line["message"] for line in lines if line["level"] == "error"] == [
        "this process ends itself: another process has taken its work over"
    ]
    assert not [line for line in lines if "traceback" in line]


def assert_urgent_jobs_go_first(site: Site, urgent: list[str]) -> None:
    """Of others at most one for each worker begins between an urgent job's submission and its own beginning."""
    began: dict[str, float] = {}
    for event in site.events:
        if (event.step, event.what) == ("select", "begins"):
            began.setdefault(event.job, event.now)
    waits = sorted(began[job] - site.submitted[job] for job in urgent)
    others = [at for job, at in began.items() if job not in urgent]
    before = sorted(sum(site.submitted[job] < at < began[job] for at in others) for job in urgent)
    p95 = int(0.95 * (len(urgent) - 1))
    ends = {event.job: event.now for event in site.events if event.step == "encode" and event.what == "ended"}
    service = statistics.median(ends[job] - began[job] for job in began)
    say(
        f"urgent jobs waited {statistics.median(waits):.2f} s (median), {waits[p95]:.2f} s (95th percentile), "
        f"{waits[-1]:.2f} s at most, while {before[p95]} others (95th percentile) began; one job takes {service:.2f} s"
    )
    assert before[p95] <= WORKERS


def assert_busy(site: Site) -> None:
    """Waits of the model that ended in a result, over the time of workers that were alive while jobs waited."""
    events = site.events
    start = min(event.now for event in events)
    end = max(event.now for event in events if (event.step, event.what) == ("select", "begins"))
    waits: dict[str, tuple[float, float]] = {}
    for event in events:
        if (event.step, event.what) == ("report", "ended"):
            waits[event.job] = (event.began, event.now)
    spans = [span for worker in site.workers for span in worker.working()]
    busy, alive = (sum(_within(span, start, end) for span in part) for part in (waits.values(), spans))
    whole = max(event.now for event in events) - start
    rate = JOBS_IN_ALL / whole
    say(
        f"the model was at work for {busy:.0f} of {alive:.0f} s: {busy / alive:.1%} busy; {rate:.2f} jobs/s, "
        f"{whole:.0f} s in all; {1000 * (alive / busy - 1) * WAIT:.0f} ms a job beside the model"
    )
    say(f"{connections(site)} connections to PostgreSQL; a worker held two jobs {_interleaved(events)} times")
    say(f"between the steps of a job, and between jobs, ms (median): {_gaps(events)}")
    assert busy / alive >= BUSY


def connections(site: Site) -> int:
    query = sa.text("SELECT count(*) FROM pg_stat_activity WHERE datname IS NOT NULL")
    with site.engine.connect() as connection:
        return int(connection.execute(query).scalar_one())


def _interleaved(events: list[Event]) -> int:
    """How often a worker began a job before the one before had ended."""
    found, current = 0, dict[int, str]()
    for event in events:
        if (event.step, event.what) == ("select", "begins"):
            found += current.get(event.process, "") != ""
        current[event.process] = "" if (event.step, event.what) == ("encode", "ended") else event.job
    return found


def _within(span: tuple[float, float], start: float, end: float) -> float:
    return max(0.0, min(span[1], end) - max(span[0], start))


def _gaps(events: list[Event]) -> dict[str, int]:
    """From the end of one step to the beginning of the next in the same process."""
    by_process: dict[int, list[Event]] = defaultdict(list)
    for event in events:
        by_process[event.process].append(event)
    gaps = defaultdict(list)
    for mine in by_process.values():
        for one, other in pairwise(mine):
            if (one.what, other.what) == ("ended", "begins"):
                gaps[f"{one.step}-{other.step}"].append(1000 * (other.now - one.now))
    return {name: round(statistics.median(found)) for name, found in gaps.items()}
