"""The daemon as a child process with a data folder of its own: for `braingemma demo` and for the tests."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil
import sqlalchemy as sa

from daemon.config.load import load_settings
from daemon.database.engine import create_tables, database_url, make_engine
from daemon.database.tables import FINAL_STATES
from daemon.deliver.dimse import DimseClient, Peer
from daemon.deliver.outgoing import Outgoing
from daemon.errors import DaemonError
from daemon.jobs.folder import JobFolder
from daemon.jobs.store import Job, JobStore
from daemon.observe.status import ServiceStatus
from daemon.trial.pacs import LOOPBACK

START_SECONDS = 300

STILL_SECONDS = 60.0
"""A service that was told to end and computes nothing for so long is killed."""


def toml(sections: Mapping[str, Any]) -> str:
    """Sections of plain values, and lists of sections, as TOML (JSON's literals are TOML's, too)."""
    lines: list[str] = []
    for name, section in sections.items():
        for header, table in (
            [(f"[[{name}]]", t) for t in section] if isinstance(section, list) else [(f"[{name}]", section)]
        ):
            lines += [header, *(f"{key} = {json.dumps(value)}" for key, value in table.items()), ""]
    return "\n".join(lines)


class TrialService:
    """`braingemma serve` on loopback; may be killed and started again on the same folder."""

    def __init__(self, folder: Path, sections: Mapping[str, Any]) -> None:
        """Write the configuration.

        Args:
            folder: Takes the configuration, the log and the data folder.
            sections: Configuration beside `[storage]`; `[listener] port` may be left out.
        """
        self.folder = folder
        self.data = folder / "data"
        self.log = folder / "service.log"
        folder.mkdir(parents=True, exist_ok=True)
        self.configuration = folder / "braingemma.toml"
        self.configuration.write_text(
            toml(
                {
                    "web": {"port": 0},
                    **sections,
                    "storage": {"folder": str(self.data), "min_free_gb": 0, **sections.get("storage", {})},
                }
            )
        )
        self.settings = load_settings(self.configuration)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *, environment: Mapping[str, str] | None = None) -> None:
        """Start it and wait until it listens.

        Raises:
            DaemonError: it ended, or did not listen in time; the text has the end of its log.
        """
        status = self.settings.data.status
        status.unlink(missing_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "daemon.cli", "serve", "--config", str(self.configuration)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=None if environment is None else dict(environment),
            )
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            if status.exists():
                return
            time.sleep(0.05)
        tail = self.log.read_text(errors="replace")[-3000:]
        self.stop()
        raise DaemonError(f"the daemon did not listen within {START_SECONDS} s; its log ends:\n{tail}")

    @property
    def peer(self) -> Peer:
        """Where to send to."""
        status = ServiceStatus.read(self.settings.data.status)
        return Peer(self.settings.listener.ae_title, LOOPBACK, status.dicom_port)

    @property
    def web_url(self) -> str:
        """Where its page is."""
        status = ServiceStatus.read(self.settings.data.status)
        return f"http://{LOOPBACK}:{status.web_port}"

    def folder_of(self, job: Job) -> JobFolder:
        """The folder of one of its jobs."""
        return JobFolder(self.settings.data.job(job.job_id))

    @property
    def store(self) -> JobStore:
        """Its job tables."""
        create_tables(self._engine)
        return JobStore(self._engine)

    @cached_property
    def _engine(self) -> sa.Engine:
        """One for all readers: `stop` closes its connections."""
        return make_engine(database_url(self.settings.engine.database_url, self.settings.data))

    def send(self, files: Sequence[Path], calling_aet: str = "SENDER") -> None:
        """C-STORE files to it.

        Raises:
            DaemonError: one of them was not stored.
        """
        outcomes = DimseClient(self.peer, calling_aet).store([Outgoing.read(f) for f in files])
        failed = [o for o in outcomes if not o.stored]
        if failed:
            raise DaemonError(f"{len(failed)} of {len(outcomes)} instances not stored: {failed[0].reason}")

    def wait_for_jobs(
        self, count: int, *, seconds: float, on_poll: Callable[[list[Job]], None] | None = None
    ) -> list[Job]:
        """Wait until there are `count` jobs and all have ended.

        Args:
            count: Jobs.
            seconds: For so long nothing may change.
            on_poll: Told what there is.

        Raises:
            DaemonError: nothing changed for too long, or the daemon died.
        """
        store = self.store
        seen: object = None
        deadline = time.monotonic() + seconds
        while True:
            jobs = store.recent()
            if on_poll is not None:
                on_poll(jobs)
            if len(jobs) >= count and all(job.state in FINAL_STATES for job in jobs):
                return jobs
            if self.process is None or self.process.poll() is not None:
                raise DaemonError(
                    f"the daemon has ended; its log ends:\n{self.log.read_text(errors='replace')[-3000:]}"
                )
            now = [(job.job_id, job.state, job.step, job.progress) for job in jobs]
            if now != seen:
                seen, deadline = now, time.monotonic() + seconds
            if time.monotonic() > deadline:
                states = ", ".join(f"{j.job_id} {j.state} {j.step}" for j in jobs) or "none"
                raise DaemonError(f"expected {count} ended jobs, got after {seconds:.0f} s without a change: {states}")
            time.sleep(0.2)

    def kill(self) -> None:
        """SIGKILL, as a power cut would end it (the page cache survives)."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def stop(self) -> int | None:
        """SIGTERM, and wait; returns the exit code, which is that of SIGKILL where it stood still."""
        self._engine.dispose()
        if self.process is None:
            return None
        if self.process.poll() is None:
            self.process.terminate()
            wait_while_it_works(self.process)
        return self.process.returncode


def wait_while_it_works(process: subprocess.Popen[bytes]) -> None:
    """Wait for a process that was told to end, and kill it once it stands still: a busy machine only takes longer."""
    seconds, deadline = -1.0, 0.0
    while process.poll() is None:
        with suppress(psutil.NoSuchProcess):
            used = sum(psutil.Process(process.pid).cpu_times()[:2])
            if used > seconds:
                seconds, deadline = used, time.monotonic() + STILL_SECONDS
        if time.monotonic() > deadline:
            process.kill()
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.2)
