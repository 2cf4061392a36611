"""The service killed with work at every stage, and started again on a copy of its data folder: nothing is lost."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
from e2e_support import sections

from daemon.database.tables import JobState
from daemon.errors import DaemonError
from daemon.trial.daemon import TrialService
from daemon.trial.pacs import EmbeddedPacs
from dicom_io.series_writer import write_series
from training.phantoms.phantom import make_phantom

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


@pytest.mark.slow
def test_what_was_in_flight_goes_on_in_a_copied_folder(pacs: EmbeddedPacs, tmp_path: Path) -> None:
    """One study at work, one queued, one acknowledged; no place in the folder is noted by its full path."""
    study_files = [
        write_series(make_phantom(900_010 + n, spacing=(4.0, 4.0, 8.0)).volume, tmp_path / f"study{n}")
        for n in range(3)
    ]
    quick = sections(pacs.port, explain={"enabled": False})
    service = TrialService(tmp_path / "daemon", quick)
    service.start()
    for files in study_files[:2]:
        service.send(files)
    states: set[str] = set()
    while states != {"running", "queued"}:  # the test's timeout ends it
        states = {str(job.state) for job in service.store.recent()}
        assert "failed" not in states
        time.sleep(0.02)
    service.send(study_files[2])
    service.kill()
    service.stop()
    shutil.move(service.data, tmp_path / "moved" / "data")
    again = TrialService(tmp_path / "moved", quick)
    again.start()
    try:
        jobs = again.wait_for_jobs(3, seconds=600)
        assert [(job.state, job.reason) for job in jobs] == [(JobState.DONE, "")] * 3
        reports = [d for d in pacs.instances() if d.Modality == "SR"]
        assert len(reports) == 3
        assert {d.StudyInstanceUID for d in reports} == {job.study_uid for job in jobs}
        assert not service.data.exists()
    finally:
        again.stop()


def test_a_damaged_database_stops_the_start_in_one_line_and_a_new_one_sends_nothing_twice(
    pacs: EmbeddedPacs, study: list[Path], tmp_path: Path
) -> None:
    service = TrialService(tmp_path / "daemon", sections(pacs.port, explain={"enabled": False}))
    database = service.settings.data.database
    service.start()
    try:
        service.send(study)
        [job] = service.wait_for_jobs(1, seconds=300)
        sent = {d.sop_instance_uid for d in service.store.deliveries(job.job_id)}
        assert service.stop() == 0
        for log in database.parent.glob("daemon.sqlite-*"):  # SQLite would mend the first page from it
            log.unlink()
        sound = database.read_bytes()
        database.write_bytes(b"\0" * 100 + sound[100:])
        with pytest.raises(DaemonError, match="the database is damaged"):
            service.start()
        assert "Traceback" not in service.log.read_text()
        for path in database.parent.glob("daemon.sqlite*"):
            path.rename(path.with_name(f"damaged-{path.name}"))
        service.start()
        [again] = service.wait_for_jobs(1, seconds=300)
        assert (again.job_id, again.state) == (job.job_id, JobState.DONE)
        deliveries = service.store.deliveries(again.job_id)
        assert {d.sop_instance_uid for d in deliveries} == sent
        assert {(str(d.state), d.attempts, d.confirmed) for d in deliveries} == {("sent", 1, "audit log")}
    finally:
        service.stop()
