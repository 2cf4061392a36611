"""The machine's clock, as the service sees it, goes back and forth by an hour: nothing waits for that.

The service's processes are shown another time; the machine's clock stays as it is, and so does the
monotonic one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from clock_support import FakeClock, needs_clock
from e2e_support import sections
from ingest_support import make_series, save, wait_until
from objects_support import OBJECT_STEPS
from steps_support import replace_steps

from daemon.database.tables import JobState
from daemon.trial.daemon import TrialService
from daemon.trial.pacs import EmbeddedPacs, free_port

pytestmark = [pytest.mark.e2e, needs_clock, pytest.mark.timeout(900)]

HOUR = 3600


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TrialService]:
    replace_steps(tmp_path / "overlay", OBJECT_STEPS, monkeypatch)
    trial = TrialService(tmp_path / "daemon", sections(free_port()))
    yield trial
    trial.stop()


def test_a_delivery_that_waits_while_the_clock_goes_back_an_hour(service: TrialService, tmp_path: Path) -> None:
    clock = FakeClock(tmp_path / "clock")
    service.start(environment={**os.environ, **clock.environment})
    series = make_series(3)
    files = [save(dataset, tmp_path / f"{n}.dcm") for n, dataset in enumerate(series)]
    service.send(files)
    store = service.store

    def tried() -> int:
        return max((d.attempts for job in store.recent() for d in store.deliveries(job.job_id)), default=0)

    wait_until(lambda: tried() >= 2, seconds=240)  # nobody listens there
    clock.set(-HOUR)
    pacs = EmbeddedPacs(tmp_path / "pacs", port=service.settings.destinations[0].port)
    try:
        wait_until(lambda: store.recent()[0].state is JobState.DONE, seconds=240)
        assert [d.StudyInstanceUID for d in pacs.instances()] == [series[0].StudyInstanceUID]
        late = make_series(3)
        paths = [save(dataset, tmp_path / f"late{n}.dcm") for n, dataset in enumerate(late)]
        service.send(paths)
        clock.set(HOUR)

        def reported() -> bool:
            service.send(paths[:1])  # a sender that repeats itself for ever postpones nothing
            return len(store.recent()) == 2 and store.recent()[0].state is JobState.DONE

        wait_until(reported, seconds=240)
        assert {d.StudyInstanceUID for d in pacs.instances()} == {d.StudyInstanceUID for d in (series[0], late[0])}
    finally:
        pacs.stop()
