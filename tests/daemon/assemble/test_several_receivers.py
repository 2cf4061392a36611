"""Two receivers on one PostgreSQL, each with a disk of its own: each study has one of them, and survives the other."""

from __future__ import annotations

import copy
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from ingest_support import encode, make_series, meta_of
from postgres_support import Postgres, needs_postgres
from pydicom import Dataset

from daemon.assemble.arrival import Arrival
from daemon.assemble.assembler import Assembler
from daemon.assemble.identities import forget_identity, shared_identity
from daemon.assemble.receivers import Receivers, forget_owner, name_of
from daemon.config.sections import Settings
from daemon.database.engine import create_tables, database_url, make_engine
from daemon.database.tables import INSTANCES, RECEIVERS, InstanceState
from daemon.errors import Permanent
from daemon.jobs.files import RECEIVED
from daemon.jobs.shared_files import SharedFiles
from daemon.jobs.store import JobStore
from daemon.spool.writer import NotDurable, SpoolWriter

pytestmark = [pytest.mark.e2e, needs_postgres]

QUIET = 10.0
LEASE = 1000.0


class Host:
    """One receiver with its assembler, driven by the test's own clock."""

    def __init__(self, folder: Path, url: str, shared: Path, *, replicate: str) -> None:
        self.settings = Settings.model_validate(
            {
                "storage": {"folder": folder, "min_free_gb": 0, "shared_url": f"file://{shared}"},
                "engine": {"database_url": url}, "assembly": {"quiet_seconds": QUIET},
                "listener": {"replicate": replicate},
            }
        )  # fmt: skip
        data = self.settings.data
        folder.mkdir()
        data.spool.mkdir()
        data.jobs.mkdir()
        self.engine = make_engine(database_url(url, data))
        create_tables(self.engine)
        self.index = make_engine(f"sqlite:///{data.received_index}")
        create_tables(self.index)
        self.store = JobStore(self.engine)
        self.files = SharedFiles(self.engine, data.jobs, f"file://{shared}", index=self.index)
        self.receivers = Receivers(
            self.engine, self.index, name_of(data), shared, data.spool, data.jobs, LEASE, replicate == "shared",
            self.files.fetch,
        )  # fmt: skip
        self.receivers.join()
        self.receivers._beating_since = -2 * LEASE
        self.arrivals: list[Arrival] = []
        self.assembler = Assembler(self.settings, self.index, self.submit, receivers=self.receivers, shared=self.engine)
        self.writer = SpoolWriter(data.spool, replica=self.receivers.replicas if replicate == "shared" else None)
        self.assembler.recover(0)

    def submit(self, arrival: Arrival) -> None:
        self.files.keep(arrival.job_id, RECEIVED)
        self.store.add(arrival.job_id, study_uid=arrival.study_uid, supersedes=arrival.supersedes)
        self.arrivals.append(arrival)

    def receive(
        self, series: list[Dataset], *, association: str = "a1", end: bool = True, received: float = 1000.0
    ) -> None:
        for dataset in series:
            self.writer.append(meta_of(dataset, association=association, received=received), [encode(dataset)])
        if end:
            self.writer.end_association(association)

    def states(self) -> list[str]:
        with self.index.connect() as connection:
            return sorted(connection.execute(sa.select(INSTANCES.c.state)).scalars())

    def fall_silent(self) -> None:
        """As its host does when it is gone, longer ago than a lease."""
        with self.engine.begin() as connection:
            mine = RECEIVERS.c.receiver == self.receivers.name
            connection.execute(sa.update(RECEIVERS).where(mine).values(beat=RECEIVERS.c.beat - 2 * LEASE))

    def stop(self) -> None:
        self.writer.close()
        self.engine.dispose()
        self.index.dispose()


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    server = Postgres()
    yield server
    server.stop()


@pytest.fixture
def host(server: Postgres, tmp_path: Path) -> Iterator[Callable[..., Host]]:
    started: list[Host] = []

    def start(name: str, replicate: str = "none") -> Host:
        started.append(Host(tmp_path / name, server.url, tmp_path / "shared", replicate=replicate))
        return started[-1]

    yield start
    with started[0].engine.begin() as connection:
        for table in ("receivers", "study_owners", "study_identities", "receiving", "jobs", "archives"):
            connection.execute(sa.text(f"DELETE FROM {table}"))
    for one in started:
        one.stop()


@pytest.mark.parametrize("replicate", ["none", "shared"])
def test_a_study_split_over_both_becomes_one_job(host: Callable[..., Host], replicate: str) -> None:
    first, second = host("first", replicate), host("second", replicate)
    series = make_series(10)
    first.receive(series[:4])
    first.assembler.look(0)
    second.receive(series[4:9])
    second.receive(series[9:], association="a2", end=False)
    second.assembler.look(1)
    assert second.states() == [InstanceState.PASSED_ON.value] * 6
    assert first.assembler.step(2) == ()
    assert second.assembler.step(20) == ()
    assert first.assembler.step(20) == (), "an association is open elsewhere"
    second.writer.end_association("a2")
    second.assembler.look(21)
    [arrival] = first.assembler.step(22)
    assert arrival.instances == 10
    second.receive(series[:2])
    second.receive(make_series(1, study=series[0].StudyInstanceUID))
    assert second.assembler.step(50) == ()
    first.assembler.look(51)
    [late] = first.assembler.step(70)
    assert (late.instances, late.supersedes) == (11, arrival.job_id)
    assert second.arrivals == []
    for one in (first, second):
        one.writer.close()
        one.assembler.look(80)
        one.assembler.reclaim()
        assert list(one.settings.data.spool.glob("*.seg")) == []
        assert list(one.receivers.replicas.glob("*")) == []


