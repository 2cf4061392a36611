"""The audit log on a disk that has room for half a line: what it says must not happen, or has happened."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest

from daemon.observe import audit
from daemon.observe.audit import AuditLog, NotAudited, check_chain

UID = "1.2.826.0.1.3680043.1"


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AuditLog:
    monkeypatch.setattr(audit, "RETRY_SECONDS", 0.05)
    return AuditLog(tmp_path)


def fill_disk(patch: pytest.MonkeyPatch) -> None:
    write = os.write
    patch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[: len(data) // 2]))


def events(folder: Path) -> list[str]:
    [path] = folder.glob("*.jsonl")
    assert check_chain(path)
    return [json.loads(line)["event"] for line in path.read_text().splitlines()]


def test_half_a_line_is_none_and_the_chain_goes_on(log: AuditLog) -> None:
    log.write("first")
    with pytest.MonkeyPatch.context() as patch:
        fill_disk(patch)
        with pytest.raises(NotAudited, match="No space"):
            log.write("second")
    log.write("third")
    assert events(log.folder) == ["first", "third"]


def test_what_has_happened_is_no_error_and_stands_in_the_log_and_later_in_the_file(
    log: AuditLog, caplog: pytest.LogCaptureFixture
) -> None:
    log.write("first")
    with pytest.MonkeyPatch.context() as patch:
        fill_disk(patch)
        log.note("sent", sop_instance_uid=UID, series_uids=[UID])
        log.note("purged", job="j1")
        [retries] = [log._retries]
        assert retries is not None
        said = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
        assert [("sent" in line, "j1" in line, UID in line) for line in said] == [(1, 0, 0), (0, 1, 0)]
    retries.join(60)
    log.note("last")
    assert events(log.folder) == ["first", "sent", "purged", "last"]
    assert UID in next(log.folder.glob("*.jsonl")).read_text()


def test_what_waits_goes_before_what_comes_next(log: AuditLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "RETRY_SECONDS", 3600)
    with pytest.MonkeyPatch.context() as patch:
        fill_disk(patch)
        log.note("one")
        log.note("two")
    log.write("three")
    assert events(log.folder) == ["one", "two", "three"]


def test_a_line_that_cannot_be_made_durable_is_written_once(log: AuditLog) -> None:
    def fail(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        log.note("one")
    log.note("two")
    assert events(log.folder) == ["one", "two"]


def test_lines_that_wait_are_bounded(
    log: AuditLog, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(audit, "MOST_WAITING", 3)
    monkeypatch.setattr(audit, "RETRY_SECONDS", 3600)
    with pytest.MonkeyPatch.context() as patch:
        fill_disk(patch)
        for number in range(5):
            log.note(f"event{number}")
    assert "event4" in caplog.text
    log.note("after")
    assert events(log.folder) == ["event0", "event1", "event2", "after"]


def test_text_that_is_no_unicode_is_a_line_all_the_same(log: AuditLog) -> None:
    log.note("refused", calling_aet="A\udcffB")
    assert json.loads(next(log.folder.glob("*.jsonl")).read_text())["calling_aet"] == "A\udcffB"
