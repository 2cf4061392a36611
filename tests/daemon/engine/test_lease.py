"""The lease and the shared files on a real PostgreSQL, without a model: who may work, and whose files count."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from ingest_support import wait_until
from postgres_support import Postgres, needs_postgres

from daemon.config.data_folder import DataFolder
from daemon.config.sections import Settings
from daemon.database.engine import create_tables, database_url, make_engine, open_index
from daemon.database.tables import ARCHIVES, ARRIVALS, EXECUTORS, JOBS, JobState
from daemon.engine.client import engine_client, enqueue_delivery, forget_workflows
from daemon.engine.identifiers import DESTINATION_QUEUE
from daemon.engine.lease import EXIT_FENCED, TAKEOVER_LOCK, Lease, SoleReceiver, take_over_from_dead
from daemon.errors import ConfigurationError
from daemon.files import make_private
from daemon.jobs.files import RECEIVED
from daemon.jobs.shared_files import SharedFiles
from daemon.jobs.store import JobStore
from daemon.service.wiring import job_files, prepare_for_enqueueing

pytestmark = [needs_postgres, pytest.mark.e2e]


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    server = Postgres()
    yield server
    server.stop()


@pytest.fixture
def engine(postgres: Postgres) -> Iterator[sa.Engine]:
    made = make_engine(database_url(postgres.url, DataFolder(Path("/unused"))))
    create_tables(made)
    yield made
    with made.begin() as connection:
        connection.execute(sa.delete(EXECUTORS))
    made.dispose()


def test_tables_are_made_by_many_at_once(postgres: Postgres) -> None:
    url = database_url(postgres.url, DataFolder(Path("/unused")))
    engines = [make_engine(url) for _ in range(5)]
    with engines[0].begin() as connection:
        connection.execute(sa.text("DROP SCHEMA public CASCADE"))
        connection.execute(sa.text("CREATE SCHEMA public"))
    failures: list[BaseException] = []

    def make(engine: sa.Engine) -> None:
        try:
            create_tables(engine)
        except sa.exc.SQLAlchemyError as error:
            failures.append(error)

    threads = [threading.Thread(target=make, args=[engine]) for engine in engines[1:]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for engine in engines:
        engine.dispose()
    assert failures == []


def test_the_engines_tables_are_made_by_many_at_once(postgres: Postgres, engine: sa.Engine) -> None:
    """Its indexes are made when every transaction that was open has ended: one that waited for its turn never did."""
    with engine.begin() as connection:
        connection.execute(sa.text("DROP SCHEMA IF EXISTS dbos CASCADE"))
    settings = Settings.model_validate({"engine": {"database_url": postgres.url}})
    engines = [make_engine(database_url(postgres.url, settings.data)) for _ in range(4)]
    made: list[sa.Engine] = []

    def make(one: sa.Engine) -> None:
        prepare_for_enqueueing(settings, one)
        made.append(one)

    threads = [threading.Thread(target=make, args=[one], daemon=True) for one in engines]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: len(made) == len(engines))
    finally:
        for one in engines:
            one.dispose()


def test_two_of_one_name_never_work_together(engine: sa.Engine) -> None:
    first = Lease(engine, "host:gpu0", 2)
    first.take()
    with pytest.raises(ConfigurationError, match="is alive"):
        Lease(engine, "host:gpu0", 2).take()
    first.give_back()
    second = Lease(engine, "host:gpu0", 2)
    second.take()
    second.check()
    second.give_back()


def test_a_silent_one_is_found_dead_and_a_beating_one_is_not(engine: sa.Engine) -> None:
    beating = Lease(engine, "host:gpu0", 2)
    beating.take()
    taken = time.time()
    with engine.begin() as connection:
        connection.execute(
            sa.insert(EXECUTORS).values(executor_id="host:gone", epoch=1, state="alive", beat=time.time() - 60, pid=1)
        )

    def has_beaten_beyond_its_lease() -> bool:
        with engine.connect() as connection:
            mine = EXECUTORS.c.executor_id == "host:gpu0"
            return connection.execute(sa.select(EXECUTORS.c.beat).where(mine)).scalar_one() > taken + 2

    wait_until(has_beaten_beyond_its_lease)
    with engine.connect() as connection:
        states = dict(connection.execute(sa.select(EXECUTORS.c.executor_id, EXECUTORS.c.state)).tuples().all())
    assert states == {"host:gpu0": "alive", "host:gone": "dead"}
    beating.give_back()


def test_a_delivery_of_a_dead_worker_goes_back_to_its_destination(engine: sa.Engine, postgres: Postgres) -> None:
    """In another queue it would not wait for its turn at the destination."""
    prepare_for_enqueueing(Settings.model_validate({"engine": {"database_url": postgres.url}}), engine)
    enqueue_delivery(engine, "j1:pacs", "j1", "pacs")
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE dbos.workflow_status SET status = 'PENDING', executor_id = 'host:gone'"))
        connection.execute(
            sa.insert(EXECUTORS).values(executor_id="host:gone", epoch=1, state="alive", beat=time.time() - 60, pid=1)
        )
    assert take_over_from_dead(engine, 2) == ["j1:pacs"]
    with engine_client(engine) as client:
        [found] = client.list_workflows(workflow_id_prefix="j1:")
    assert (found.status, found.queue_name, found.queue_partition_key) == ("ENQUEUED", DESTINATION_QUEUE, "pacs")
    forget_workflows(engine, "j1")


FROZEN = """
import os, signal, sys, time
from pathlib import Path
from daemon.config.data_folder import DataFolder
from daemon.database.engine import database_url, make_engine
from daemon.engine.lease import Lease
lease = Lease(make_engine(database_url(sys.argv[1], DataFolder(Path('/unused')))), 'host:frozen', 2)
lease.take()
print('working', flush=True)
while True:
    lease.check()
    time.sleep(0.01)
