"""Deliveries as durable workflows, on the real engine: destinations apart from each other, and after an upgrade."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import sqlalchemy as sa
from dbos import DBOS
from delivery_support import FaultyPacs, add_job, make_store
from ingest_support import wait_until

from daemon.config.sections import Destination, Settings, Storage
from daemon.database.tables import JobState
from daemon.deliver import delivery
from daemon.engine import client, identifiers, recovery
from daemon.engine.client import engine_client, enqueue_delivery, enqueue_report
from daemon.jobs.files import LocalFiles
from daemon.jobs.store import JobStore
from daemon.pipeline import actions, workflow
from daemon.pipeline.step_process import StepProcess
from daemon.service import wiring
from daemon.trial.pacs import LOOPBACK, free_port

DOWN, UP = "down", "up"


class Site:
    """Jobs with results, a PACS that answers and one that does not, and the engine when it is started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pacs = FaultyPacs(find=True)
        up = self.pacs.destination(name=UP)
        down = Destination(name=DOWN, ae_title="PACS", host=LOOPBACK, port=free_port())
        self.settings = Settings(destinations=(down, up), storage=Storage(folder=folder))
        self.store: JobStore = make_store(folder)
        self.running = False

    def add(self, job_id: str, *destinations: str) -> None:
        """A job whose results wait for these destinations."""
        folder = add_job(self.store, self.folder / "jobs", job_id)
        there = [d for d in self.settings.destinations if d.name in destinations]
        delivery.plan_deliveries(self.store, job_id, folder, there)
        self.store.update(job_id, state=JobState.DELIVERING)

    def start(self) -> None:
        """The engine; the model process is not needed for deliveries."""
        files = LocalFiles(self.folder / "jobs")
        context = workflow.Context(self.settings, self.store, cast(StepProcess, None), files)
        wiring.launch_engine(self.store.engine, context, identifiers.EXECUTOR_ID)
        self.running = True

    def states(self) -> dict[str, str]:
        return {job.job_id: str(job.state) for job in self.store.recent()}

    def workflows(self) -> list[Any]:
        with engine_client(self.store.engine) as client:
            return list(client.list_workflows(load_input=False, load_output=False))

    def stop(self) -> None:
        if self.running:
            DBOS.destroy()
        self.pacs.stop()
        self.store.engine.dispose()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    running = Site(tmp_path)
    yield running
    running.stop()


def test_a_destination_that_is_down_holds_up_no_other(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "FIRST_WAIT", 3600.0)
    jobs = [f"j{number}" for number in range(3)]
    for job_id in jobs:
        site.add(job_id, DOWN)
    site.add("last", UP)
    site.start()
    for job_id in jobs:
        enqueue_delivery(site.store.engine, f"{job_id}:{DOWN}", job_id, DOWN)
    enqueue_delivery(site.store.engine, f"last:{UP}", "last", UP)
    wait_until(lambda: site.states()["last"] == "done")
    later = {f"{job_id}:{DOWN}#2" for job_id in jobs}  # queued for later: nobody waits in a thread
    wait_until(lambda: later == {w.workflow_id for w in site.workflows() if w.status == "DELAYED"})


def test_the_next_turn_comes_by_itself(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "FIRST_WAIT", 0.1)
    answers = iter([0xA700, 0xA700])
    site.pacs.answer = lambda _event: next(answers, 0x0000)
    site.add("j1", UP)
    site.start()
    enqueue_delivery(site.store.engine, f"j1:{UP}", "j1", UP)
    wait_until(lambda: site.states()["j1"] == "done")
    assert {d.attempts for d in site.store.deliveries("j1")} == {2}
    assert {f"j1:{UP}", f"j1:{UP}#2"} <= {w.workflow_id for w in site.workflows()}


def test_a_new_workflow_version_strands_no_job(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a version before left behind, in whichever state, is queued anew and finished."""
    site.add("j1", UP)
    site.add("j2", UP)
    site.store.add("j3", study_uid="1.2", supersedes=None)
    DBOS.migrate(site.store.engine.url.render_as_string())
    for job_id in ("j1", "j2"):
        enqueue_delivery(site.store.engine, f"{job_id}:{UP}", job_id, UP)
    enqueue_report(site.store.engine, actions.job_or_error(site.store, "j3"))
    with site.store.engine.begin() as connection:  # killed while one was at work, and one was waiting for its turn
        for job_id, status in (("j1", "PENDING"), ("j2", "DELAYED")):
            connection.execute(
                sa.text("UPDATE workflow_status SET status = :s, executor_id = 'main' WHERE workflow_uuid = :w"),
                {"s": status, "w": f"{job_id}:{UP}"},
            )
    for module in (wiring, client, recovery):
        monkeypatch.setattr(module, "WORKFLOW_VERSION", "2")
    reported: list[str] = []
    monkeypatch.setattr(workflow, "_run", lambda step, job_id: reported.append(f"{step} {job_id}"))
    site.start()
    queued = recovery.give_every_job_a_workflow(site.store.engine, alone=True)
    assert sorted(name.partition("-")[0] for name in queued) == ["j1", "j2", "j3"]
    wait_until(lambda: site.states()["j1"] == site.states()["j2"] == "done")
    wait_until(lambda: "select j3" in reported)
