"""Which processes work, kept in the database they share: a lease for each, renewed by a heartbeat.

A process that is silent for `engine.lease_seconds` may lose its lease to another one that looks, and its unfinished
workflows go back to their queues. One that was frozen and comes back finds by its own clock that its lease may be over,
before it can write anything, and waits until it is renewed; where another has taken it over, it ends itself, and
whoever started it starts it anew. A database that is away is no reason to end: nobody can take anything over
meanwhile, and after it nobody is judged by a silence that was the database's. PostgreSQL's clock decides when a lease
is over, so the hosts' clocks need not agree. Only for PostgreSQL: with SQLite there is one process.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from dataclasses import dataclass, field
from typing import NoReturn

import sqlalchemy as sa

from daemon.database.tables import EXECUTORS
from daemon.engine.client import engine_client, engine_has_run
from daemon.engine.identifiers import DELIVERY_WORKFLOW, DESTINATION_QUEUE, REPORT_QUEUE, REPORT_WORKFLOW
from daemon.engine.recovery import count_deaths
from daemon.errors import ConfigurationError

log = logging.getLogger(__name__)

EXIT_FENCED = 75
"""Exit status of a process that lost its lease (EX_TEMPFAIL: start it again)."""

TAKEOVER_LOCK = 7_361_024_502
"""PostgreSQL advisory lock under which one process at a time hands a dead one's work on."""

RECEIVER_LOCK = 7_361_024_503
"""PostgreSQL advisory lock that the one receiver holds."""

KEEPALIVE = {"tcp_keepalives_idle": 20, "tcp_keepalives_interval": 10, "tcp_keepalives_count": 3}
"""After how many seconds the server notices that a receiver's host is gone, and lets its lock go."""

RECEIVER_PATIENCE = 75.0
"""Seconds for which a receiver that starts waits for one before it to be noticed as gone."""

OWN_SHARE = 0.7
"""Of the lease: for this long a process trusts it; others wait the whole of it before they take over."""

BEATS_PER_LEASE = 5

QUEUES = {REPORT_WORKFLOW: REPORT_QUEUE, DELIVERY_WORKFLOW: DESTINATION_QUEUE}
"""Where unfinished workflows of each name go back to; a delivery keeps its destination's partition there."""


ALIVE = "alive"

LEFT = "left"
"""It ended in order, and gave its work back."""

DEAD = "dead"
"""It was silent too long."""
_NOW = sa.cast(sa.extract("epoch", sa.func.clock_timestamp()), sa.Double)


