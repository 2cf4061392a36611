from __future__ import annotations

import pytest
from ingest_support import InProcess

from daemon.receive.association import BlockingReceiver
from daemon.receive.pynetdicom_receiver import StockReceiver


@pytest.fixture(params=[BlockingReceiver, StockReceiver])
def start(request, tmp_path):
    """Starts a receiver, of one kind and then of the other, with the settings that a test needs."""
    started = []

    def _start(**listener):
        started.append(InProcess(request.param, tmp_path, **listener))
        return started[-1]

    yield _start
    for receiver in started:
        receiver.stop()
