"""Strangers at the page: what they hold open there, and what ends it, leaves receiving and health as they were."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from e2e_support import processes_of, sections
from ingest_support import make_series, save, wait_until
from steps_support import QUICK_STEPS, replace_steps

from daemon.service.page import MOST_FILES
from daemon.trial.daemon import TrialService
from daemon.trial.pacs import free_port

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

STRANGERS = 1200
CONNECT = """
import resource, socket, sys
_, most = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
held = [socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=240) for _ in range(int(sys.argv[2]))]
print(len(held), flush=True)
sys.stdin.read()
"""
"""In a process of its own, as senders use select(2), which knows 1,024 handles."""


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TrialService]:
    replace_steps(tmp_path / "overlay", QUICK_STEPS, monkeypatch)
    trial = TrialService(tmp_path / "daemon", sections(free_port(), destinations=[]))
    yield trial
    trial.stop()


def study(folder: Path) -> list[Path]:
    folder.mkdir()
    return [save(dataset, folder / f"{n}.dcm") for n, dataset in enumerate(make_series(3))]


def health(service: TrialService) -> bytes:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{service.web_url}/healthz", timeout=240) as answer:
        return bytes(answer.read())


def test_twelve_hundred_idle_connections_to_the_page_cost_the_listener_nothing(
    service: TrialService, tmp_path: Path
) -> None:
    service.start()
    assert health(service) == b"alive\n"
    first, second = (study(tmp_path / name) for name in ("first", "second"))
    before = {name: process.pid for name, process in processes_of(service).items()}
    handles = psutil.Process(before["service"]).num_fds()
    port = int(service.web_url.rsplit(":", 1)[1])
    command = [sys.executable, "-c", CONNECT, str(port), str(STRANGERS)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as strangers:
        assert strangers.stdin is not None
        assert strangers.stdout is not None
        assert strangers.stdout.readline() == f"{STRANGERS}\n"
        service.send(first)
        assert health(service) == b"alive\n"
        processes = processes_of(service)
        assert processes["daemon.service.page"].num_fds() < MOST_FILES
        assert processes["service"].num_fds() < handles + 64
        os.kill(processes["daemon.service.page"].pid, signal.SIGKILL)
        service.send(second)
        strangers.stdin.close()
    wait_until(lambda: processes_of(service).get("daemon.service.page", processes["service"]).pid
               not in (before["service"], before["daemon.service.page"]), seconds=240)  # fmt: skip
    assert health(service) == b"alive\n"
    after = {name: process.pid for name, process in processes_of(service).items()}
    for same in ("service", "daemon.receive.processes"):
        assert after[same] == before[same]
    jobs = service.wait_for_jobs(2, seconds=300)
    assert [str(job.state) for job in jobs] == ["done", "done"]
    assert service.stop() == 0
