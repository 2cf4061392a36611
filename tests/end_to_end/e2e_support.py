"""What several end-to-end tests need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
