"""Pulls and their studies in the database: what the puller, the command line and the page know of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import sqlalchemy as sa
from pydicom import Dataset

from daemon.database.tables import PULLED, PULLS, PulledState, PullState
from daemon.errors import DaemonError
from daemon.jobs.store import now
from daemon.pull.asks import Ask
from dicom_io import header

HERE = (PulledState.FETCHING, PulledState.FETCHED)
"""Studies that are in flight."""
OPEN = (PulledState.WAITING, *HERE)


@dataclass(frozen=True)
class Pull:
    """One pull; times are seconds since the epoch, UTC."""

    pull_id: str
    source: str
    asked: tuple[Ask, ...]
    all_series: bool
    state: PullState
    searched: bool
    waits: str
    created: float
    updated: float


@dataclass(frozen=True)
class PulledStudy:
    """One study of a pull, or one thing that was asked for and not found."""

    pull_id: str
    position: int
    asked: str
    study_uid: str
    accession: str
    patient_id: str
    study_date: str
    state: PulledState
    reason: str
    series: tuple[dict[str, Any], ...]
    instances: int
    way: str
    attempts: int
    job_id: str
    started: float | None
    updated: float

    def to_json(self) -> dict[str, Any]:
        """As reports have it."""
        return {**asdict(self), "state": str(self.state), "series": list(self.series)}


@dataclass(frozen=True)
class Found:
    """One answer to what was asked for.

    Attributes:
        ask: What was asked for.
        study: As the PACS tells it; None where there is none.
        state: Whether it is to be fetched (`waiting`), or how it ended already.
        reason: Why it ended.
    """

    ask: Ask
    study: Dataset | None
    state: PulledState
    reason: str = ""


@dataclass(frozen=True)
class Progress:
    """How far a pull has come: one line of the page and of `braingemma pull list`."""

    pull: Pull
    counts: dict[PulledState, int] = field(default_factory=dict)

    @property
    def found(self) -> int:
        """Studies."""
        return sum(self.counts.values()) - self.counts.get(PulledState.NOT_FOUND, 0)

    @property
    def text(self) -> str:
        """In words."""
        if not self.pull.searched:
            said = "not searched yet"
        else:
            said = f"{self.counts.get(PulledState.REPORTED, 0)} of {self.found} reported"
            here = sum(self.counts.get(state, 0) for state in HERE)
            others = [f"{n} {state.replace('_', ' ')}" for state in _TOLD if (n := self.counts.get(state, 0))]
            said = ", ".join([said, *([f"{here} in flight"] if here else []), *others])
        return f"{said}; {self.pull.waits}" if self.pull.waits and self.pull.state is PullState.RUNNING else said


_TOLD = (PulledState.WAITING, PulledState.REFUSED, PulledState.FAILED, PulledState.NOT_FOUND, PulledState.CANCELLED)


class PullStore:
    """Reads and writes the two tables."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine

    def add(self, source: str, asked: Sequence[Ask], *, all_series: bool) -> str:
        """Record a pull; one for the same that has not ended is joined.

        Returns:
            Its id.
        """
        texts = sorted(ask.to_json() for ask in asked)
        same = (PULLS.c.source == source, PULLS.c.asked == json.dumps(texts),
                PULLS.c.all_series.is_(all_series))  # fmt: skip
        unfinished = PULLS.c.state.in_([PullState.RUNNING.value, PullState.PAUSED.value])
        with self.engine.begin() as connection:
            there = connection.execute(sa.select(PULLS.c.pull_id).where(*same, unfinished)).scalar()
            if there is not None:
                return str(there)
            number = connection.execute(sa.select(sa.func.count()).select_from(PULLS).where(*same)).scalar_one()
            identity = json.dumps([source, texts, all_series, number])
            pull_id = "p" + hashlib.sha256(identity.encode()).hexdigest()[:10]
            time = now()
            row = {
                "pull_id": pull_id, "source": source, "asked": json.dumps(texts), "all_series": all_series,
                "state": PullState.RUNNING.value, "searched": False, "waits": "", "created": time, "updated": time,
            }  # fmt: skip
            connection.execute(sa.insert(PULLS).values(**row))
        return pull_id

    def get(self, pull_id: str) -> Pull:
        """The pull.

        Raises:
            DaemonError: there is none of that id.
        """
        with self.engine.connect() as connection:
            row = connection.execute(sa.select(PULLS).where(PULLS.c.pull_id == pull_id)).one_or_none()
        if row is None:
            raise DaemonError(f"no pull {pull_id!r}; `braingemma pull list` shows what there is")
        return _pull(row)

    def pulls(self, states: Iterable[PullState] = tuple(PullState), *, limit: int = 1000) -> list[Pull]:
        """Pulls in these states, the newest first."""
        query = sa.select(PULLS).where(PULLS.c.state.in_([state.value for state in states]))
        with self.engine.connect() as connection:
            return [_pull(row) for row in connection.execute(query.order_by(PULLS.c.created.desc()).limit(limit))]

    def progress(self, pulls: Iterable[Pull]) -> list[Progress]:
        """How far they have come."""
        pulls = list(pulls)
        query = (
            sa.select(PULLED.c.pull_id, PULLED.c.state, sa.func.count().label("number"))
            .where(PULLED.c.pull_id.in_([pull.pull_id for pull in pulls]))
            .group_by(PULLED.c.pull_id, PULLED.c.state)
        )
        counts: dict[str, dict[PulledState, int]] = {}
        with self.engine.connect() as connection:
            for row in connection.execute(query):
                counts.setdefault(row.pull_id, {})[PulledState(row.state)] = row.number
        return [Progress(pull, counts.get(pull.pull_id, {})) for pull in pulls]

    def set_state(self, pull_id: str, state: PullState) -> None:
        """Pause, resume or cancel, as a person asks; what is fetched already is reported.

        Raises:
            DaemonError: no such pull, or one that has ended.
        """
        pull = self.get(pull_id)
        if pull.state in (PullState.DONE, PullState.CANCELLED):
            raise DaemonError(f"pull {pull_id} has ended ({pull.state})")
        with self.engine.begin() as connection:
            mine = (PULLS.c.pull_id == pull_id, PULLS.c.state == pull.state.value)
            changed = connection.execute(
                sa.update(PULLS).where(*mine).values(state=state.value, waits="", updated=now())
            )
            if not changed.rowcount:
                raise DaemonError(f"pull {pull_id} is no longer {pull.state}: look again")
            if state is PullState.CANCELLED:
                waiting = (PULLED.c.pull_id == pull_id, PULLED.c.state == PulledState.WAITING.value)
                values = {"state": PulledState.CANCELLED.value, "reason": "cancelled by request", "updated": now()}
                connection.execute(sa.update(PULLED).where(*waiting).values(**values))

    def note(self, pull_id: str, waits: str) -> None:
        """What it waits for."""
        with self.engine.begin() as connection:
            mine = (PULLS.c.pull_id == pull_id, PULLS.c.waits != waits)
            connection.execute(sa.update(PULLS).where(*mine).values(waits=waits, updated=now()))

    def finish(self, pull_id: str) -> bool:
        """End it where every study has ended; whether that is so."""
        still = sa.select(PULLED.c.pull_id).where(PULLED.c.state.in_([state.value for state in OPEN]))
        mine = (PULLS.c.pull_id == pull_id, PULLS.c.searched.is_(True), PULLS.c.pull_id.not_in(still))
        running = PULLS.c.state.in_([PullState.RUNNING.value, PullState.PAUSED.value])
        with self.engine.begin() as connection:
            values = {"state": PullState.DONE.value, "waits": "", "updated": now()}
            return bool(connection.execute(sa.update(PULLS).where(*mine, running).values(**values)).rowcount)

    def put_found(self, pull_id: str, found: Sequence[Found]) -> None:
        """Write down what a search found, once: not of a pull that was cancelled meanwhile.

        A study that one thing asked for takes is fetched, whatever another one refuses it for.
        """
        rows: list[dict[str, Any]] = []
        places: dict[str, int] = {}
        for one in found:
            row = self._row_of(pull_id, one)
            uid = row["study_uid"]
            place = places.setdefault(uid, len(rows)) if uid else len(rows)
            if place == len(rows):
                rows.append(row | {"position": place})
            elif rows[place]["state"] != PulledState.WAITING.value:
                rows[place] = row | {"position": place}
        with self.engine.begin() as connection:
            going = PULLS.c.state.in_([PullState.RUNNING.value, PullState.PAUSED.value])
            unsearched = (PULLS.c.pull_id == pull_id, PULLS.c.searched.is_(False), going)
            values = {"searched": True, "waits": "", "updated": now()}
            if connection.execute(sa.update(PULLS).where(*unsearched).values(**values)).rowcount and rows:
                connection.execute(sa.insert(PULLED), rows)

    def _row_of(self, pull_id: str, found: Found) -> dict[str, Any]:
        told = Dataset() if found.study is None else found.study
        return {
            "pull_id": pull_id, "asked": found.ask.label, "study_uid": header.uid(told, "StudyInstanceUID"),
            "accession": header.text(told, "AccessionNumber"), "patient_id": header.text(told, "PatientID"),
            "study_date": header.text(told, "StudyDate"), "state": found.state.value, "reason": found.reason,
            "series": "[]", "instances": 0, "way": "", "attempts": 0, "job_id": "", "started": None, "updated": now(),
        }  # fmt: skip

    def studies(self, pull_id: str, states: Iterable[PulledState] = tuple(PulledState)) -> list[PulledStudy]:
        """Studies of a pull in these states, in their order."""
        wanted = PULLED.c.state.in_([state.value for state in states])
        query = sa.select(PULLED).where(PULLED.c.pull_id == pull_id, wanted).order_by(PULLED.c.position)
        with self.engine.connect() as connection:
            return [study_of_row(row) for row in connection.execute(query)]

    def update(self, study: PulledStudy, state: PulledState | None = None, **values: Any) -> None:
        """Change what is known of a study."""
        if state is not None:
            values["state"] = state.value
        if "series" in values:
            values["series"] = json.dumps(values["series"], ensure_ascii=False)
        mine = (PULLED.c.pull_id == study.pull_id, PULLED.c.position == study.position)
        with self.engine.begin() as connection:
            connection.execute(sa.update(PULLED).where(*mine).values(updated=now(), **values))

    def begin(self, study: PulledStudy) -> PulledStudy | None:
        """Count an attempt at fetching.

        Returns:
            The study with it; None where a person paused or cancelled the pull since it was read.
        """
        running = sa.select(PULLS.c.pull_id).where(PULLS.c.state == PullState.RUNNING.value)
        mine = (PULLED.c.pull_id == study.pull_id, PULLED.c.position == study.position)
        still = (PULLED.c.state == study.state.value, PULLED.c.pull_id.in_(running))
        time = now()
        begun = replace(
            study, state=PulledState.FETCHING, attempts=study.attempts + 1, started=study.started or time, updated=time
        )
        values = {"state": begun.state.value, "attempts": begun.attempts, "started": begun.started, "updated": time}
        with self.engine.begin() as connection:
            changed = connection.execute(sa.update(PULLED).where(*mine, *still).values(**values)).rowcount
        return begun if changed else None

    def uncount(self, begun: PulledStudy, **values: Any) -> None:
        """What came in between was nothing of the study's: the attempt does not count."""
        self.update(begun, attempts=begun.attempts - 1, **values)

    def in_flight(self, source: str) -> list[PulledStudy]:
        """Studies of a source that are fetched or wait for their report."""
        with self.engine.connect() as connection:
            return [study_of_row(row) for row in connection.execute(self._in_flight(source))]

    def slots_taken(self, source: str) -> int:
        """How many of them count against `in_flight`: while a pull is paused nothing of it is fetched."""
        idle = (PULLS.c.state == PullState.PAUSED.value) & (PULLED.c.state == PulledState.FETCHING.value)
        counted = sa.select(sa.func.count()).select_from(self._in_flight(source).where(sa.not_(idle)).subquery())
        with self.engine.connect() as connection:
            return int(connection.execute(counted).scalar_one())

    def _in_flight(self, source: str) -> sa.Select[Any]:
        here = (PULLS.c.source == source, PULLED.c.state.in_([state.value for state in HERE]))
        return sa.select(PULLED).join(PULLS, PULLS.c.pull_id == PULLED.c.pull_id).where(*here)

    def last_started(self, source: str) -> float:
        """When a study of a source was last begun to be fetched; 0 for never."""
        query = (
            sa.select(sa.func.max(PULLED.c.started))
            .join(PULLS, PULLS.c.pull_id == PULLED.c.pull_id)
            .where(PULLS.c.source == source)
        )
        with self.engine.connect() as connection:
            return float(connection.execute(query).scalar() or 0.0)


def unfinished(engine: sa.Engine) -> list[Progress]:
    """Pulls that have not ended, the newest first."""
    store = PullStore(engine)
    return store.progress(store.pulls((PullState.RUNNING, PullState.PAUSED)))


def is_pulled(engine: sa.Engine, study_uid: str) -> bool:
    """Whether a study that arrives was fetched by a pull."""
    states = [state.value for state in HERE]
    query = sa.select(PULLED.c.pull_id).where(PULLED.c.study_uid == study_uid, PULLED.c.state.in_(states)).limit(1)
    with engine.connect() as connection:
        return connection.execute(query).scalar() is not None


def _pull(row: sa.Row[Any]) -> Pull:
    values = dict(row._mapping)
    asked = tuple(Ask.from_json(text) for text in json.loads(values["asked"]))
    return Pull(**{**values, "asked": asked, "state": PullState(values["state"])})


def study_of_row(row: sa.Row[Any]) -> PulledStudy:
    """A row of `PULLED`."""
    values = dict(row._mapping)
    return PulledStudy(
        **{**values, "series": tuple(json.loads(values["series"])), "state": PulledState(values["state"])}
    )