def test_the_disk_of_one_is_lost_and_the_other_goes_on(host: Callable[..., Host]) -> None:
    """Of what it had: a study that was whole, one that was begun, one that was handed over and got late slices."""
    first, second = host("first", "shared"), host("second", "shared")
    done, whole, begun = make_series(4), make_series(5), make_series(6)
    first.receive(done)
    first.assembler.look(0)
    [arrival] = first.assembler.step(QUIET)
    first.receive([*whole, *begun[:3]])
    late = make_series(2, study=done[0].StudyInstanceUID)
    first.receive(late)
    first.assembler.look(11)
    second.receive(begun[3:])
    second.assembler.look(11)
    shutil.rmtree(first.settings.data.root)
    first.fall_silent()
    second.receivers._beating_since = None
    second.receivers.look()
    second.receivers.beat()
    second.receivers.look()
    assert len(list(first.receivers.replicas.glob("*.seg"))) == 2, "the database may have been away for both"
    second.receivers._beating_since = -2 * LEASE
    second.receivers._next_look = 0.0
    second.assembler.look(12)
    arrivals = second.assembler.step(30)
    counts = {a.study_uid: (a.instances, a.supersedes) for a in arrivals}
    assert counts == {
        whole[0].StudyInstanceUID: (5, None),
        begun[0].StudyInstanceUID: (6, None),
        done[0].StudyInstanceUID: (6, arrival.job_id),
    }
    assert second.assembler.step(60) == ()


def test_one_that_was_frozen_acknowledges_nothing_into_what_was_taken_from_it(host: Callable[..., Host]) -> None:
    first, second, third = (host(name, "shared") for name in ("first", "second", "third"))
    series = make_series(6)
    first.receive(series[:2], end=False)
    first.fall_silent()
    for one in (second, third):
        one.receivers._next_look = 0.0
        one.assembler.look(0)
    assert sorted(len(one.states()) for one in (second, third)) == [0, 2], "exactly one took it"
    with pytest.raises(NotDurable):
        first.receive(series[2:3], end=False)
    first.receive(series[2:])
    first.receivers.beat()
    first.assembler.look(1)
    assert first.states() == [InstanceState.PASSED_ON.value] * 6
    for one in (second, third):
        one.assembler.look(2)
    arrivals = [a for one in (first, second, third) for a in one.assembler.step(20)]
    assert [a.instances for a in arrivals] == [6]


def test_a_copied_data_folder_is_no_second_receiver(host: Callable[..., Host]) -> None:
    first = host("first")
    first.receivers.look()
    twin = Receivers(**{name: getattr(first.receivers, name) for name in (
        "engine", "index", "name", "shared", "spool", "jobs", "seconds", "replicates", "fetch")})  # fmt: skip
    twin.join()
    first.receivers.beat()
    with pytest.raises(Permanent, match="in a copy of this data folder"):
        first.receivers.look()


def test_what_was_removed_by_one_is_new_to_both(host: Callable[..., Host]) -> None:
    first, second = host("first"), host("second")
    series = make_series(4)
    first.receive(series[:2])
    first.assembler.look(0)
    second.receive(series[2:])
    second.assembler.look(0)
    first.assembler.look(0)
    [arrival] = first.assembler.step(QUIET)
    for one in (first, second):
        one.receivers.forget_gone()
    assert first.states() == [InstanceState.HANDED_OVER.value] * 4
    second.store.remove(arrival.job_id)  # by whichever of them finds its time over
    forget_owner(second.engine, arrival.study_uid)
    for one in (first, second):
        one.receivers.forget_gone()
        assert one.states() == []
    second.receive(series)
    second.assembler.look(20)
    [again] = second.assembler.step(40)
    assert again.instances == 4


def test_a_correction_of_the_patient_is_told_to_hosts_that_received_nothing(host: Callable[..., Host]) -> None:
    """One that came to the host that does not assemble the study, and again after a kill before it was told."""
    first, second = host("first"), host("second")
    series = make_series(3)
    first.receive(series)
    first.assembler.look(0)
    [arrival] = first.assembler.step(QUIET)
    handed_over = time.time()
    assert shared_identity(second.engine, arrival.study_uid, 0.0) is None
    for number, name in enumerate(("NEW-1", "NEW-2")):
        corrected = copy.deepcopy(series[1])
        corrected.PatientID = name
        second.receive([corrected], received=handed_over + 1 + number)
        second.assembler.look(20)
        first.assembler.look(20)
    for killed in (False, True):
        if killed:
            forget_identity(second.engine, arrival.study_uid)
            first.assembler.recover(30)
        told = shared_identity(second.engine, arrival.study_uid, handed_over)
        assert told is not None
        assert (told.values["PatientID"], told.received) == ("NEW-2", handed_over + 2)
    assert shared_identity(second.engine, arrival.study_uid, handed_over + 2) is None, "a later job's images say it"
