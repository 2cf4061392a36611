import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from dbos import DBOS

from daemon.config.sections import Settings
from daemon.database.engine import open_database
from daemon.database.tables import JOBS, RESULTS, DeliveryState, JobState
from daemon.errors import DaemonError
from daemon.jobs.files import LocalFiles
from daemon.jobs.store import JobStore, now
from daemon.pipeline import actions
from daemon.service.retention import forget_conflicts, keep_house, purge

DAY = 86400.0


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.model_validate({"storage": {"folder": tmp_path, "keep_days": 2, "keep_days_set_aside": 1}})


@pytest.fixture
def store(settings: Settings) -> Iterator[JobStore]:
    engine = open_database(settings)
    yield JobStore(engine)
    engine.dispose()


def add(store: JobStore, folder: Path, job_id: str, state: JobState, *, days_old: float, sent: bool = True) -> None:
    (folder / "jobs" / job_id).mkdir(parents=True)
    (folder / "jobs" / job_id / "x").write_bytes(b"12345")
    store.add(job_id, study_uid=f"1.{job_id}", supersedes=None)
    store.put_deliveries(job_id, "pacs", [(f"2.{job_id}", "sr", "sr.dcm")])
    if sent:
        store.note_delivery(job_id, "pacs", f"2.{job_id}", state=DeliveryState.SENT, status="0000", reason="")
    values = {"state": str(state), "updated": now() - days_old * DAY, "created": now() - days_old * DAY}
    with store.engine.begin() as connection:
        connection.execute(sa.update(JOBS).where(JOBS.c.job_id == job_id).values(**values))


def test_a_copy_of_the_data_folder_is_on_its_own(store: JobStore, settings: Settings, tmp_path: Path) -> None:
    """Places in it were once noted by their full path: a purge in the copy removed the jobs of the original."""
    add(store, settings.storage.folder, "old", JobState.DONE, days_old=3)
    store.engine.dispose()
    copy = shutil.copytree(tmp_path, tmp_path.with_name(f"{tmp_path.name}-copy"))
    elsewhere = Settings.model_validate({"storage": {**settings.storage.model_dump(), "folder": copy}})
    engine = open_database(elsewhere)
    assert [p.job_id for p in purge(JobStore(engine), elsewhere, dry_run=False)] == ["old"]
    engine.dispose()
    assert not elsewhere.data.job("old").exists()
    assert (settings.data.job("old") / "x").read_bytes() == b"12345"


def test_each_state_has_its_time_and_what_was_not_delivered_stays(store: JobStore, settings: Settings) -> None:
    folder = settings.storage.folder
    for job_id, state, days, sent in (
        ("done-old", JobState.DONE, 3, True),
        ("done-young", JobState.DONE, 1, True),
        ("done-undelivered", JobState.DONE, 300, False),
        ("aside-old", JobState.SET_ASIDE, 1.5, True),
        ("cancelled", JobState.CANCELLED, 1.5, False),
        ("failed", JobState.FAILED, 300, True),
        ("delivering", JobState.DELIVERING, 300, False),
        ("running", JobState.RUNNING, 300, True),
    ):
        add(store, folder, job_id, state, days_old=days, sent=sent)
    row = {
        "study_uid": "1", "patient": "", "name": "", "birth": "", "study_date": "", "study_time": "", "model_name": "",
        "model_version": "", "weights_sha256": "", "created": now(),
    }  # fmt: skip
    with store.engine.begin() as connection:
        connection.execute(sa.insert(RESULTS), [row | {"job_id": job_id} for job_id in ("done-old", "cancelled")])
    would = purge(store, settings, dry_run=True)
    assert {p.job_id for p in would} == {"done-old", "aside-old", "cancelled"}
    assert all(p.size == 5 for p in would)
    assert len(list((folder / "jobs").iterdir())) == 8
    assert [p.job_id for p in purge(store, settings, dry_run=False)] == [p.job_id for p in would]
    assert {p.name for p in (folder / "jobs").iterdir()} == {job.job_id for job in store.recent()}
    assert len(store.recent()) == 5
    with store.engine.connect() as connection:
        remembered = connection.execute(sa.select(RESULTS.c.job_id)).scalars().all()
    assert remembered == ["done-old"], "what was cancelled nobody got"


def test_what_was_removed_is_told_though_the_next_one_cannot_be(store: JobStore, settings: Settings) -> None:
    for number in range(3):
        add(store, settings.storage.folder, f"d{number}", JobState.DONE, days_old=9 - number)
    told: list[str] = []

    def forget(job_id: str) -> None:
        if job_id == "d1":
            raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input"):
        purge(store, settings, dry_run=False, forget_files=forget, on_removed=lambda p: told.append(p.job_id))
    assert told == ["d0"]
    purge(store, settings, dry_run=True, on_removed=lambda p: told.append(p.job_id))
    assert told == ["d0"]
    purge(store, settings, dry_run=False, on_removed=lambda p: told.append(p.job_id))
    assert told == ["d0", "d1", "d2"]


