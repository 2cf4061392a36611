"""The data folder of version 0.1.0, killed with jobs in flight, opened by this version: none of them is lost.

`data-0.1.0.tar.xz` was made by running that version (workflow version 1): one study was at work, one was queued, one
was acknowledged and not yet assembled; then SIGKILL. The data are phantoms.
"""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
import sqlalchemy as sa
from e2e_support import sections

from daemon.database.engine import database_url, make_engine
from daemon.database.tables import JobState
from daemon.jobs.shared_files import unpack
from daemon.trial.daemon import TrialService
from daemon.trial.pacs import EmbeddedPacs

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

OLD = Path(__file__).parent / "data-0.1.0.tar.xz"


def test_jobs_in_flight_survive_the_upgrade(pacs: EmbeddedPacs, tmp_path: Path) -> None:
    service = TrialService(tmp_path / "daemon", sections(pacs.port, explain={"enabled": False}))
    with tarfile.open(OLD) as archive:
        unpack(archive, service.folder)
    before = _move_jobs(service)
    assert before == {"running", "queued"}
    service.start()
    try:
        jobs = service.wait_for_jobs(3, seconds=600)
        assert [(job.state, job.reason) for job in jobs] == [(JobState.DONE, "")] * 3
        reports = [d for d in pacs.instances() if d.Modality == "SR"]
        assert len(reports) == 3
        assert {d.StudyInstanceUID for d in reports} == {job.study_uid for job in jobs}
    finally:
        service.stop()


def _move_jobs(service: TrialService) -> set[str]:
    """The folder lay elsewhere when it was made; the states that its jobs had."""
    engine = make_engine(database_url("", service.data))
    with engine.begin() as connection:
        rows = connection.execute(sa.text("SELECT job_id, state FROM jobs")).all()
        for job_id, _ in rows:
            folder = str(service.data / "jobs" / job_id)
            connection.execute(sa.text("UPDATE jobs SET folder = :f WHERE job_id = :j"), {"f": folder, "j": job_id})
    engine.dispose()
    return {state for _, state in rows}