@dataclass(eq=False)
class Lease:
    """The right of this process to work as `executor_id`."""

    engine: sa.Engine
    executor_id: str
    seconds: float
    follows_a_death: bool = False
    """Whether a process of this name ended without giving its lease back; known once it is taken."""
    _epoch: int = 0
    _valid_until: float = 0.0
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _renewed: threading.Condition = field(default_factory=threading.Condition)
    _judges_from: float = 0.0
    """Monotonic time from which the silence of others is theirs, and not the database's."""

    def take(self) -> None:
        """Begin to hold it; waits for the lease of a process of this name that died, at most one lease and a bit.

        Raises:
            ConfigurationError: a living process works under this name.
        """
        deadline = time.monotonic() + 1.5 * self.seconds
        while not self._try_to_take():
            if time.monotonic() > deadline:
                raise ConfigurationError(f"a worker named {self.executor_id!r} is alive: give each a name of its own")
            time.sleep(self.seconds / BEATS_PER_LEASE)
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()

    def _try_to_take(self) -> bool:
        started = time.monotonic()
        with self.engine.begin() as connection:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(TAKEOVER_LOCK)))
            row = connection.execute(self._mine().add_columns(_NOW.label("now")).with_for_update()).one_or_none()
            if row is not None and row.state == ALIVE and row.now - row.beat < self.seconds:
                return False
            self.follows_a_death = row is not None and row.state != LEFT
            self._epoch = 1 if row is None else row.epoch + 1
            values = {"epoch": self._epoch, "state": ALIVE, "beat": _NOW, "pid": os.getpid()}
            if row is None:
                connection.execute(sa.insert(EXECUTORS).values(executor_id=self.executor_id, **values))
            else:
                mine = EXECUTORS.c.executor_id == self.executor_id
                connection.execute(sa.update(EXECUTORS).where(mine).values(**values))
        self._valid_until = started + OWN_SHARE * self.seconds
        return True

    def check(self) -> None:
        """Wait until the process may work, at once as a rule; costs no look at the database."""
        with self._renewed:
            if time.monotonic() > self._valid_until:
                log.warning("the lease may be over, as of a frozen process or of a database that is away: work waits")
            while time.monotonic() > self._valid_until:
                self._renewed.wait()

    def check_in(self, connection: sa.Connection) -> None:
        """As `check`, and keep others from taking over until the transaction ends; where one has, end the process."""
        self.check()
        if connection.execute(self._mine().with_for_update()).one_or_none() is None or not self._holds(connection):
            self._end("another process has taken its work over")

    def give_back(self) -> None:
        """Stop holding it: others take unfinished work over at once; where the database is away, a lease later."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(1.0)  # a beat under way keeps a connection that whoever disposes the engine cannot close
        try:
            with self.engine.begin() as connection:
                connection.execute(sa.update(EXECUTORS).where(*self._me()).values(state=LEFT))
        except sa.exc.SQLAlchemyError as error:
            log.warning("the lease is not given back, it runs out: %s", type(error).__name__)

    def alive(self) -> bool:
        """Whether the heartbeat runs."""
        return self._thread is not None and self._thread.is_alive()

    def _keep(self) -> None:
        while not self._stop.wait(self.seconds / BEATS_PER_LEASE):
            self._beat()

    def _beat(self) -> None:
        """Renew it, and take over from those that are silent too long."""
        started = time.monotonic()
        try:
            with self.engine.begin() as connection:
                renewed = connection.execute(sa.update(EXECUTORS).where(*self._me()).values(beat=_NOW)).rowcount
            if not renewed and not self._stop.is_set():
                self._end("another process has taken its work over")
            with self._renewed:
                self._valid_until = started + OWN_SHARE * self.seconds
                self._renewed.notify_all()
            if started >= self._judges_from:
                take_over_from_dead(self.engine, self.seconds, but=self.executor_id)
        except sa.exc.SQLAlchemyError as error:
            self._judges_from = time.monotonic() + self.seconds
            log.warning("the lease cannot be renewed: %s", type(error).__name__)

    def _mine(self) -> sa.Select[tuple[object, ...]]:
        return sa.select(EXECUTORS).where(EXECUTORS.c.executor_id == self.executor_id)

    def _me(self) -> tuple[sa.ColumnElement[bool], ...]:
        return (
            EXECUTORS.c.executor_id == self.executor_id,
            EXECUTORS.c.epoch == self._epoch,
            EXECUTORS.c.state == ALIVE,
        )

    def _holds(self, connection: sa.Connection) -> bool:
        return connection.execute(sa.select(EXECUTORS.c.epoch).where(*self._me())).one_or_none() is not None

    def _end(self, why: str) -> NoReturn:
        log.error("this process ends itself: %s", why)
        logging.shutdown()
        os._exit(EXIT_FENCED)


class SoleReceiver:
    """The right to be the receiver of a PostgreSQL: alone, or among others with which this one shares a folder.

    Without a shared folder a second one would know nothing of the first one's images, and half a study would be taken
    for all of it. The lock is the connection's, so it goes when the process does.
    """

    def __init__(self, engine: sa.Engine, *, shared: bool = False) -> None:
        self._engine = engine
        self._try_lock = sa.func.pg_try_advisory_lock_shared if shared else sa.func.pg_try_advisory_lock
        self._connection: sa.Connection | None = None

    def hold(self, *, patience: float = RECEIVER_PATIENCE) -> None:
        """Take it, or take it again where the connection broke; waits for one that dies.

        Raises:
            ConfigurationError: another process holds it.
            sqlalchemy.exc.OperationalError: the database does not answer.
        """
        deadline = time.monotonic() + patience
        while not self._holds():
            if time.monotonic() > deadline:
                raise ConfigurationError(
                    "another `braingemma serve` receives for this database: several need storage.shared_url, a folder "
                    "that all hosts see, on each of them; or run `braingemma worker` on the others"
                )
            time.sleep(0.5)

    def _holds(self) -> bool:
        if self._connection is not None:
            try:
                return self._try()
            except sa.exc.OperationalError:  # the server was away meanwhile, and the lock went with the connection
                self.let_go()
        self._connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        for name, seconds in KEEPALIVE.items():
            self._connection.execute(sa.select(sa.func.set_config(name, str(seconds), False)))
        return self._try()

    def _try(self) -> bool:
        assert self._connection is not None
        return bool(self._connection.execute(sa.select(self._try_lock(RECEIVER_LOCK))).scalar_one())

    def let_go(self) -> None:
        """Let others have it."""
        if self._connection is not None:
            self._connection.invalidate()
            self._connection.close()
            self._connection = None


def _may_take_over(connection: sa.Connection) -> bool:
    """Whether nobody else is taking over just now: a heartbeat waits for nobody, who may be frozen himself."""
    return bool(connection.execute(sa.select(sa.func.pg_try_advisory_xact_lock(TAKEOVER_LOCK))).scalar_one())


def take_over_from_dead(engine: sa.Engine, seconds: float, *, but: str = "") -> list[str]:
    """Mark processes that have been silent too long, and put unfinished workflows of the dead back into their queues.

    Args:
        engine: The daemon's database.
        seconds: Length of a lease.
        but: Who looks, and so lives, though its last sign of life may be old on a machine that is slow.

    Returns:
        The workflows that were put back.
    """
    with engine.begin() as connection:
        if not _may_take_over(connection):
            return []
        silent = (EXECUTORS.c.state == ALIVE, EXECUTORS.c.beat < _NOW - seconds, EXECUTORS.c.executor_id != but)
        # One that was frozen in the middle of a transaction holds its row until the server ends that: it waits.
        free = sa.select(EXECUTORS.c.executor_id).where(*silent).with_for_update(skip_locked=True)
        found_silent = connection.execute(free).scalars().all()
        connection.execute(sa.update(EXECUTORS).where(EXECUTORS.c.executor_id.in_(found_silent)).values(state=DEAD))
        gone = EXECUTORS.c.state.in_([DEAD, LEFT])
        dead = connection.execute(sa.select(EXECUTORS.c.executor_id).where(gone)).scalars().all()
    if not dead or not engine_has_run(engine):
        return []
    with engine.begin() as connection, engine_client(engine) as client:
        if not _may_take_over(connection):
            return []
        still = sa.select(EXECUTORS).where(EXECUTORS.c.state.in_([DEAD, LEFT]), EXECUTORS.c.executor_id.in_(dead))
        rows = connection.execute(still).all()
        dead = [row.executor_id for row in rows]
        if not dead:
            return []
        for row in rows:
            if row.state == DEAD:
                count_deaths(engine, row.executor_id)
        found = client.list_workflows(status="PENDING", executor_id=list(dead), load_input=False, load_output=False)
        for workflow in found:
            # Without its queue's name it would run outside the queue, and so beside another on the same GPU.
            client.resume_workflow(workflow.workflow_id, queue_name=QUEUES[workflow.name])
            log.warning("workflow %s is taken over from %s, which is dead", workflow.workflow_id, workflow.executor_id)
    return [workflow.workflow_id for workflow in found]
