"""Is the service alive, and can it take and report studies: for `/healthz`, `/readyz` and systemd's watchdog."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import sqlalchemy as sa

from daemon.config.sections import Settings
from daemon.database.tables import JOBS, JobState

LONGEST_SILENCE = 120.0
"""A part that did not give a sign of life for this long, seconds, counts as stuck."""

GB = 1e9


@dataclass(eq=False)
class Health:
    """Signs of life of the service's parts."""

    settings: Settings
    engine: sa.Engine
    alive: dict[str, Callable[[], bool]] = field(default_factory=dict)
    """Part of the service to whether it runs."""
    told: Callable[[], list[str]] = list
    """What another process says about parts that run there."""
    _beats: dict[str, float] = field(default_factory=dict)
    _progress: tuple[object, float] = ((), 0.0)
    """What the unfinished jobs looked like when they last changed, and when that was, monotonic time."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def beat(self, part: str) -> None:
        """A sign of life from a part that works in a loop."""
        with self._lock:
            self._beats[part] = time.monotonic()

    def faults(self) -> list[str]:
        """What does not run: the service should be started again. Empty: all is well."""
        dead = [f"{part} does not run" for part, runs in self.alive.items() if not runs()]
        with self._lock:
            silent = [part for part, last in self._beats.items() if time.monotonic() - last > LONGEST_SILENCE]
        return self.told() + dead + [f"{part} has given no sign of life for {LONGEST_SILENCE:.0f} s" for part in silent]

    def stalled(self) -> list[str]:
        """Whether work waits and none of it makes progress. Empty: it does, or there is none.

        Judged from one question to the next: the first that finds a state remembers since when.
        """
        unfinished = JOBS.c.state.in_([str(JobState.QUEUED), str(JobState.RUNNING)])
        query = sa.select(sa.func.count(), sa.func.max(JOBS.c.updated), sa.func.min(JOBS.c.created)).where(unfinished)
        try:
            with self.engine.connect() as connection:
                found = tuple(connection.execute(query).one())
        except sa.exc.SQLAlchemyError:
            return []  # said among the obstacles
        limit = self.settings.engine.step_seconds / 2
        with self._lock:
            now = time.monotonic()
            if found[0] == 0 or found != self._progress[0]:
                self._progress = (found, now)
            silent = now - self._progress[1]
        return [f"{found[0]} jobs wait, and none made progress for {silent:.0f} s"] if silent > limit else []

    def obstacles(self) -> list[str]:
        """Why no study can be taken just now. Empty: ready."""
        found = self.faults() + self.stalled()
        try:
            with self.engine.connect() as connection:
                connection.execute(sa.select(1))
        except sa.exc.SQLAlchemyError as error:
            found.append(f"the database does not answer: {type(error).__name__}")
        free = shutil.disk_usage(self.settings.storage.folder).free / GB
        least = self.settings.storage.min_free_gb
        if free < least:
            found.append(f"{free:.1f} GB free, expected at least {least:g} GB")
        return found
