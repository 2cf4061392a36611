from __future__ import annotations

import json

from daemon.observe.audit import AuditLog
from daemon.receive import refusals
from daemon.receive.refusals import LINES, RefusalLog
from daemon.receive.store import TOO_MANY


def lines(folder):
    return [json.loads(line) for path in folder.glob("*.jsonl") for line in path.read_text().splitlines()]


def test_strangers_by_the_thousand_make_sixty_lines_a_minute(tmp_path, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(refusals.time, "monotonic", lambda: now)
    log = RefusalLog(AuditLog(tmp_path))
    for number in range(1000):
        log.association(TOO_MANY, calling_aet=f"S{number}", called_aet="US", peer="192.0.2.1")
    assert len(lines(tmp_path)) == LINES
    now += 61
    log.association(TOO_MANY, calling_aet="S1", called_aet="US", peer="192.0.2.1")
    assert lines(tmp_path)[-1]["left_out_before"] == 1000 - LINES


def test_a_full_disk_does_not_keep_the_refusal_from_the_sender(tmp_path, caplog):
    (tmp_path / "audit").write_text("a file where the folder should be")
    RefusalLog(AuditLog(tmp_path / "audit")).contexts(["1.2.3"], calling_aet="S", peer="192.0.2.1")
    assert "audit log" in caplog.text
    assert "192.0.2.1" in caplog.records[-1].getMessage()
