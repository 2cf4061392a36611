"""What several end-to-end tests need."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import sqlalchemy as sa

from daemon.trial.daemon import TrialService
from daemon.trial.pacs import LOOPBACK, free_port

SHARED_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


MARKERS = {
    "PatientName": "MARKERFAMILY^MARKERGIVEN",
    "PatientID": "MARKERMRN1",
    "AccessionNumber": "MARKERACC1",
    "ReferringPhysicianName": "MARKERPHYSICIAN",
    "OperatorsName": "MARKEROPERATOR^ONE",
}
"""Identities of the tests' study: what holds MARKER names somebody."""


def say(text: str) -> None:
    """A line of a long run, with the time of day."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)  # noqa: T201 - `pytest -s` shows it


def sections(pacs_port: int, pacs_title: str = "TESTPACS", **more: Any) -> dict[str, Any]:
    """A configuration that is quick: short quiet time, few perturbations, one thread."""
    return {
        "listener": {"port": free_port()},
        "assembly": {"quiet_seconds": 1},
        "model": {"threads": 1},
        "explain": {"samples": 16, "segments": 8},
        "log": {"format": "json"},
        "destinations": [{"name": "pacs", "ae_title": pacs_title, "host": LOOPBACK, "port": pacs_port}],
        **more,
    }


def processes_of(service: TrialService) -> dict[str, psutil.Process]:
    """The running service ("service") and its children by the module that they run; one that just ended is left out."""
    assert service.process is not None
    me = psutil.Process(service.process.pid)
    found = {"service": me}
    for child in me.children():
        try:
            command = child.cmdline()
        except (psutil.NoSuchProcess, psutil.ZombieProcess):  # ended while we looked
            continue
        if "-m" in command:
            found[command[command.index("-m") + 1]] = child
    return found


def assert_nobody_is_named(service: TrialService, *may_name: str) -> Mapping[str, str]:
    """No identity in a log line, the audit log, a metric, a state of health or a row; every line is JSON.

    Args:
        service: Running, and reported a study whose identities are `MARKERS` or begin as they do.
        may_name: Tables that are there to name people.

    Returns:
        What those tables hold.
    """
    texts = {"log": service.log.read_text()}
    audit = [path.read_text() for path in service.settings.data.audit.glob("*.jsonl")]
    texts["audit"] = "\n".join(audit)
    assert "received" in texts["audit"]
    for line in "\n".join([texts["log"], *audit]).splitlines():
        if line:
            json.loads(line)
    for path in ("metrics", "readyz", "healthz"):
        with urllib.request.urlopen(f"{service.web_url}/{path}", timeout=60) as answer:
            texts[path] = answer.read().decode()
    with service.store.engine.connect() as connection:
        tables = sa.inspect(connection).get_table_names()
        rows = {table: str(connection.execute(sa.text(f"SELECT * FROM {table}")).fetchall()) for table in tables}
    assert len(rows["jobs"]) > 100
    named = {table: rows.pop(table) for table in may_name}
    for where, text in (texts | rows).items():
        assert "MARKER" not in text.upper(), where
    return named
