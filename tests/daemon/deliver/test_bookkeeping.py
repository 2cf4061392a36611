"""What is noted after an object was sent may fail for a while: it is not sent again by that, nor is its job failed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from delivery_support import FaultyPacs, add_job, deliver, outcomes
from delivery_support import make_store as plain_store

from daemon.config.sections import Destination
from daemon.database import patience
from daemon.deliver.client import DestinationClient
from daemon.deliver.delivery import plan_deliveries
from daemon.deliver.outgoing import StoreOutcome
from daemon.jobs.files import LocalFiles
from daemon.jobs.folder import JobFolder
from daemon.jobs.store import JobStore
from daemon.observe.audit import AuditLog, check_chain
from daemon.service.wiring import make_store

SENT = {kind: ("sent", "0000", "C-FIND") for kind in ("sr", "seg")}


@pytest.fixture
def pacs() -> Iterator[FaultyPacs]:
    running = FaultyPacs(find=True)
    yield running
    running.stop()


@pytest.fixture
def audit(tmp_path: Path) -> AuditLog:
    return AuditLog(tmp_path / "audit")


@pytest.fixture
def store(tmp_path: Path, audit: AuditLog) -> JobStore:
    """As the service has it."""
    return make_store(plain_store(tmp_path).engine, audit, LocalFiles(tmp_path), None)


@pytest.fixture
def folder(tmp_path: Path, store: JobStore) -> JobFolder:
    return add_job(store, tmp_path, "j1")


def fail(*_: Any) -> int:
    raise OSError(28, "No space left on device")


def sent_lines(audit: AuditLog) -> list[str]:
    [path] = audit.folder.glob("*.jsonl")
    assert check_chain(path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return sorted(line["sop_instance_uid"] for line in lines if line["event"] == "sent")


def test_a_full_disk_under_the_audit_log(pacs: FaultyPacs, store: JobStore, folder: JobFolder, audit: AuditLog) -> None:
    plan_deliveries(store, "j1", folder, [pacs.destination()])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "write", fail)
        assert deliver(store, folder, pacs.destination()) is None
    assert outcomes(store) == SENT
    assert len(pacs.received) == 2
    assert {d.attempts for d in store.deliveries("j1")} == {1}
    audit.note("after")
    assert sent_lines(audit) == sorted(pacs.received)


def test_a_full_disk_where_one_request_sends_all(
    store: JobStore, folder: JobFolder, audit: AuditLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """STOW-RS: all objects are there before the first of them is noted."""
    sent: list[str] = []

    class Stow:
        query = "QIDO-RS"

        def store(self, files: Any, *, on_outcome: Any) -> None:
            sent.extend(o.sop_instance_uid for o in files)
            for outgoing in files:
                on_outcome(StoreOutcome(outgoing, 0))

        def held(self, *_: str) -> set[str]:
            return set(sent)

    client: DestinationClient = Stow()  # type: ignore[assignment]
    monkeypatch.setattr("daemon.deliver.delivery.client_for", lambda *_, **__: client)
    there = Destination(name="pacs", ae_title="PACS", host="127.0.0.1", port=104, confirm="query")
    plan_deliveries(store, "j1", folder, [there])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "write", fail)
        assert deliver(store, folder, there) is None
    assert len(sent) == 2
    assert {state for state, _, _ in outcomes(store).values()} == {"sent"}
    audit.note("after")
    assert sent_lines(audit) == sorted(sent)


def test_shared_files_that_are_away(pacs: FaultyPacs, store: JobStore, folder: JobFolder, tmp_path: Path) -> None:
    class Away(LocalFiles):
        def fetch(self, job_id: str) -> JobFolder:
            raise OSError(5, "Input/output error", job_id)

    away = make_store(store.engine, AuditLog(tmp_path / "audit"), Away(tmp_path), None)
    plan_deliveries(away, "j1", folder, [pacs.destination()])
    assert deliver(away, folder, pacs.destination()) is None
    assert outcomes(away) == SENT


def test_a_database_that_is_locked_when_an_object_was_accepted(
    pacs: FaultyPacs, store: JobStore, folder: JobFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "DATABASE_PAUSE", 0.01)
    set_deliveries, locked = store._set_deliveries, [True] * 3

    def busy(*args: Any, **values: Any) -> None:
        if "attempts" in values and locked:
            locked.pop()
            raise sa.exc.OperationalError("UPDATE", {}, Exception("database is locked"))
        set_deliveries(*args, **values)

    monkeypatch.setattr(store, "_set_deliveries", busy)
    plan_deliveries(store, "j1", folder, [pacs.destination()])
    assert deliver(store, folder, pacs.destination()) is None
    assert outcomes(store) == SENT
    assert len(pacs.received) == 2
