"""Who may hold a connection, and who an association: bounded, and shared so that no peer keeps the others out.

A connection that has not asked for an association is worth little: of one address a few may be silent, then the oldest
goes. Associations are `listener.max_associations` at most. Where all are taken, a newcomer that is welcome by its AE
title and address waits a moment, and an association goes that does nothing for its place: idle between two messages, or
sending more slowly than any network of today. It is one of the peer that has the most of them, and that peer has no
fewer than the newcomer's. While nobody waits, an association may be as idle or slow as `listener.idle_seconds` allows.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Protocol

SILENT_PER_PEER = 16
"""Of one address, so many connections may be silent; more push the oldest out."""
SILENT_SECONDS = 2.0
"""A connection is not called silent before."""
ADMIT_SECONDS = 8.0
"""How long a newcomer waits for a place."""
IDLE_SECONDS = 2.0
"""While somebody waits, an association may be idle for so long between two messages."""
SLOW_SECONDS = 3.0
"""Over so long a time the speed of an association is taken."""
LEAST_BYTES_PER_SECOND = 16 << 10
"""While somebody waits, what comes more slowly within a message goes."""


class Connection(Protocol):
    """What is to be known of a connection."""

    peer: str
    between_messages_since: float
    """Monotonic time at which the last message ended; infinite within a message."""
    answering: bool
    """Whether it waits for us, not we for it."""

    def received(self) -> int:
        """Bytes that came so far."""

    def has_input(self) -> bool:
        """Whether bytes wait to be read."""

    def push_out(self, why: str) -> None:
        """End it."""


@dataclass
class _Entry:
    since: float
    pushed_out: bool = False
    sample: tuple[float, int] | None = None
    """When the bytes were last looked at, and how many they were."""
    slow: bool = False


@dataclass(eq=False)
class Slots:
    """The connections of one receiver process; safe to use from all its threads.

    Args:
        most: Associations at once.
    """

    most: int
    _silent: dict[Connection, _Entry] = field(default_factory=dict)
    """Connections that have not asked yet."""
    _serving: dict[Connection, _Entry] = field(default_factory=dict)
    _waiting: list[Connection] = field(default_factory=list)
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def __len__(self) -> int:
        return len(self._silent) + len(self._waiting) + len(self._serving)

    def connections(self) -> list[Connection]:
        """All of them."""
        with self._changed:
            return [*self._silent, *self._waiting, *self._serving]

    def enter(self, connection: Connection) -> bool:
        """Take a new connection in; False where there are too many."""
        now = time.monotonic()
        with self._changed:
            if sum(other.peer == connection.peer for other in self._silent) >= SILENT_PER_PEER:
                self._push_silent_out(now - SILENT_SECONDS, connection.peer)
            if len(self) >= 2 * self.most + 32 and not self._push_silent_out(now, None):
                return False
            if len(self) >= 4 * self.most + 64:  # those that were pushed out have not ended yet
                return False
            self._silent[connection] = _Entry(now)
            return True

    def _push_silent_out(self, before: float, peer: str | None) -> bool:
        """The oldest silent connection of a peer, or of the one that has the most; whether there was one."""
        by_peer = Counter(c.peer for c, entry in self._silent.items() if not entry.pushed_out)
        of = peer or max(by_peer, key=lambda address: by_peer[address], default=None)
        for connection, entry in self._silent.items():  # in the order in which they came
            if connection.peer == of and not entry.pushed_out and entry.since <= before and not connection.has_input():
                entry.pushed_out = True
                connection.push_out("it asked for nothing, and others came")
                return True
        return False

    def admit(self, connection: Connection) -> bool:
        """Give an association its place, at once or as soon as one is free; False where none became so in time."""
        deadline = time.monotonic() + ADMIT_SECONDS
        with self._changed:
            self._silent.pop(connection, None)
            self._waiting.append(connection)
            try:
                while not (len(self._serving) < self.most and self._next() is connection):
                    now = time.monotonic()
                    if now >= deadline:
                        return False
                    self._make_room(connection, now)
                    self._changed.wait(min(0.25, deadline - now))
                self._serving[connection] = _Entry(time.monotonic())
                return True
            finally:
                self._waiting.remove(connection)
                self._changed.notify_all()

    def leave(self, connection: Connection) -> None:
        """A connection is over."""
        with self._changed:
            self._silent.pop(connection, None)
            self._serving.pop(connection, None)
            self._changed.notify_all()

    def _next(self) -> Connection:
        """Whose turn it is: the peer with the fewest associations, of those the one that waits longest."""
        held = Counter(c.peer for c in self._serving)
        return min(self._waiting, key=lambda c: held[c.peer])

    def _make_room(self, newcomer: Connection, now: float) -> None:
        """Push an association out that does nothing for its place, one for each that waits."""
        self._take_speeds(now)
        if sum(entry.pushed_out for entry in self._serving.values()) >= len(self._waiting):
            return
        held = Counter(c.peer for c in self._serving)
        useless = [
            c for c, entry in self._serving.items()
            if not entry.pushed_out and held[c.peer] >= held[newcomer.peer] and self._is_useless(c, entry, now)
        ]  # fmt: skip
        if useless:
            victim = max(useless, key=lambda c: (held[c.peer], now - c.between_messages_since))
            self._serving[victim].pushed_out = True
            victim.push_out("idle or too slow while others wait for its place")

    def _is_useless(self, connection: Connection, entry: _Entry, now: float) -> bool:
        if connection.answering or connection.has_input():
            return False
        return now - connection.between_messages_since > IDLE_SECONDS or entry.slow

    def _take_speeds(self, now: float) -> None:
        for connection, entry in self._serving.items():
            if entry.sample is None or now - entry.sample[0] >= SLOW_SECONDS:
                came = connection.received()
                if entry.sample is not None and now - entry.sample[0] < 3 * SLOW_SECONDS:
                    speed = (came - entry.sample[1]) / (now - entry.sample[0])
                    entry.slow = speed < LEAST_BYTES_PER_SECOND and math.isinf(connection.between_messages_since)
                entry.sample = (now, came)
