"""What keeps the service observable: JSON lines, the audit log, systemd's notifications, health, old databases."""

import io
import json
import logging
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest

from daemon.config.sections import Settings
from daemon.database.engine import create_tables, make_engine
from daemon.database.tables import JobState
from daemon.errors import DaemonError
from daemon.jobs.store import JobStore
from daemon.observe.audit import AuditLog, check_chain
from daemon.observe.health import Health
from daemon.observe.logs import JobFilter, JsonLines, about_job
from daemon.observe.systemd import notify


def test_json_lines_carry_the_job() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(JobFilter())
    handler.setFormatter(JsonLines())
    logger = logging.getLogger("test.json")
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(logging.INFO)
    logger.info("before")
    with about_job("j1"):
        logger.info("step %s took %.1f s", "select", 1.25)
        try:
            raise ValueError("a reason")
        except ValueError:
            logger.exception("failed")
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert "job" not in lines[0]
    assert (lines[1]["job"], lines[1]["message"], lines[1]["level"]) == ("j1", "step select took 1.2 s", "info")
    assert "ValueError: a reason" in lines[2]["traceback"]


def test_the_audit_log_notices_a_changed_and_a_missing_line(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit")
    for number in range(4):
        log.write("sent", durably=number % 2 == 0, job=f"j{number}", destination="pacs", status="0000")
    [path] = log.folder.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    assert log.folder.stat().st_mode & 0o777 == 0o700
    assert check_chain(path) == 4
    lines = path.read_text().splitlines()
    assert json.loads(lines[1])["job"] == "j1"
    path.write_text("\n".join([lines[0], lines[1].replace("j1", "j9"), *lines[2:]]) + "\n")
    with pytest.raises(DaemonError, match="line 3 does not follow"):
        check_chain(path)
    path.write_text("\n".join([lines[0], *lines[2:]]) + "\n")
    with pytest.raises(DaemonError, match="line 2 does not follow"):
        check_chain(path)


def test_systemd_is_told_and_only_where_it_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify("READY=1")
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(path))
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        assert notify("WATCHDOG=1")
        assert listening.recv(100) == b"WATCHDOG=1"


def test_a_systemd_that_does_not_listen_ends_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    assert not notify("WATCHDOG=1")
    assert "WATCHDOG=1" in caplog.text


def test_health_names_what_does_not_run_and_a_full_disk(tmp_path: Path) -> None:
    settings = Settings.model_validate({"storage": {"folder": tmp_path, "min_free_gb": 0}})
    engine = make_engine(f"sqlite:///{tmp_path / 'x.sqlite'}")
    health = Health(settings, engine)
    health.alive["receivers"] = lambda: True
    assert health.faults() == health.obstacles() == []
    health.alive["assembler"] = lambda: False
    assert health.faults() == ["assembler does not run"]
    full = Health(Settings.model_validate({"storage": {"folder": tmp_path, "min_free_gb": 1e6}}), engine)
    [obstacle] = full.obstacles()
    assert "expected at least 1e+06 GB" in obstacle


def test_health_turns_red_while_work_waits_and_none_makes_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("daemon.observe.health.time", SimpleNamespace(monotonic=lambda: now))
    engine = make_engine(f"sqlite:///{tmp_path / 'x.sqlite'}")
    create_tables(engine)
    store = JobStore(engine)
    settings = Settings.model_validate(
        {"storage": {"folder": tmp_path, "min_free_gb": 0}, "engine": {"step_seconds": 60}}
    )
    health = Health(settings, engine)
    now += 3600
    assert health.stalled() == [], "nothing waits"
    store.add("j1", study_uid="1.2", supersedes=None)
    store.add("j2", study_uid="1.3", supersedes=None)
    assert health.stalled() == []
    now += 31
    assert health.stalled() == ["2 jobs wait, and none made progress for 31 s"]
    assert health.stalled() == health.obstacles()
    assert health.faults() == [], "the watchdog does not start the service again for it: a step has its own limit"
    store.update("j1", progress="explaining 1/100")
    assert health.stalled() == []
    now += 31
    assert health.stalled()
    store.update("j1", state=JobState.DONE)
    store.update("j2", state=JobState.FAILED)
    assert health.stalled() == []
    now += 3600
    assert health.stalled() == []
    engine.dispose()
