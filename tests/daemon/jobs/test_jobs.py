from pathlib import Path

import pytest
from dbos import DBOS

from daemon.config.data_folder import DataFolder
from daemon.database.engine import create_tables, database_url, make_engine
from daemon.database.tables import DeliveryState, JobState
from daemon.errors import DaemonError
from daemon.jobs.store import JobStore, SeriesVerdict
from daemon.pipeline import actions
from daemon.pipeline.actions import cancel, retry


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    engine = make_engine(database_url("", DataFolder(tmp_path)))
    create_tables(engine)
    return JobStore(engine)


def add(store: JobStore, job_id: str = "j1") -> None:
    store.add(job_id, study_uid="1.2.3", supersedes=None)


def test_adding_twice_changes_nothing(store: JobStore) -> None:
    add(store)
    store.update("j1", state=JobState.RUNNING, step="report")
    add(store)
    job = store.get("j1")
    assert job is not None
    assert (job.state, job.step) == (JobState.RUNNING, "report")


def test_timings_add_up_by_step(store: JobStore) -> None:
    add(store)
    store.add_timing("j1", "convert", 1.25)
    store.add_timing("j1", "report", 2.5)
    job = store.get("j1")
    assert job is not None
    assert job.timings == {"convert": 1.25, "report": 2.5}


def test_verdicts_are_found_by_series_and_by_job(store: JobStore) -> None:
    add(store)
    store.put_verdicts(
        "j1",
        [
            SeriesVerdict("j1", "1.2.3.1", "accepted", ("named FLAIR",)),
            SeriesVerdict("j1", "1.2.3.2", "refused", ("T1",)),
        ],
    )
    assert [v.verdict for v in store.verdicts(series_uid="1.2.3.2")] == ["refused"]
    assert len(store.verdicts(job_id="j1")) == 2
    assert store.verdicts(series_uid="9") == []


def test_each_object_of_a_delivery_has_its_own_state(store: JobStore) -> None:
    add(store)
    store.put_deliveries("j1", "pacs", [("1.1", "sr", "sr.dcm"), ("1.2", "seg", "seg.dcm")])
    store.note_delivery("j1", "pacs", "1.1", state=DeliveryState.SENT, status="0000", reason="")
    store.put_deliveries("j1", "pacs", [("1.1", "sr", "sr.dcm")])  # planned again after a crash
    by_uid = {d.sop_instance_uid: d for d in store.deliveries("j1")}
    assert by_uid["1.1"].state is DeliveryState.SENT
    assert by_uid["1.1"].attempts == 1
    assert by_uid["1.2"].state is DeliveryState.WAITING
    store.give_up_delivery("j1", "pacs", "refused")
    by_uid = {d.sop_instance_uid: d for d in store.deliveries("j1")}
    assert by_uid["1.1"].state is DeliveryState.SENT
    assert (by_uid["1.2"].state, by_uid["1.2"].reason) == (DeliveryState.DEAD, "refused")
    assert not store.revive_deliveries("j1", ["pacs"], runs=2), "its results are still to be made"
    assert by_uid == {d.sop_instance_uid: d for d in store.deliveries("j1")}
    store.update("j1", state=JobState.FAILED)
    assert store.revive_deliveries("j1", ["pacs"], runs=2)
    assert not store.move("j1", JobState.DONE, of=[JobState.DELIVERING], settled=True), "something waits again"
    assert [d.state for d in store.deliveries("j1", "pacs")] == [DeliveryState.WAITING, DeliveryState.SENT]


def test_cancel_only_what_has_not_ended(store: JobStore) -> None:
    add(store)
    cancel(store, "j1")
    job = store.get("j1")
    assert job is not None
    assert job.state is JobState.CANCELLED
    with pytest.raises(DaemonError, match="has ended"):
        cancel(store, "j1")
    with pytest.raises(DaemonError, match="no job 'j2'"):
        cancel(store, "j2")


@pytest.mark.parametrize(("ask", "read", "meanwhile"), [("cancel", "running", "done"), ("retry", "failed", "running")])
def test_what_a_job_became_since_it_was_read_is_not_undone(
    store: JobStore, monkeypatch: pytest.MonkeyPatch, ask: str, read: str, meanwhile: str
) -> None:
    DBOS.migrate(store.engine.url.render_as_string())
    add(store)
    store.update("j1", state=JobState(read))
    stale = store.get("j1")
    store.update("j1", state=JobState(meanwhile))
    monkeypatch.setattr(actions, "job_or_error", lambda *_: stale)
    with pytest.raises(DaemonError, match="job j1"):
        cancel(store, "j1") if ask == "cancel" else retry(store, store.engine, "j1")
    job = store.get("j1")
    assert job is not None
    assert (str(job.state), job.runs) == (meanwhile, 1)
