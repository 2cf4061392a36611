"""The one database: DBOS keeps its workflows in it, and the daemon its arrivals, jobs and deliveries."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from daemon.config.sections import Settings
from daemon.database.tables import metadata
from daemon.files import make_private


def database_url(url: str, folder: Path) -> str:
    """SQLAlchemy URL: `url` as configured, or SQLite in the data folder where it is empty."""
    if not url:
        return f"sqlite:///{folder / 'daemon.sqlite'}"
    return url.replace("postgresql://", "postgresql+psycopg://", 1)


def make_engine(url: str) -> sa.Engine:
    """An engine whose commits are durable.

    SQLite: write-ahead log, synchronous=FULL (a commit survives a power cut), 30 s busy timeout, and transactions
    that take the write lock with their first write, so that two writers wait for each other.
    """
    if not url.startswith("sqlite"):
        return sa.create_engine(url, pool_pre_ping=True)
    engine = sa.create_engine(url, connect_args={"timeout": 30, "check_same_thread": False})

    @sa.event.listens_for(engine, "connect")
    def _set_up(connection: Any, _record: Any) -> None:
        # As DBOS, which shares this engine, sets it: the first write of a transaction takes the write lock.
        connection.isolation_level = "IMMEDIATE"
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=30000"):
            connection.execute(f"PRAGMA {pragma}")

    return engine


SCHEMA_LOCK = 7_361_024_501
"""PostgreSQL advisory lock under which one process at a time brings the tables up to date."""


@contextmanager
def schema_lock(engine: sa.Engine) -> Iterator[None]:
    """One process at a time, of those that share a PostgreSQL, may bring tables up to date in here."""
    if engine.dialect.name != "postgresql":
        yield
        return
    with engine.connect() as connection:
        connection.execute(sa.select(sa.func.pg_advisory_lock(SCHEMA_LOCK)))
        connection.commit()
        try:
            yield
        finally:
            connection.execute(sa.select(sa.func.pg_advisory_unlock(SCHEMA_LOCK)))
            connection.commit()


def create_tables(engine: sa.Engine) -> None:
    """Bring the daemon's tables up to date: what an earlier version made keeps its rows.

    A new column must have a default or allow NULL; columns are never renamed or dropped, so that the version before
    this one can still open the database.
    """
    with schema_lock(engine), engine.begin() as connection:
        metadata.create_all(connection)
        _add_what_is_missing(connection)


def _add_what_is_missing(connection: sa.Connection) -> None:
    """Columns and indexes that tables of an earlier version lack."""
    inspector = sa.inspect(connection)
    for table in metadata.sorted_tables:
        there = {column["name"] for column in inspector.get_columns(table.name)}
        for column in table.columns:
            if column.name not in there:
                connection.execute(sa.DDL(f"ALTER TABLE {table.name} ADD COLUMN {_definition(connection, column)}"))
        indexes = {index["name"] for index in inspector.get_indexes(table.name)}
        for index in table.indexes:
            if index.name not in indexes:
                index.create(connection)


def _definition(connection: sa.Connection, column: sa.Column[Any]) -> str:
    """A column as ALTER TABLE adds it; its Python default becomes the value of the rows that are there."""
    text = f"{column.name} {column.type.compile(connection.dialect)}"
    if column.default is not None and column.default.is_scalar:
        value = sa.literal(column.default.arg, column.type)  # type: ignore[attr-defined]
        text += f" DEFAULT {value.compile(dialect=connection.dialect, compile_kwargs={'literal_binds': True})}"
    return text if column.nullable else f"{text} NOT NULL"


def upsert(engine: sa.Engine, table: sa.Table, row: Mapping[str, Any], *, update: Iterable[str]) -> sa.Insert:
    """INSERT `row`; where its primary key exists, set the columns in `update` (none: leave the old row alone)."""
    insert = (sqlite.insert if engine.dialect.name == "sqlite" else postgresql.insert)(table).values(**row)
    changed = {name: row[name] for name in update}
    if not changed:
        return insert.on_conflict_do_nothing()
    return insert.on_conflict_do_update(index_elements=list(table.primary_key.columns), set_=changed)


def open_database(settings: Settings) -> sa.Engine:
    """The daemon's database in its private folder, with its tables."""
    make_private(settings.storage.folder)
    engine = make_engine(database_url(settings.engine.database_url, settings.storage.folder))
    create_tables(engine)
    return engine


def open_index(settings: Settings, engine: sa.Engine) -> sa.Engine:
    """The database that holds the index of this host's spool.

    The index names places in this host's files, so where several hosts share one database it stays beside the spool.

    Args:
        settings: The whole configuration.
        engine: The daemon's database.
    """
    if not settings.engine.database_url:
        return engine
    return _index_in(settings.storage.folder)


@functools.cache
def _index_in(folder: Path) -> sa.Engine:
    index = make_engine(f"sqlite:///{folder / 'received.sqlite'}")
    create_tables(index)
    return index
