"""Which studies are complete: quiet for long enough, no association open, no gap that may still be filled.

One that is being fetched from a PACS is not, however long nothing comes: the PACS may be away until tomorrow.

All waiting is measured by the monotonic clock of this process, from when an instance was first seen in the index: the
machine's clock may be set at any time, and senders' clocks say nothing. An instance that comes again is no news, so
that a sender which repeats one slice for ever cannot postpone a study.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from pydicom import Dataset

from daemon.assemble.gaps import TAGS, Gap, find_gaps
from daemon.assemble.part10 import MR_IMAGE, read_header
from daemon.config.sections import Assembly
from daemon.database.tables import COMPLETE_NOW, INSTANCES, OF_A_JOB, OPEN_ASSOCIATIONS, InstanceState
from daemon.observe.logs import tag

log = logging.getLogger(__name__)

GAP_PATIENCE = 3
"""A study with a gap in a series waits this many quiet times."""
Row = sa.Row[tuple[Any, ...]]


@dataclass
class _News:
    """What is known of a study that waits."""

    instances: int
    since: float
    """When that many instances were first seen, monotonic, s."""
    gaps: tuple[Gap, ...] | None = None
    """What its series seem to lack; None: not looked at yet."""


@dataclass(eq=False)
class Completeness:
    """Keeps the time of each study that waits in the index.

    Args:
        rules: `[assembly]`.
        engine: The database of the index.
        spool: Folder of the segments.
        jobs: Folder of the jobs, where instances lie that were handed over before.
        elsewhere: Studies of which another receiver still gets images.
    """

    rules: Assembly
    engine: sa.Engine
    spool: Path
    jobs: Path
    elsewhere: Callable[[], set[str]] = set
    _news: dict[str, _News] = field(default_factory=dict, init=False)
    _fetching: Set[str] = field(default_factory=frozenset, init=False)

    def look(self, now: float, fetching: Set[str] = frozenset()) -> None:
        """Note which studies have instances that were not there before.

        Args:
            now: Monotonic, s.
            fetching: Studies that are being fetched.
        """
        self._fetching = fetching
        pending = sa.select(INSTANCES.c.study_uid).where(INSTANCES.c.state == InstanceState.PENDING.value).distinct()
        query = (
            sa.select(INSTANCES.c.study_uid, sa.func.count().label("instances"))
            .where(INSTANCES.c.study_uid.in_(pending), INSTANCES.c.state.in_(OF_A_JOB))
            .group_by(INSTANCES.c.study_uid)
        )
        with self.engine.connect() as connection:
            found = {row.study_uid: row.instances for row in connection.execute(query)}
        self._news = {
            uid: known if (known := self._news.get(uid)) and known.instances == instances else _News(instances, now)
            for uid, instances in found.items()
        }

    def complete(self, now: float) -> tuple[str, ...]:
        """The studies that are to be handed over, the one that waits longest first."""
        with self.engine.connect() as connection:
            receiving = set(connection.execute(sa.select(OPEN_ASSOCIATIONS.c.study_uid)).scalars())
        receiving |= self.elsewhere()
        waiting = sorted(self._news.items(), key=lambda entry: entry[1].since)
        wanted = self._wanted()
        return tuple(
            uid
            for uid, news in waiting
            if self._is_complete(uid, news, now, wait=self._wait(uid, receiving), wanted=uid in wanted)
        )

    def _wanted(self) -> set[str]:
        """Studies that a person said are complete; those that were handed over since are forgotten."""
        with self.engine.connect() as connection:
            wanted = set(connection.execute(sa.select(COMPLETE_NOW.c.study_uid)).scalars())
        over = wanted - set(self._news)
        if over:
            with self.engine.begin() as connection:
                connection.execute(sa.delete(COMPLETE_NOW).where(COMPLETE_NOW.c.study_uid.in_(over)))
        return wanted - over

    def gaps(self, study_uid: str) -> tuple[Gap, ...]:
        """What the study's series seemed to lack when it was last judged."""
        news = self._news.get(study_uid)
        return (news.gaps or ()) if news is not None else ()

    def _wait(self, study_uid: str, receiving: Set[str]) -> float:
        """How long it must be quiet, s."""
        if study_uid in self._fetching:
            return math.inf
        longest = max(self.rules.max_wait_seconds, self.rules.quiet_seconds)
        return longest if study_uid in receiving else self.rules.quiet_seconds

    def _is_complete(self, study_uid: str, news: _News, now: float, *, wait: float, wanted: bool) -> bool:
        quiet = now - news.since
        if quiet < wait and not wanted:
            return False
        if news.gaps is None:
            news.gaps = self._find_gaps(study_uid)
        return wanted or not news.gaps or quiet >= GAP_PATIENCE * self.rules.quiet_seconds

    def _find_gaps(self, study_uid: str) -> tuple[Gap, ...]:
        """Nothing but patience depends on the answer: a study whose headers defeat the check is not kept waiting."""
        query = sa.select(INSTANCES).where(INSTANCES.c.study_uid == study_uid, INSTANCES.c.state.in_(OF_A_JOB))
        with self.engine.connect() as connection:
            rows = connection.execute(query).all()
        try:
            return self._gaps_of(rows)
        except Exception as error:  # noqa: BLE001 - senders write anything into headers, and the next study must go on
            log.warning("study %s: gaps cannot be looked for: %s", tag(study_uid), type(error).__name__)
            return ()

    def _gaps_of(self, rows: Sequence[Row]) -> tuple[Gap, ...]:
        headers: dict[str, list[Dataset]] = {}
        for row in rows:
            if row.sop_class_uid == MR_IMAGE:
                headers.setdefault(row.series_uid, []).append(read_header(self.spool, self.jobs, row, TAGS))
        return tuple(gap for uid, found in headers.items() for gap in find_gaps(uid, found))