"""


def test_one_that_was_frozen_ends_itself_when_it_thaws(engine: sa.Engine, postgres: Postgres) -> None:
    child = subprocess.Popen([sys.executable, "-c", FROZEN, postgres.url], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "working\n"
    child.send_signal(19)  # SIGSTOP
    time.sleep(2.5)
    take_over_from_dead(engine, 2)
    child.send_signal(18)  # SIGCONT
    assert child.wait(30) == EXIT_FENCED
    child.stdout.close()
    with engine.connect() as connection:
        state = connection.execute(sa.select(EXECUTORS.c.state)).scalar_one()
    assert state == "dead"


AT_A_COMMIT = """
import sys
from daemon.config.sections import Settings
from daemon.database.engine import open_database
from daemon.engine.lease import Lease
settings = Settings.model_validate(
    {'engine': {'database_url': sys.argv[1], 'lease_seconds': 2}, 'storage': {'folder': sys.argv[2]}}
)
engine = open_database(settings, connections=4)
lease = Lease(engine, 'host:frozen', 2)
lease.take()
with engine.begin() as connection:
    lease.check_in(connection)
    print('about to commit', flush=True)
    sys.stdin.readline()
"""


def test_one_that_was_frozen_at_a_commit_keeps_nobody_from_living(
    engine: sa.Engine, postgres: Postgres, tmp_path: Path
) -> None:
    """It holds its row, and whoever waited for that could not renew a lease either: the whole site stood still."""
    command = [sys.executable, "-c", AT_A_COMMIT, postgres.url, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        lease = Lease(engine, "host:gpu0", 20)
        try:
            assert child.stdout.readline() == "about to commit\n"
            child.send_signal(signal.SIGSTOP)
            lease.take()
            wait_until(lambda: take_over_from_dead(engine, 2, but="host:gpu0") == [] and is_dead(engine, "host:frozen"))
            lease.check()
        finally:
            lease.give_back()
            child.kill()


def test_a_heartbeat_does_not_wait_for_one_that_takes_over(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(TAKEOVER_LOCK)))
        connection.execute(
            sa.insert(EXECUTORS).values(executor_id="host:gone", epoch=1, state="alive", beat=time.time() - 60, pid=1)
        )
        assert take_over_from_dead(engine, 2) == []
    take_over_from_dead(engine, 2)
    assert is_dead(engine, "host:gone")


def is_dead(engine: sa.Engine, executor_id: str) -> bool:
    return states(engine)[executor_id] == "dead"


WORKING = FROZEN.replace("time.sleep(0.01)", "print('may work', flush=True)\n    sys.stdin.readline()")


def test_a_database_that_is_away_for_longer_than_a_lease_ends_nobody(engine: sa.Engine, postgres: Postgres) -> None:
    command = [sys.executable, "-c", WORKING, postgres.url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            assert [child.stdout.readline() for _ in range(2)] == ["working\n", "may work\n"]
            postgres.go_away()
            time.sleep(2.5)
            child.stdin.write("\n")
            postgres.come_back()
            assert child.stdout.readline() == "may work\n"
            assert child.poll() is None
        finally:
            child.kill()
    assert states(engine) == {"host:frozen": "alive"}


def test_after_the_database_was_away_the_silence_of_others_says_nothing(engine: sa.Engine, postgres: Postgres) -> None:
    lease = Lease(engine, "host:gpu0", 3600)
    assert lease._try_to_take()
    silent = sa.insert(EXECUTORS).values(executor_id="host:silent", epoch=1, state="alive", beat=0, pid=1)
    with engine.begin() as connection:
        connection.execute(silent)
    postgres.go_away()
    lease._beat()
    postgres.come_back()
    lease._beat()
    assert states(engine)["host:silent"] == "alive"
    lease._judges_from = 0.0
    lease._beat()
    assert states(engine)["host:silent"] == "dead"


def test_nobody_takes_itself_for_dead(engine: sa.Engine) -> None:
    """Between its sign of life and its look at the others a lease may pass, on a machine that is slow."""
    lease = Lease(engine, "host:gpu0", 0)
    assert lease._try_to_take()
    lease._beat()
    assert states(engine) == {"host:gpu0": "alive"}


def test_a_lease_that_cannot_be_given_back_is_no_error(engine: sa.Engine, postgres: Postgres) -> None:
    lease = Lease(engine, "host:gpu0", 3600)
    assert lease._try_to_take()
    postgres.go_away()
    lease.give_back()
    postgres.come_back()
    assert states(engine)["host:gpu0"] == "alive"


def states(engine: sa.Engine) -> dict[str, str]:
    with engine.connect() as connection:
        return dict(connection.execute(sa.select(EXECUTORS.c.executor_id, EXECUTORS.c.state)).tuples().all())


def test_a_database_has_one_receiver_that_shares_nothing_and_the_next_one_waits_until_it_is_gone(
    engine: sa.Engine, postgres: Postgres
) -> None:
    other = make_engine(database_url(postgres.url, DataFolder(Path("/unused"))))
    first, second = SoleReceiver(engine), SoleReceiver(other)
    first.hold()
    first.hold()
    with pytest.raises(ConfigurationError, match="several need storage"):
        second.hold(patience=0.2)
    with engine.begin() as connection:  # as when the server is started again: the connection breaks, the lock goes
        others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
        connection.execute(sa.text(f"{others} AND query LIKE '%pg_try_advisory_lock%'"))
    first.hold(patience=0)
    with pytest.raises(ConfigurationError):
        second.hold(patience=0)
    threading.Timer(1, first.let_go).start()
    second.hold(patience=20)
    second.let_go()
    sharing = SoleReceiver(engine, shared=True), SoleReceiver(other, shared=True)
    for one in sharing:
        one.hold(patience=0.2)
    with pytest.raises(ConfigurationError, match="several need storage"):
        first.hold(patience=0.2)
    for one in (*sharing, first):
        one.let_go()
    other.dispose()


def test_a_worker_drops_copies_of_what_ended_and_a_receiver_what_was_purged(engine: sa.Engine, tmp_path: Path) -> None:
    day_ago = time.time() - 2 * 86400
    store = JobStore(engine)
    for job_id, state in (("ended", JobState.DONE), ("fresh", JobState.DONE), ("at-work", JobState.RUNNING)):
        store.add(job_id, study_uid="1.2", supersedes=None)
        store.update(job_id, state=state)
    with engine.begin() as connection:
        connection.execute(sa.update(JOBS).where(JOBS.c.job_id != "fresh").values(updated=day_ago))
    names = {"ended", "fresh", "at-work", "purged", "arriving", ".draft-1"}
    for host, scratch in (("worker", True), ("receiver", False)):
        files = SharedFiles(engine, tmp_path / host, f"file://{tmp_path}/shared", scratch=scratch)
        for name in names:
            (files.jobs / name / "input").mkdir(parents=True)
            if name != "arriving":
                os.utime(files.jobs / name, (day_ago, day_ago))
        removed = {"ended", "purged"} if scratch else {"purged"}
        assert set(files.sweep()) == removed
        assert {folder.name for folder in files.jobs.iterdir()} == names - removed
    with engine.begin() as connection:
        connection.execute(sa.delete(JOBS))


def test_what_waits_to_be_handed_over_is_kept_however_old_it_is(engine: sa.Engine, tmp_path: Path) -> None:
    """It stands in this host's index, not in the database that the hosts share, and is all there is of the study."""
    url = f"file://{tmp_path}/shared"
    settings = Settings.model_validate(
        {"engine": {"database_url": "postgresql://one/for_all"}, "storage": {"folder": tmp_path, "shared_url": url}}
    )
    files = job_files(settings, engine, tmp_path / "jobs", None)
    for name in ("waiting", "unknown"):
        (tmp_path / "jobs" / name).mkdir()
        os.utime(tmp_path / "jobs" / name, (1.0, 1.0))
    index = open_index(settings, engine)
    with index.begin() as connection:
        row = {"job_id": "waiting", "study_uid": "1.2", "created": 1.0, "submitted": False}
        connection.execute(sa.insert(ARRIVALS).values(row))
    assert files.sweep() == ["unknown"]
    index.dispose()


