"""Several processes on one PostgreSQL: a receiver, three workers, one killed, one frozen and thawed."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest
from e2e_support import sections
from postgres_support import Postgres, needs_postgres
from worker_support import Worker

from daemon.database.tables import JobState
from daemon.engine.lease import EXIT_FENCED
from daemon.jobs.store import Job
from daemon.trial.daemon import TrialService
from daemon.trial.pacs import EmbeddedPacs
from dicom_io.series_writer import write_series
from training.phantoms.phantom import make_phantom

pytestmark = [pytest.mark.e2e, needs_postgres, pytest.mark.timeout(1200)]

STUDIES = 5
LEASE_SECONDS = 20
"""Long enough for a machine that is busy with other things."""


def wait_until(what: str, condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.1)


def all_working(workers: list[Worker]) -> bool:
    """Whether each has begun a job: its log names the first finished step."""
    for worker in workers:
        worker.keep()
    return all("select took" in worker.log.read_text() for worker in workers)


@pytest.mark.slow
def test_every_study_is_delivered_once_though_one_worker_dies_and_one_freezes(
    postgres: Postgres, pacs: EmbeddedPacs, tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    configuration = sections(
        pacs.port,
        engine={"database_url": postgres.url, "work": False, "lease_seconds": LEASE_SECONDS},
        storage={"shared_url": f"file://{shared}"},
    )
    service = TrialService(tmp_path / "daemon", configuration)
    workers: list[Worker] = []
    try:
        service.start()
        workers = [Worker(service.configuration, f"gpu{n}", tmp_path / f"worker{n}.log") for n in range(3)]
        studies = []
        for number in range(STUDIES):
            phantom = make_phantom(910_000 + number, spacing=(4.0, 4.0, 6.0))
            studies.append(write_series(phantom.volume, tmp_path / f"study{number}"))
            service.send(studies[-1])
        wait_until("every worker has a job", lambda: all_working(workers), 300)
        killed, frozen, _ = workers
        killed.process.kill()
        frozen.process.send_signal(signal.SIGSTOP)
        time.sleep(1.5 * LEASE_SECONDS)  # its work is taken over meanwhile
        frozen.process.send_signal(signal.SIGCONT)
        assert frozen.process.wait(60) == EXIT_FENCED
        frozen.start()
        running = workers[1:]
        jobs = service.wait_for_jobs(STUDIES, seconds=800, on_poll=lambda _jobs: [w.keep() for w in running])
        assert [(job.state, job.reason) for job in jobs] == [(JobState.DONE, "")] * STUDIES
        assert_each_delivered_once(pacs, studies, jobs)
    finally:
        for worker in workers:
            worker.stop()
        service.stop()


def assert_each_delivered_once(pacs: EmbeddedPacs, studies: list[list[Path]], jobs: list[Job]) -> None:
    """One SR and one picture a slice in each study; no second version of anything."""
    held = pacs.instances()
    assert {d.StudyInstanceUID for d in held} == {job.study_uid for job in jobs}
    for study in studies:
        uid = pydicom.dcmread(study[0], stop_before_pixels=True).StudyInstanceUID
        mine = [d for d in held if d.StudyInstanceUID == uid]
        assert sum(d.Modality == "SR" for d in mine) == 1
        overlays = [d for d in mine if d.SOPClassUID.name == "Secondary Capture Image Storage"]
        assert len(overlays) == len(study)
        assert len({d.SeriesInstanceUID for d in overlays}) == 1
