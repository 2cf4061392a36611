"""What several end-to-end tests need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil

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
