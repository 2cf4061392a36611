"""What happens to studies while the database is away, the disk is full, or the process that works on them dies."""

from __future__ import annotations

import errno
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from dbos import DBOS
from ingest_support import wait_until
from postgres_support import Postgres, needs_postgres
from steps_support import QUICK_STEPS, replace_steps

from daemon.config.sections import Settings
from daemon.database import engine as database
from daemon.database import patience
from daemon.database.tables import FINAL_STATES, JobState
from daemon.engine.client import engine_client, enqueue_delivery
from daemon.engine.identifiers import EXECUTOR_ID
from daemon.engine.recovery import MOST_DEATHS, count_deaths
from daemon.errors import DiskFull
from daemon.jobs.files import LocalFiles
from daemon.jobs.steps import STEPS
from daemon.jobs.store import JobStore, SeriesVerdict
from daemon.pipeline import workflow
from daemon.pipeline.actions import cancel, retry
from daemon.pipeline.step_process import StepProcess
from daemon.service.wiring import launch_engine

pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.timeout(1800),
]

SEED = 20_260_101


class Running:
    """The real engine and the real model process with quick steps."""

    def __init__(self, folder: Path, url: str = "") -> None:
        self.settings = Settings.model_validate(
            {"storage": {"folder": folder, "min_free_gb": 0}, "engine": {"database_url": url}}
        )
        self.engine = database.open_database(self.settings)
        self.store = JobStore(self.engine)
        self.steps = StepProcess(self.settings)
        files = LocalFiles(self.settings.data.jobs)
        launch_engine(self.engine, workflow.Context(self.settings, self.store, self.steps, files), EXECUTOR_ID)

    def add(self, *names: str) -> None:
        for name in names:
            self.settings.data.job(name).mkdir(parents=True)
            self.store.add(name, study_uid=f"1.2.{len(name)}", supersedes=None)
            workflow.submit(name)

    def wait(self, count: int, seconds: float = 240) -> dict[str, tuple[str, str]]:
        """State and reason of the jobs, once all have ended; `seconds` is how long none of them may end."""
        ended, deadline = 0, time.monotonic() + seconds
        while True:
            try:
                jobs = self.store.recent()
            except sa.exc.DBAPIError:  # away just now
                jobs = []
            if len(jobs) == count and all(job.state in FINAL_STATES for job in jobs):
                return {job.job_id: (str(job.state), job.reason) for job in jobs}
            now_ended = sum(job.state in FINAL_STATES for job in jobs)
            if now_ended > ended:
                ended, deadline = now_ended, time.monotonic() + seconds
            assert time.monotonic() < deadline, jobs
            time.sleep(0.05)

    def stop(self) -> None:
        DBOS.destroy()
        self.steps.stop()
        self.engine.dispose()


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Running]]:
    replace_steps(tmp_path / "overlay", QUICK_STEPS, monkeypatch)
    monkeypatch.setattr(patience, "DATABASE_PAUSE", 0.1)
    started: list[Running] = []

    def begin(url: str = "") -> Running:
        started.append(Running(tmp_path / "data", url))
        return started[-1]

    yield begin
    for running in started:
        running.stop()


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    server = Postgres()
    yield server
    server.stop()


def assert_each_has_its_own_end(running: Running, ends: dict[str, tuple[str, str]]) -> None:
    for name, end in ends.items():
        steps = (running.settings.data.job(name) / "steps").read_text().split()
        if name.startswith("bad"):
            assert end == ("set_aside", f"no brain in {name}")
            assert set(steps) == {"select"}
        else:
            assert end == ("done", "")
            assert tuple(dict.fromkeys(steps)) == STEPS


def some_bad(studies: int) -> list[str]:
    return [f"bad{n}" if n % 5 == 2 else f"good{n}" for n in range(studies)]


STUDIES = [10, pytest.param(50, marks=pytest.mark.slow)]


@pytest.mark.parametrize("studies", STUDIES)
def test_a_locked_database_mixes_up_no_answers(
    start: Callable[..., Running], monkeypatch: pytest.MonkeyPatch, studies: int
) -> None:
    """Another program holds SQLite's write lock for longer than a writer waits, again and again."""
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.1)
    running = start()
    running.add(*some_bad(studies))
    stop, draw = threading.Event(), random.Random(SEED)

    def lock_now_and_then() -> None:
        connection = sqlite3.connect(running.settings.data.database, timeout=30, isolation_level=None)
        while not stop.wait(draw.uniform(0, 1.0)):
            connection.execute("BEGIN IMMEDIATE")
            stop.wait(draw.uniform(0.1, 0.8))
            connection.execute("COMMIT")
        connection.close()

    locking = threading.Thread(target=lock_now_and_then)
    locking.start()
    try:
        ends = running.wait(studies)
    finally:
        stop.set()
        locking.join()
    assert_each_has_its_own_end(running, ends)


