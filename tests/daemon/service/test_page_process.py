"""The page's process: started again where it ends or stands still, and told how the service is."""

from __future__ import annotations

import http.client
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from ingest_support import wait_until

from daemon.config.sections import Settings
from daemon.database.engine import open_database
from daemon.observe import metrics
from daemon.observe.health import Health
from daemon.service import page as module
from daemon.service.page import PageProcess, ServiceWord

TOKEN = "a-token-of-length-32-or-so-abcde"
SECONDS = 240


class Page:
    """It, and the service's health that it shows."""

    def __init__(self, folder: Path) -> None:
        web = {"port": 0, "token": TOKEN}
        settings = Settings.model_validate({"storage": {"folder": folder, "min_free_gb": 0}, "web": web})
        self.engine = open_database(settings)
        self.health = Health(settings, self.engine)
        self.process = PageProcess(settings, "a banner", self.health)

    def ask(self, path: str) -> tuple[int, str]:
        self.process.keep()
        connection = http.client.HTTPConnection("127.0.0.1", self.process.port, timeout=SECONDS)
        connection.request("GET", path, headers={"Authorization": f"Bearer {TOKEN}", "Host": "localhost"})
        answer = connection.getresponse()
        text = answer.status, answer.read().decode()
        connection.close()
        return text


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    page = Page(tmp_path)
    yield page
    page.process.stop()
    page.engine.dispose()


def test_it_shows_what_the_service_tells_it(page: Page) -> None:
    """The token goes over standard input: it stands in no command line and no environment."""
    metrics.STEP_FAILURES.labels("select", "Made").inc()
    wait_until(lambda: page.ask("/healthz") == (200, "alive\n"), seconds=SECONDS)
    assert "a banner" in page.ask("/")[1]
    for place in ("cmdline", "environ"):
        assert TOKEN.encode() not in Path(f"/proc/{page.process.pid}/{place}").read_bytes()
    wait_until(lambda: 'step_failures_total{error="Made",step="select"} ' in page.ask("/metrics")[1], seconds=SECONDS)
    page.health.alive["assembler"] = lambda: False
    wait_until(lambda: page.ask("/healthz") == (503, "assembler does not run\n"), seconds=SECONDS)


def test_one_for_which_there_is_no_memory_is_started_later(
    page: Page, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "RESTART_SECONDS", 0.0)

    def fail(*_: object, **__: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr(module.subprocess, "Popen", fail)
        page.process.keep()
    assert "Cannot allocate memory" in caplog.text
    assert page.ask("/healthz")[0] == 200


def test_one_that_ends_or_stands_still_is_replaced(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RESTART_SECONDS", 0.0)
    assert page.ask("/healthz")[0] == 200
    before, restarts = page.process.pid, metrics.PAGE_RESTARTS._value.get()
    os.kill(before, signal.SIGKILL)

    def replaced(old: int) -> bool:
        page.process.keep()
        return page.process.pid not in (0, old)

    wait_until(lambda: replaced(before), seconds=SECONDS)
    assert page.ask("/healthz")[0] == 200
    wait_until(lambda: page.process._ready or page.process.keep() is not None, seconds=SECONDS)
    second = page.process.pid
    os.kill(second, signal.SIGSTOP)
    monkeypatch.setattr(module, "SILENT_SECONDS", 0.5)
    wait_until(lambda: replaced(second), seconds=SECONDS)
    monkeypatch.setattr(module, "SILENT_SECONDS", 60.0)
    assert page.ask("/healthz")[0] == 200
    assert metrics.PAGE_RESTARTS._value.get() == restarts + 2


def test_a_service_that_says_nothing_is_called_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    word = ServiceWord()
    word.take(b'{"faults": ["x"], "metrics": "y"}')
    assert (word.faults(), word.metrics()) == (["x"], b"y")
    monkeypatch.setattr(module, "SILENT_SECONDS", -1.0)
    assert word.faults()[0].startswith("the service has given no sign of life")


def test_a_service_that_is_killed_in_the_middle_of_a_line_takes_the_page_with_it(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert page.ask("/healthz")[0] == 200
    child = page.process._child
    assert child is not None
    assert child.stdin is not None
    wait_until(lambda: page.process.keep() is None and not page.process._unsent, seconds=SECONDS)
    os.write(child.stdin.fileno(), b'{"faults": [], "metr')
    child.stdin.close()
    assert child.wait(SECONDS) == 1
