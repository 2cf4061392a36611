"""`braingemma worker` as a process of a test."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import psutil

from daemon.engine.lease import EXIT_FENCED
from daemon.trial.daemon import wait_while_it_works

RESTART_SECONDS = 5.0
"""As `RestartSec` of the systemd unit."""


class Worker:
    """`braingemma worker`, started again as systemd does."""

    def __init__(self, configuration: Path, name: str, log: Path) -> None:
        self.name = name
        self.log = log
        self.ended: list[tuple[float, int]] = []
        """POSIX time and status of each end so far."""
        self.frozen: list[tuple[float, float]] = []
        """POSIX times between which it was frozen."""
        self._command = [sys.executable, "-m", "daemon.cli", "worker", "--name", name, "--config", str(configuration)]
        self._start_at = 0.0
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT
            )

    def keep(self) -> None:
        """Start it again where it lost its lease.

        Raises:
            AssertionError: it ended otherwise.
        """
        status = self.process.poll()
        assert status in (None, EXIT_FENCED), f"a worker ended with {status}: {self.log.read_text()[-2000:]}"
        if status == EXIT_FENCED:
            self.start()

    def keep_always(self) -> None:
        """Start it again after `RESTART_SECONDS`, whatever it ended by, which `ended` remembers; call it often."""
        status = self.process.poll()
        if status is None:
            return
        if not self._start_at:
            self.ended.append((time.time(), status))
            self._start_at = time.monotonic() + RESTART_SECONDS
        elif time.monotonic() > self._start_at:
            self._start_at = 0.0
            self.start()

    def kill(self) -> None:
        self.process.kill()

    def freeze(self) -> None:
        """Stop it with its model process, as a host that is suspended."""
        self.frozen.append((time.time(), float("inf")))
        for process in self._family():
            process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.frozen[-1] = (self.frozen[-1][0], time.time())
        for process in self._family():
            process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        if self.process.poll() is None:
            for process in self._family():
                process.send_signal(signal.SIGCONT)
            self.process.terminate()
            wait_while_it_works(self.process)

    def lines(self) -> list[dict[str, str]]:
        """Its log, where that is JSON."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def working(self) -> list[tuple[float, float]]:
        """POSIX times between which it was ready to work, as its log and `ended` say; the last end may be infinite."""
        begun = [
            datetime.fromisoformat(line["time"]).timestamp()
            for line in self.lines()
            if line["message"].startswith("working as")
        ]
        spans = []
        for start in begun:
            end = min((at for at, _ in self.ended if at > start), default=float("inf"))
            spans += _without((start, end), self.frozen)
        return spans

    def _family(self) -> list[psutil.Process]:
        me = psutil.Process(self.process.pid)
        return [me, *me.children()]


def _without(span: tuple[float, float], holes: list[tuple[float, float]]) -> list[tuple[float, float]]:
    spans = [span]
    for start, end in holes:
        spans = [part for a, b in spans for part in ((a, min(b, start)), (max(a, end), b)) if part[0] < part[1]]
    return spans
