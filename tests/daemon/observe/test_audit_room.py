"""The audit log on a disk that has room for half a line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from daemon.observe.audit import AuditLog, check_chain


def test_half_a_line_is_none_and_the_chain_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, write = AuditLog(tmp_path), os.write
    log.write("first")
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[: len(data) // 2]))
    with pytest.raises(OSError, match="No space"):
        log.write("second")
    monkeypatch.undo()
    log.write("third")
    assert [check_chain(path) for path in tmp_path.glob("*.jsonl")] == [2]