@needs_postgres
@pytest.mark.e2e
@pytest.mark.parametrize("studies", STUDIES)
def test_a_postgresql_that_goes_away_mixes_up_no_answers(
    postgres: Postgres, start: Callable[..., Running], studies: int
) -> None:
    running = start(postgres.url)
    running.add(*some_bad(studies))
    draw = random.Random(SEED)
    for _ in range(3):
        time.sleep(draw.uniform(0.2, 1.5))
        postgres.go_away()
        time.sleep(draw.uniform(0.5, 2.0))
        postgres.come_back()
    assert_each_has_its_own_end(running, running.wait(studies))


def test_work_waits_for_a_connection_where_all_wait_for_a_slow_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker has few of them: a study must not fail by that."""
    monkeypatch.setattr(patience, "DATABASE_PAUSE", 0.01)
    pool = {"poolclass": sa.QueuePool, "pool_size": 1, "max_overflow": 0, "pool_timeout": 0.01}
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'x.sqlite'}", **pool)
    held, attempts = [engine.connect()], []

    def work() -> int:
        attempts.append(1)
        if len(attempts) == 3:
            held.pop().close()
        with engine.connect() as connection:
            return int(connection.execute(sa.text("SELECT 7")).scalar_one())

    assert patience.patient(work)() == 7
    assert len(attempts) == 3
    engine.dispose()


@needs_postgres
@pytest.mark.e2e
def test_text_that_no_database_holds_is_kept_all_the_same(postgres: Postgres) -> None:
    """A NUL in Body Part Examined came into a reason, which PostgreSQL refuses, and the job was at work for ever."""
    store = JobStore(database.make_engine(postgres.url.replace("postgresql:", "postgresql+psycopg:")))
    database.create_tables(store.engine)
    strange = "Body Part Examined 'BRA\0IN\udcff'"
    store.add("good1", study_uid="1.2", supersedes=None)
    store.put_verdicts("good1", [SeriesVerdict("good1", "1.2\0", "refused", (strange,))])
    store.update("good1", reason=strange, progress="x" * 100_000)
    job = store.get("good1")
    assert job is not None
    assert job.reason == "Body Part Examined 'BRA\ufffdIN?'"
    assert store.get("x\0y") is None, "a comparison is no error either"
    store.engine.dispose()


def test_a_paused_queue_begins_no_study_until_it_goes_on(start: Callable[..., Running]) -> None:
    running = start()
    running.store.pause("reader")
    running.add("good1", "good2")
    wait_until(lambda: any("paused by reader" in job.progress for job in running.store.recent()), seconds=120)
    assert {job.state for job in running.store.recent()} == {JobState.QUEUED}
    assert not list(running.settings.data.jobs.glob("*/steps"))
    [waiting] = [job.job_id for job in running.store.recent() if job.progress]
    cancel(running.store, waiting)
    wait_until(lambda: sum("paused by reader" in job.progress for job in running.store.recent()) == 1, seconds=120)
    running.store.resume()
    assert sorted(state for state, _ in running.wait(2).values()) == ["cancelled", "done"]


def test_an_error_that_nobody_foresaw_ends_its_own_job_only(
    start: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_down(_store: object, _files: object, job_id: str, **_: object) -> list[str]:
        if job_id == "odd":
            raise MemoryError("a header of 2 GB")
        return []

    monkeypatch.setattr(workflow, "follow_choice", break_down)
    running = start()
    running.add("odd", "good1")
    ends = running.wait(2)
    assert ends["good1"] == ("done", "")
    assert ends["odd"][0] == "failed"
    assert "unexpected MemoryError: a header of 2 GB" in ends["odd"][1]


def test_a_cancel_after_the_last_step_asked_sends_nothing(
    start: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    def plan(store: JobStore, job_id: str, *_: object) -> list[str]:
        store.put_deliveries(job_id, "pacs", [("1.2.3", "sr", "sr.dcm")])
        cancel(store, job_id)
        return ["pacs"]

    monkeypatch.setattr(workflow, "plan_deliveries", plan)
    running = start()
    running.add("good1")
    wait_until(lambda: DBOS.retrieve_workflow("good1").get_status().status == "SUCCESS", seconds=120)
    assert DBOS.retrieve_workflow("good1").get_result() == "cancelled"
    assert running.wait(1) == {"good1": ("cancelled", "cancelled by request")}
    with engine_client(running.engine) as client:
        assert [w.workflow_id for w in client.list_workflows()] == ["good1"]


def test_a_destination_to_which_another_worker_sends_waits_for_it(start: Callable[..., Running]) -> None:
    """A reader verifies while the draft is being sent: two workers would send the same that waits."""
    running = start()
    engine = running.engine
    enqueue_delivery(engine, "j1:pacs", "j1", "pacs")
    wait_until(lambda: DBOS.retrieve_workflow("j1:pacs").get_status().status == "SUCCESS", seconds=120)
    with engine.begin() as connection:  # as one that another worker has taken
        connection.execute(sa.text("UPDATE workflow_status SET status = 'PENDING', executor_id = 'another'"))
    enqueue_delivery(engine, "j1-v1:pacs", "j1", "pacs")
    for name in ("j1:archive", "j2:archive"):  # the queue is asked at least twice
        enqueue_delivery(engine, name, "j1", "archive")
        wait_until(lambda name=name: DBOS.retrieve_workflow(name).get_status().status == "SUCCESS", seconds=120)
    assert DBOS.retrieve_workflow("j1-v1:pacs").get_status().status == "ENQUEUED"
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE workflow_status SET status = 'SUCCESS' WHERE executor_id = 'another'"))
    wait_until(lambda: DBOS.retrieve_workflow("j1-v1:pacs").get_status().status == "SUCCESS", seconds=120)


@pytest.mark.parametrize("step", ["explain", "encode"])
def test_a_full_disk_is_waited_for(start: Callable[..., Running], monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    free = [1000]
    monkeypatch.setattr(workflow, "free_bytes", lambda _folder: free[0])
    monkeypatch.setattr(workflow, "ROOM_PAUSE", 0.05)
    running = start()
    run = running.steps.run

    def on_a_full_disk(name: str, *arguments: object, **more: object) -> None:
        if name == step and free[0] == 1000:
            raise DiskFull("no room on the disk")
        run(name, *arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(running.steps, "run", on_a_full_disk)
    running.add("good1")
    while (job := running.store.get("good1")) is None or "waits for room" not in job.progress:
        time.sleep(0.02)  # the test's timeout ends it
    assert job.state is JobState.RUNNING
    free[0] = 1 << 30
    assert running.wait(1) == {"good1": ("done", "")}


def test_the_model_process_says_that_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However deep the error of the system lies below that of a library."""
    replace_steps(
        tmp_path / "overlay",
        "from daemon.errors import Permanent\n"
        "class Steps:\n"
        "    def __init__(self, settings, progress): pass\n"
        "    def run(self, step, folder):\n"
        "        try:\n"
        f"            raise OSError({errno.ENOSPC}, 'No space left on device')\n"
        "        except OSError as error:\n"
        "            if step == 'plain':\n"
        "                raise\n"
        "            raise (Permanent if step == 'ours' else ValueError)('cannot be written') from error\n",
        monkeypatch,
    )
    steps = StepProcess(Settings())
    for step in ("plain", "ours", "a library's"):
        with pytest.raises(DiskFull):
            steps.run(step, tmp_path)
    steps.stop()


