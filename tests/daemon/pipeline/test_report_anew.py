"""A study that is reported again with other weights or settings: a new job, whose results replace the old ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from dbos import DBOS
from delivery_support import add_job, make_store

from daemon.database.tables import JobState
from daemon.engine.client import engine_client
from daemon.errors import DaemonError
from daemon.files import read_json
from daemon.jobs.files import LocalFiles
from daemon.jobs.folder import JobFolder
from daemon.jobs.store import JobStore
from daemon.pipeline import actions


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    made = make_store(tmp_path)
    DBOS.migrate(made.engine.url.render_as_string())
    return made


def test_it_is_a_job_of_its_own_on_the_same_instances(tmp_path: Path, store: JobStore) -> None:
    files = LocalFiles(tmp_path / "jobs")
    old = add_job(store, files.jobs, "j1")
    old.input.mkdir()
    (old.input / "0001.dcm").write_bytes(b"instance")
    store.update("j1", state=JobState.DONE)
    new_id = actions.report_anew(store, store.engine, files, "j1")
    assert actions.report_anew(store, store.engine, files, "j1") == new_id, "asked for twice it starts once"
    new = files.fetch(new_id)
    assert (new.input / "0001.dcm").read_bytes() == b"instance"
    assert not new.dicom.exists()
    changed = {"supersedes": "j1", "job_id": new_id, "anew": True}
    assert read_json(new.arrival) == {**read_json(old.arrival), **changed}
    job = store.get(new_id)
    assert job is not None
    assert (job.state, job.supersedes, job.study_uid) == (JobState.QUEUED, "j1", "1.2.3")
    assert sorted(p.name for p in files.jobs.iterdir()) == sorted(["j1", new_id])
    with engine_client(store.engine) as client:
        assert [w.workflow_id for w in client.list_workflows()] == [new_id]


def test_only_results_can_be_replaced(tmp_path: Path, store: JobStore) -> None:
    files = LocalFiles(tmp_path / "jobs")
    add_job(store, files.jobs, "j1")
    with pytest.raises(DaemonError, match="queued; only a job that has ended"):
        actions.report_anew(store, store.engine, files, "j1")
    store.add("j2", study_uid="1.2", supersedes=None)
    store.update("j2", state=JobState.FAILED)
    JobFolder(files.jobs / "j2").root.mkdir()
    with pytest.raises(DaemonError, match="no results that could be replaced"):
        actions.report_anew(store, store.engine, files, "j2")