def test_files_travel_by_the_shared_storage_and_only_what_counts(engine: sa.Engine, tmp_path: Path) -> None:
    class Stale(Exception):
        pass

    def stale(_connection: sa.Connection) -> None:
        raise Stale

    url = f"file://{tmp_path / 'shared'}"
    receiver = SharedFiles(engine, tmp_path / "receiver", url)
    (tmp_path / "receiver" / "j1" / "input").mkdir(parents=True)
    (tmp_path / "receiver" / "j1" / "input" / "000001.dcm").write_bytes(b"instance")
    receiver.keep("j1", RECEIVED)
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one, two = SharedFiles(engine, tmp_path / "one", url), SharedFiles(engine, tmp_path / "two", url, stale)
    folder = one.fetch("j1").root
    assert (folder / "input" / "000001.dcm").read_bytes() == b"instance"
    (folder / "report.json").write_text('{"from": "one"}')
    (folder / ".explain.part").write_text("half done")
    one.keep("j1", "report")
    left_over = two.fetch("j1").root
    assert (left_over / "report.json").read_text() == '{"from": "one"}'
    assert not (left_over / ".explain.part").exists()
    (left_over / "report.json").write_text('{"from": "two, which was frozen"}')
    with pytest.raises(Stale):
        two.keep("j1", "report")
    assert (receiver.fetch("j1").root / "report.json").read_text() == '{"from": "one"}'
    os.utime(folder / "report.json")
    (folder / "dicom").mkdir()
    (folder / "dicom" / "sr.dcm").write_bytes(b"sr")
    one.keep("j1", "encode")
    assert (receiver.fetch("j1").dicom / "sr.dcm").read_bytes() == b"sr"
    (folder / "report.json").unlink()
    one.keep("j1", "encode")
    for host in (receiver, SharedFiles(engine, make_private(tmp_path / "three"), url)):
        assert sorted(p.name for p in host.fetch("j1").root.rglob("[!.]*") if p.is_file()) == ["000001.dcm", "sr.dcm"]
    receiver.forget("j1")
    with engine.connect() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(ARCHIVES)).scalar_one() == 0
    assert list((tmp_path / "shared").iterdir()) == []


def test_what_counts_is_on_disk_before_it_counts(
    engine: sa.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row says for ever that the archive is there; a worker's own notes last for its own life only."""
    synced: list[str] = []

    def note(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))

    monkeypatch.setattr(os, "fsync", note)
    files = SharedFiles(
        engine, tmp_path / "worker", f"file://{tmp_path}/shared", lambda _: synced.append("counts"), True
    )
    (files.jobs / "j1").mkdir(parents=True)
    (files.jobs / "j1" / "report.json").write_text("{}")
    files.keep("j1", "report")
    [archive] = (tmp_path / "shared" / "j1").iterdir()
    assert synced == [str(archive), str(archive.parent), "counts"]
    files.forget("j1")