def test_a_job_in_whose_step_the_service_died_twice_is_set_aside(
    start: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    running, over = start(), threading.Event()
    store, engine = running.store, running.engine
    monkeypatch.setattr(running.steps, "run", lambda *_, **__: over.wait(600))  # a service that is about to die
    running.add("killer")
    while (job := store.get("killer")) is None or job.state is not JobState.RUNNING:  # the test's timeout ends it
        time.sleep(0.02)
    assert count_deaths(engine, EXECUTOR_ID) == []
    store.add_timing("killer", "select", 1.0)  # it came further: another step, another count
    for _ in range(MOST_DEATHS - 1):
        assert count_deaths(engine, EXECUTOR_ID) == []
    assert count_deaths(engine, "main of another host") == []
    assert count_deaths(engine, EXECUTOR_ID) == ["killer"]
    job = store.get("killer")
    assert job is not None
    assert job.state is JobState.SET_ASIDE
    assert job.deaths == MOST_DEATHS, "kept until a person decides"
    assert f"ended {MOST_DEATHS} times without a word in step select" in job.reason
    with engine_client(engine) as client:
        assert [w.status for w in client.list_workflows(workflow_id_prefix="killer")] == ["CANCELLED"]
    retry(store, engine, "killer")
    job = store.get("killer")
    assert job is not None
    assert (job.state, job.deaths) == (JobState.QUEUED, 0)
    over.set()