def test_failed_jobs_have_a_time_only_where_one_is_set(store: JobStore, settings: Settings) -> None:
    add(store, settings.storage.folder, "f", JobState.FAILED, days_old=10)
    add(store, settings.storage.folder, "dead", JobState.FAILED, days_old=10, sent=False)
    store.give_up_delivery("dead", "pacs", "refused")
    add(store, settings.storage.folder, "killer", JobState.SET_ASIDE, days_old=10)
    with store.engine.begin() as connection:
        connection.execute(sa.update(JOBS).where(JOBS.c.job_id == "killer").values(deaths=2))
    assert purge(store, settings, dry_run=False) == []
    storage = settings.storage.model_copy(update={"keep_days_failed": 5.0})
    removed = purge(store, settings.model_copy(update={"storage": storage}), dry_run=False)
    assert {p.job_id for p in removed} == {"f", "killer"}


def test_a_low_disk_takes_delivered_jobs_the_oldest_first(store: JobStore, settings: Settings) -> None:
    folder = settings.storage.folder
    for number in range(4):
        add(store, folder, f"d{number}", JobState.DONE, days_old=1 - number * 0.1)
    add(store, folder, "waiting", JobState.DELIVERING, days_old=1.9, sent=False)
    storage = settings.storage.model_copy(update={"low_free_gb": 1.0})
    low = settings.model_copy(update={"storage": storage})

    def free(_folder: Path) -> int:
        return 10**9 - 1 + sum(not (folder / "jobs" / name).exists() for name in ("d0", "d1"))

    assert [(p.job_id, p.why) for p in purge(store, low, dry_run=False, free=free)] == [("d0", "the disk is low")]
    assert {job.job_id for job in store.recent()} == {"d1", "d2", "d3", "waiting"}


def test_a_study_that_has_another_job_keeps_its_index(store: JobStore, settings: Settings) -> None:
    from daemon.database.tables import ARRIVALS

    folder = settings.storage.folder
    add(store, folder, "first", JobState.DONE, days_old=3)
    add(store, folder, "second", JobState.DONE, days_old=0)
    with store.engine.begin() as connection:
        connection.execute(sa.update(JOBS).values(study_uid="1.2.3"))
        for job_id in ("first", "second"):
            connection.execute(
                sa.insert(ARRIVALS).values(job_id=job_id, study_uid="1.2.3", created=1.0, submitted=True)
            )
    purge(store, settings, dry_run=False)
    with store.engine.connect() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(ARRIVALS)).scalar_one() == 2


def test_instances_kept_aside_go_with_their_study(store: JobStore, settings: Settings) -> None:
    from daemon.database.tables import INSTANCES, CleanText, InstanceState

    folder = settings.storage.folder
    known, old, young = (folder / "conflicts" / f"1.2.{n}.{'ab' * 8}.dcm" for n in (1, 2, 3))
    known.parent.mkdir()
    for path in (known, old, young):
        path.write_bytes(b"x")
    for path in (known, old):
        os.utime(path, (now() - 2 * DAY, now() - 2 * DAY))
    with store.engine.begin() as connection:
        row = dict.fromkeys((c.name for c in INSTANCES.columns if isinstance(c.type, CleanText)), "1.2.1")
        numbers = dict.fromkeys(("data_offset", "data_length", "received", "last_received"), 1)
        sha = {"sha256": "ab" * 32, "state": InstanceState.CONFLICT.value}
        connection.execute(sa.insert(INSTANCES).values({**row, **numbers, **sha}))
    assert forget_conflicts(store.engine, settings.data.conflicts) == [old]
    assert {path.name for path in known.parent.iterdir()} == {known.name, young.name}


def test_housekeeping_goes_on_when_a_part_of_it_fails() -> None:
    stop, done = threading.Event(), []

    def fails() -> None:
        done.append("fails")
        raise OSError("the disk")

    def ends() -> None:
        done.append("ends")
        if len(done) >= 4:
            stop.set()

    keep_house([fails, ends], stop, every=0.01)
    assert done == ["fails", "ends"] * 2


def test_a_job_that_is_started_again_meanwhile_keeps_its_files(store: JobStore, settings: Settings) -> None:
    """A purge may take long: what it listed at its beginning may be at work when its turn comes."""
    DBOS.migrate(store.engine.url.render_as_string())
    for number in range(2):
        add(store, settings.storage.folder, f"f{number}", JobState.CANCELLED, days_old=9 - number)

    def retried(_purged: object) -> None:
        assert actions.retry(store, store.engine, "f1") == "all steps"

    assert [p.job_id for p in purge(store, settings, dry_run=False, on_removed=retried)] == ["f0"]
    assert settings.data.job("f1").exists()
    assert store.get("f1").state is JobState.QUEUED


def test_a_removal_that_was_cut_off_is_ended_and_nobody_starts_the_job(store: JobStore, settings: Settings) -> None:
    add(store, settings.storage.folder, "d", JobState.CANCELLED, days_old=9)

    def cut_off(_job_id: str) -> None:
        raise OSError("killed here")

    with pytest.raises(OSError, match="killed here"):
        purge(store, settings, dry_run=False, forget_files=cut_off)
    for act in (
        lambda: actions.retry(store, store.engine, "d"),
        lambda: actions.retry_delivery(store, store.engine, "d", "pacs"),
        lambda: actions.report_anew(store, store.engine, LocalFiles(settings.data.jobs), "d"),
    ):
        with pytest.raises(DaemonError, match="is being removed"):
            act()
    with pytest.raises(DaemonError, match="nothing to cancel"):
        actions.cancel(store, "d")
    assert [p.job_id for p in purge(store, settings, dry_run=False)] == ["d"]
    assert store.get("d") is None
