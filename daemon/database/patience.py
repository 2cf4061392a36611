"""Work that waits for a database that is away or locked, in place of failing by it."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import sqlalchemy as sa

log = logging.getLogger(__name__)

DATABASE_PATIENCE = 600.0
"""Seconds for which work waits for a database that does not answer."""

DATABASE_PAUSE = 1.0
"""Seconds between two attempts to reach it."""

P = ParamSpec("P")
T = TypeVar("T")


def patient(work: Callable[P, T]) -> Callable[P, T]:
    """The work, done again while the database does not answer: nothing of a study is lost by that but time."""

    @functools.wraps(work)
    def insistent(*args: P.args, **kwargs: P.kwargs) -> T:
        deadline = time.monotonic() + DATABASE_PATIENCE
        while True:
            try:
                return work(*args, **kwargs)
            except sa.exc.SQLAlchemyError as error:
                if not may_pass(error) or time.monotonic() > deadline:
                    raise
                log.warning("the database does not answer (%s); tried again", cause(error))
                time.sleep(DATABASE_PAUSE)

    return insistent


def may_pass(error: Exception) -> bool:
    """Whether the database was away, locked or slow, and not asked for something that it cannot do."""
    if isinstance(error, sa.exc.TimeoutError):  # all connections of this process wait for an answer
        return True
    if not isinstance(error, sa.exc.DBAPIError):
        return False
    return isinstance(error, (sa.exc.OperationalError, sa.exc.InterfaceError)) or error.connection_invalidated


def cause(error: sa.exc.SQLAlchemyError) -> str:
    """The kind of an error in one word: the driver's where it has one."""
    return type(getattr(error, "orig", None) or error).__name__
