"""A SQLite that a disk or a copy has damaged: named in one line, replaced without sending anything twice."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa

from daemon.config.sections import Settings
from daemon.database.engine import check_database, open_database
from daemon.database.tables import DeliveryState
from daemon.errors import Permanent
from daemon.jobs.store import JobStore
from daemon.observe.audit import AuditLog
from daemon.service.doctor import _database
from daemon.service.restore import restore_deliveries


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.model_validate({"storage": {"folder": tmp_path}, "listener": {"port": 0}, "web": {"port": 0}})


def fill(settings: Settings) -> None:
    engine = open_database(settings)
    store = JobStore(engine)
    for number in range(300):
        store.add(f"j{number}", study_uid=f"1.2.{number}", supersedes=None)
    with engine.connect() as connection:
        connection.execute(sa.text("PRAGMA wal_checkpoint(TRUNCATE)"))
    engine.dispose()


def damage(settings: Settings, start: int) -> None:
    content = bytearray(settings.data.database.read_bytes())
    content[start : start + 8192] = b"\xa5" * 8192
    settings.data.database.write_bytes(content)


def open_and_check(settings: Settings) -> None:
    engine = open_database(settings)
    try:
        check_database(engine)
    finally:
        engine.dispose()


@pytest.mark.parametrize("start", [0, 40_960])
def test_it_is_named_with_what_to_do(settings: Settings, start: int) -> None:
    """At its head, where nothing opens it, and deep inside, where only a look at every page finds it."""
    fill(settings)
    damage(settings, start)
    with pytest.raises(Permanent, match=r"daemon\.sqlite: the database is damaged .*move the file away") as caught:
        open_and_check(settings)
    assert "\n" not in str(caught.value)
    [said] = _database(settings)
    assert not said.ok
    assert "is damaged" in said.detail


def test_a_sound_one_is_called_sound(settings: Settings) -> None:
    fill(settings)
    open_and_check(settings)
    [said] = _database(settings)
    assert said.ok
    assert "is sound" in said.detail


def test_a_new_one_knows_what_was_delivered_before(settings: Settings) -> None:
    audit = AuditLog(settings.data.audit)
    for uid, events in {
        "1.1": ("accepted", "sent"),
        "1.2": ("not_sent", "accepted"),
        "1.3": ("accepted", "not_sent"),
        "1.4": ("not_sent",),
    }.items():
        for event in events:
            audit.write(event, job="j1", destination="pacs", sop_instance_uid=uid, status="0000")
    audit.write("retried", job="j1")
    [file] = settings.data.audit.iterdir()
    with file.open("a") as torn:
        torn.write('{"event": "sent", "job": "j1", "dest')
    engine = open_database(settings)
    store = JobStore(engine)
    assert restore_deliveries(store, settings.data.audit) == 2
    store.add("j1", study_uid="1", supersedes=None)
    store.put_deliveries("j1", "pacs", [(f"1.{n}", "sr", f"{n}.dcm") for n in (1, 2, 3, 4)])
    found = {d.sop_instance_uid: (d.state, d.kind, d.file) for d in store.deliveries("j1")}
    assert found == {
        "1.1": (DeliveryState.SENT, "sr", "1.dcm"),
        "1.2": (DeliveryState.UNCONFIRMED, "sr", "2.dcm"),
        "1.3": (DeliveryState.WAITING, "sr", "3.dcm"),
        "1.4": (DeliveryState.WAITING, "sr", "4.dcm"),
    }
    engine.dispose()
