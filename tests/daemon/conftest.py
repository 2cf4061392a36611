from __future__ import annotations

import pytest
from ingest_support import InProcess


@pytest.fixture
def start(tmp_path):
    """Starts receivers with the settings that a test needs."""
    started = []

    def _start(**listener):
        started.append(InProcess(tmp_path, **listener))
        return started[-1]

    yield _start
    for receiver in started:
        receiver.stop()
