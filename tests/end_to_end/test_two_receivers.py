"""Two services on one PostgreSQL, each with its own disk: a study split over both, and a disk that is lost."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from e2e_support import sections
from ingest_support import make_series, save
from objects_support import OBJECT_STEPS
from postgres_support import Postgres, needs_postgres
from steps_support import replace_steps

from daemon.database.tables import JobState
from daemon.deliver.dimse import DimseClient
from daemon.deliver.outgoing import Outgoing, StoreOutcome
from daemon.trial.daemon import TrialService
from daemon.trial.pacs import EmbeddedPacs

pytestmark = [pytest.mark.e2e, needs_postgres, pytest.mark.timeout(1200)]


@pytest.fixture
def services(tmp_path: Path, pacs: EmbeddedPacs, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[TrialService]]:
    """The first works and receives, the second receives only, so that one machine may be two hosts."""
    replace_steps(tmp_path / "overlay", OBJECT_STEPS, monkeypatch)
    server = Postgres()
    started = []
    for number, works in enumerate((True, False)):
        configuration = sections(
            pacs.port, engine={"database_url": server.url, "work": works, "lease_seconds": 6},
            storage={"shared_url": f"file://{tmp_path}/shared"}, assembly={"quiet_seconds": 4},
        )  # fmt: skip
        configuration["listener"] |= {"replicate": "shared", "reserve_mb": 0}
        started.append(TrialService(tmp_path / f"host{number}", configuration))
        started[-1].start()
    yield started
    for service in started:
        service.stop()
    server.stop()


def send_in_two_parts(first: TrialService, second: TrialService, files: Sequence[Path]) -> None:
    """The second part while the first one's association is open: however slow the machine, the study is not quiet."""
    part, answered = files[:5], []

    def one_more(outcome: StoreOutcome) -> None:
        answered.append(outcome.stored)
        if len(answered) == len(part):
            second.send(files[5:])

    DimseClient(first.peer, "SENDER").store([Outgoing.read(file) for file in part], on_outcome=one_more)
    assert answered == [True] * len(part)


def test_a_split_study_is_one_job_and_a_lost_disk_loses_nothing(
    services: list[TrialService], pacs: EmbeddedPacs, tmp_path: Path
) -> None:
    works, receives = services
    series = make_series(8)
    files = [save(dataset, tmp_path / f"{n}.dcm") for n, dataset in enumerate(series)]
    send_in_two_parts(works, receives, files)
    [job] = works.wait_for_jobs(1, seconds=400)
    assert (job.state, job.reason) == (JobState.DONE, "")
    assert [int(d.InstanceNumber) for d in pacs.instances()] == [8]
    lost = make_series(5)
    files = [save(dataset, tmp_path / f"lost{n}.dcm") for n, dataset in enumerate(lost)]
    receives.send(files)  # acknowledged, and then the host is gone with its disk
    receives.kill()
    shutil.rmtree(receives.data)
    jobs = works.wait_for_jobs(2, seconds=400)
    assert {(j.study_uid, j.state) for j in jobs} == {(s[0].StudyInstanceUID, JobState.DONE) for s in (series, lost)}
    assert sorted(int(d.InstanceNumber) for d in pacs.instances()) == [5, 8]
