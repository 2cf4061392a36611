"""The one database: DBOS keeps its workflows in it, and the daemon its arrivals, jobs and deliveries."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from daemon.config.data_folder import DataFolder
from daemon.config.sections import Settings
from daemon.database.tables import metadata
from daemon.errors import Permanent
from daemon.files import make_private

BUSY_SECONDS = 30.0
"""How long a writer waits for SQLite's lock before it gets an error."""


PAUSE_SECONDS = 10.0
"""A connection that was used more lately is not tried before its next use."""


def database_url(url: str, data: DataFolder) -> str:
    """SQLAlchemy URL: `url` as configured, or SQLite in the data folder where it is empty."""
    if not url:
        return f"sqlite:///{data.database}"
    return url.replace("postgresql://", "postgresql+psycopg://", 1)


def make_engine(url: str, *, connections: int | None = None, lease_seconds: float | None = None) -> sa.Engine:
    """An engine whose commits are durable.

    SQLite: write-ahead log, synchronous=FULL (a commit survives a power cut), a busy timeout, and transactions
    that take the write lock with their first write, so that two writers wait for each other.

    Args:
        url: SQLAlchemy's.
        connections: At most so many to PostgreSQL, which are kept, for a process that uses them all the time; None:
            more for a while where many are needed at once.
        lease_seconds: After so long PostgreSQL ends a transaction whose process does nothing in it, as it is frozen or
            its host is gone: others need what it locks. None: never.
    """
    if url.startswith("sqlite"):
        return _make_sqlite(url)
    if connections is None:
        engine = sa.create_engine(url, pool_pre_ping=True)
    else:
        engine = sa.create_engine(url, pool_size=connections, max_overflow=0)
        _ping_after_a_pause(engine)
    if lease_seconds is not None:
        _end_idle_transactions(engine, lease_seconds)
    return engine


def _make_sqlite(url: str) -> sa.Engine:
    engine = sa.create_engine(url, connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False})

    @sa.event.listens_for(engine, "connect")
    def _set_up(connection: Any, _record: Any) -> None:
        # As DBOS, which shares this engine, sets it: the first write of a transaction takes the write lock.
        connection.isolation_level = "IMMEDIATE"
        for pragma in ("journal_mode=WAL", "synchronous=FULL", f"busy_timeout={BUSY_SECONDS * 1000:.0f}"):
            connection.execute(f"PRAGMA {pragma}")

    return engine


def _ping_after_a_pause(engine: sa.Engine) -> None:
    """Try a connection before its use, as `pool_pre_ping` does, but only where it was not used for a while.

    For a process that asks all the time this saves one round trip in four. What it meets where the server was started
    again a moment ago, work that is `patient` does again.
    """

    @sa.event.listens_for(engine, "connect")
    @sa.event.listens_for(engine, "checkin")
    def _note_use(_connection: Any, record: Any) -> None:
        record.info["used"] = time.monotonic()

    @sa.event.listens_for(engine, "checkout")
    def _try(connection: Any, record: Any, _proxy: Any) -> None:
        if time.monotonic() - record.info["used"] < PAUSE_SECONDS:
            return
        try:
            engine.dialect.do_ping(connection)
        except engine.dialect.loaded_dbapi.Error as error:
            raise sa.exc.InvalidatePoolError from error


def _end_idle_transactions(engine: sa.Engine, seconds: float) -> None:
    @sa.event.listens_for(engine, "connect")
    def _set_up(connection: Any, _record: Any) -> None:
        connection.execute(f"SET idle_in_transaction_session_timeout = {1000 * seconds:.0f}")
        connection.commit()


SCHEMA_LOCK = 7_361_024_501
"""PostgreSQL advisory lock under which one process at a time makes the tables."""
SCHEMA_PAUSE = 0.1
"""Seconds between two attempts to take it."""


@contextmanager
def schema_lock(engine: sa.Engine) -> Iterator[None]:
    """One process at a time, of those that share a PostgreSQL, may make tables in here.

    The others ask again and again: the engine's indexes are made concurrently, which waits for every statement that was
    under way, and so for ever for one that waits for this lock.
    """
    if engine.dialect.name != "postgresql":
        yield
        return
    aside = sa.create_engine(engine.url, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT")  # not one of the few
    with aside.connect() as connection:  # the lock goes with the connection
        while not connection.execute(sa.select(sa.func.pg_try_advisory_lock(SCHEMA_LOCK))).scalar_one():
            time.sleep(SCHEMA_PAUSE)
        yield


def create_tables(engine: sa.Engine) -> None:
    """Make the daemon's tables where they are missing."""
    with schema_lock(engine), engine.begin() as connection:
        metadata.create_all(connection)


def upsert(engine: sa.Engine, table: sa.Table, row: Mapping[str, Any], *, update: Iterable[str]) -> sa.Insert:
    """INSERT `row`; where its primary key exists, set the columns in `update` (none: leave the old row alone)."""
    insert = (sqlite.insert if engine.dialect.name == "sqlite" else postgresql.insert)(table).values(**row)
    changed = {name: row[name] for name in update}
    if not changed:
        return insert.on_conflict_do_nothing()
    return insert.on_conflict_do_update(index_elements=list(table.primary_key.columns), set_=changed)


def open_database(settings: Settings, *, connections: int | None = None) -> sa.Engine:
    """The daemon's database in its private folder, with its tables; `connections` as in `make_engine`."""
    make_private(settings.data.root)
    url = database_url(settings.engine.database_url, settings.data)
    engine = make_engine(url, connections=connections, lease_seconds=settings.engine.lease_seconds)
    try:
        create_tables(engine)
    except sa.exc.OperationalError:
        raise
    except sa.exc.DatabaseError as error:
        if engine.dialect.name != "sqlite":
            raise
        raise Permanent(damaged(engine, str(error.orig))) from error
    return engine


def check_database(engine: sa.Engine) -> None:
    """Look whether a SQLite is sound, before anything counts on it.

    Raises:
        Permanent: it is damaged; the text says what to do.
    """
    if engine.dialect.name != "sqlite":
        return
    try:
        with engine.connect() as connection:
            [said] = connection.execute(sa.text("PRAGMA quick_check(1)")).scalars().all()
    except sa.exc.OperationalError:
        raise  # locked, or the disk: not damaged
    except sa.exc.DatabaseError as error:
        said = str(error.orig)
    if said != "ok":
        raise Permanent(damaged(engine, said))


def damaged(engine: sa.Engine, said: str) -> str:
    """What to do about a damaged SQLite."""
    path, why = engine.url.database, " ".join(said.split())
    return (
        f"{path}: the database is damaged ({why}). Stop the service, move the file away with its -wal and -shm (keep "
        "them) or put a copy from a backup in its place, and start: what was received is found again in spool and "
        "job folders and reported again, and what the audit log calls sent is not sent again"
    )


def open_index(settings: Settings, engine: sa.Engine) -> sa.Engine:
    """The database that holds the index of this host's spool.

    The index names places in this host's files, so where several hosts share one database it stays beside the spool.

    Args:
        settings: The whole configuration.
        engine: The daemon's database.
    """
    if not settings.engine.database_url:
        return engine
    return _index_in(settings.data)


@functools.cache
def _index_in(data: DataFolder) -> sa.Engine:
    index = make_engine(f"sqlite:///{data.received_index}")
    create_tables(index)
    return index
