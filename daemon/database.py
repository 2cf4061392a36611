"""The one database: DBOS keeps its workflows in it, and the daemon its arrivals, jobs and deliveries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from daemon.config import Settings
from daemon.folders import make_private

metadata = sa.MetaData()
"""All tables of the daemon register here; `create_tables` makes them."""


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


def create_tables(engine: sa.Engine) -> None:
    """Make the daemon's tables where they are missing."""
    metadata.create_all(engine)


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
