"""How the service ends: by a job that kills it, by a fault of its own, in order; the model process is a small one."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e_support import sections
from ingest_support import make_series, save, wait_until
from steps_support import QUICK_STEPS, replace_steps

from daemon.errors import DaemonError
from daemon.trial.daemon import TrialService
from daemon.trial.pacs import free_port

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

DEADLY = 3
"""A study of so many slices kills the service that works on it."""

DEADLY_STEPS = QUICK_STEPS.replace(
    '        if step == "select":\n',
    f'        if step == "convert" and len(list(folder.input.iterdir())) == {DEADLY}:\n'
    "            import os, signal, time\n"
    "            os.kill(os.getppid(), signal.SIGKILL)\n"
    "            time.sleep(600)\n"
    '        if step == "select":\n',
)

ENDLESS = 7
"""In one step of a study of so many slices nothing ever happens."""
DEADLY_STEPS = DEADLY_STEPS.replace(
    '        if step == "select":\n',
    f'        if step == "convert" and len(list(folder.input.iterdir())) == {ENDLESS}:\n'
    "            import time\n"
    "            time.sleep(3600)\n"
    '        if step == "select":\n',
    1,
)
FULL_DISK = """
import errno, sys
from daemon.cli.__main__ import main
from daemon.observe.status import ServiceStatus

def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")

ServiceStatus.write = full
main()
"""

BROKEN = """
import sys
from pathlib import Path
from daemon.assemble.assembler import Assembler
from daemon.config.load import load_settings
from daemon.service.serve import serve

def fail(*_):
    raise ZeroDivisionError("deep in the assembler")

Assembler.run = fail
serve(load_settings(Path(sys.argv[1])))
"""


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TrialService]:
    replace_steps(tmp_path / "overlay", DEADLY_STEPS, monkeypatch)
    trial = TrialService(tmp_path / "daemon", sections(free_port(), destinations=[]))
    yield trial
    trial.stop()


def study(folder: Path, slices: int) -> list[Path]:
    folder.mkdir()
    return [save(dataset, folder / f"{n}.dcm") for n, dataset in enumerate(make_series(slices))]


def test_a_job_that_kills_the_service_twice_is_set_aside_and_the_next_one_runs(
    service: TrialService, tmp_path: Path
) -> None:
    service.start()
    service.send(study(tmp_path / "deadly", DEADLY))
    assert service.process is not None
    assert service.process.wait(300) == -signal.SIGKILL
    with contextlib.suppress(DaemonError):  # it goes on with the job, perhaps before it listens
        service.start()
    assert service.process.wait(300) == -signal.SIGKILL
    service.start()
    service.send(study(tmp_path / "good", DEADLY + 1))
    second, first = service.wait_for_jobs(2, seconds=300)
    assert (str(second.state), second.reason) == ("done", "")
    assert str(first.state) == "set_aside"
    assert "ended 2 times without a word in step convert" in first.reason
    assert service.stop() == 0
    assert service.settings.data.lock.read_text() == ""


@pytest.mark.parametrize("fault", ["its port is taken", "its data folder lies on a full disk"])
def test_a_fault_while_it_starts_ends_it_though_a_step_is_at_work(
    service: TrialService, tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By then its engine goes on with what a service before it had begun, and Python waits for all threads."""
    service.start()
    service.send(study(tmp_path / "endless", ENDLESS))
    wait_until(lambda: [job.step for job in service.store.recent()] == ["convert"])
    service.kill()
    reason, status, program = "cannot listen on", 2, ["-m", "daemon.cli"]
    with socket.socket() as taken:
        if fault == "its port is taken":
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            monkeypatch.setenv("BRAINGEMMA_LISTENER__PORT", str(taken.getsockname()[1]))
        else:
            reason, status, program = "No space left on device: the disk is full", 1, ["-c", FULL_DISK]
        done = subprocess.run(
            [sys.executable, *program, "serve", "--config", str(service.configuration)],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=600,
        )  # fmt: skip
    assert (done.returncode, "Traceback" in done.stderr) == (status, False), done.stderr
    assert reason in done.stderr
    assert service.settings.data.lock.read_text() == "", "no job is to blame for it"


def test_a_fault_of_its_own_gives_another_exit_status_than_an_end_in_order(service: TrialService) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BROKEN, str(service.configuration)],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 1
    assert "the assembler failed" in done.stderr
    assert service.settings.data.lock.read_text() == "", "no job is to blame for it"
