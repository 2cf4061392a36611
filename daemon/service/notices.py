"""`[[notices]]`: a web address is told what needs a person; what it is told names no patient, study or person.

What is to be told is a row in the database, once for each subject, so a restart neither forgets nor repeats it. Each
receiver has a thread of its own: one that hangs holds up nobody else. An attempt ends after `ATTEMPT_SECONDS`, whatever
the receiver does; redirects are not followed.
"""

from __future__ import annotations

import contextlib
import datetime
import http.client
import json
import logging
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import sqlalchemy as sa

from daemon.config.sections import Notice, Settings
from daemon.database.engine import open_index, upsert
from daemon.database.patience import patient
from daemon.database.tables import DELIVERIES, HEARD, INSTANCES, JOBS, NOTICES, DeliveryState, JobState
from daemon.jobs.store import now

log = logging.getLogger(__name__)

EVERY_SECONDS = 10.0
"""How often is looked for something to tell."""
ATTEMPT_SECONDS = 15.0
"""The longest that one attempt may take, whatever the receiver does."""
LOOK_BACK_SECONDS = 86400.0
"""What is older was told, or came before there was anybody to tell."""
MOST_WAITING = 200
"""So many wait for one receiver; what comes on top is said in the log only."""
GIVEN_UP_DEATHS = 2
"""A job that was set aside after so many attempts waits for a person as one that failed does."""
FIRST_PAUSE, LONGEST_PAUSE = 10.0, 3600.0
"""Seconds between attempts: doubled each time."""
KEPT_SECONDS = 30 * 86400.0

NO_ANSWER = "no answer in time"
WAITING, SENT, GIVEN_UP = "waiting", "sent", "given up"


def notice_threads(settings: Settings, engine: sa.Engine, stop: threading.Event) -> list[threading.Thread]:
    """One thread for each receiver, not started yet."""
    index = open_index(settings, engine)
    return [
        threading.Thread(target=Teller(receiver, engine, index).run, args=(stop,), name=f"notices-{receiver.name}",
                         daemon=True)
        for receiver in settings.notices
    ]  # fmt: skip


class Teller:
    """Finds what one receiver is to be told, and tells it."""

    def __init__(self, receiver: Notice, engine: sa.Engine, index: sa.Engine) -> None:
        self.receiver, self._engine, self._index = receiver, engine, index

    def run(self, stop: threading.Event) -> None:
        """Look and tell until `stop`; a database that is away is waited for."""
        while not stop.wait(EVERY_SECONDS):
            try:
                self.look()
                while not stop.is_set() and self.tell_next():
                    pass
            except sa.exc.SQLAlchemyError as error:
                log.warning("notices for %s wait: the database: %s", self.receiver.name, type(error).__name__)

    def look(self) -> None:
        """Write down what is to be told, each subject once."""
        with self._engine.begin() as connection:
            old = now() - KEPT_SECONDS
            connection.execute(sa.delete(NOTICES).where(NOTICES.c.state != WAITING, NOTICES.c.created < old))
            waiting = connection.execute(
                sa.select(sa.func.count()).where(NOTICES.c.receiver == self.receiver.name, NOTICES.c.state == WAITING)
            ).scalar_one()
            known = set(
                connection.execute(
                    sa.select(NOTICES.c.subject).where(NOTICES.c.receiver == self.receiver.name)
                ).scalars()
            )
            for subject, body in self._found(connection):
                if subject in known:
                    continue
                waiting += 1
                left_out = waiting > MOST_WAITING
                if left_out:
                    log.error("notice %s: %d wait already; not told: %s", self.receiver.name, MOST_WAITING, subject)
                row = {
                    "receiver": self.receiver.name, "subject": subject, "body": json.dumps(body),
                    "state": GIVEN_UP if left_out else WAITING, "attempts": 0, "next_attempt": now(), "created": now(),
                    "reason": "too many waited" if left_out else "",
                }  # fmt: skip
                connection.execute(upsert(self._engine, NOTICES, row, update=()))

    def _found(self, connection: sa.Connection) -> Iterator[tuple[str, dict[str, Any]]]:
        if "failed" in self.receiver.events:
            yield from _failed(connection)
        if "dead_letter" in self.receiver.events:
            yield from _dead(connection)
        if "silent_sender" in self.receiver.events:
            yield from self._silent(connection)

    def _silent(self, connection: sa.Connection) -> Iterator[tuple[str, dict[str, Any]]]:
        """Senders of which no host has heard anything for too long, since they are watched."""
        self._note_heard(connection)
        heard = sa.select(HEARD).where(HEARD.c.sender.in_(self.receiver.senders))
        for row in connection.execute(heard).all():
            hours = (now() - row.last) / 3600
            if hours >= self.receiver.silent_hours:
                text = f"{row.sender} has sent nothing for {hours:.0f} h"
                yield f"silent_sender:{row.sender}:{row.last:.0f}", _body("silent_sender", text, sender=row.sender)

    def _note_heard(self, connection: sa.Connection) -> None:
        """Keep when each sender was last heard, which outlives the images and this process, and is for all hosts."""
        query = (
            sa.select(INSTANCES.c.calling_aet, sa.func.max(INSTANCES.c.last_received).label("last"))
            .where(INSTANCES.c.calling_aet.in_(self.receiver.senders))
            .group_by(INSTANCES.c.calling_aet)
        )
        with self._index.connect() as index:
            here = {str(row.calling_aet): float(row.last) for row in index.execute(query)}
        for sender in sorted(set(self.receiver.senders)):
            row = {"sender": sender, "last": now()}
            connection.execute(upsert(self._engine, HEARD, row, update=()))
            last = min(here.get(sender, 0.0), now())
            later = (HEARD.c.sender == sender, HEARD.c.last < last)
            connection.execute(sa.update(HEARD).where(*later).values(last=last))

    def tell_next(self) -> bool:
        """One attempt at what waits longest and is due; False where nothing is."""
        mine = (NOTICES.c.receiver == self.receiver.name, NOTICES.c.state == WAITING)
        query = sa.select(NOTICES).where(*mine, NOTICES.c.next_attempt <= now()).order_by(NOTICES.c.created).limit(1)
        with self._engine.connect() as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            return False
        attempts = row.attempts + 1
        key = (NOTICES.c.receiver == row.receiver, NOTICES.c.subject == row.subject)
        pause = min(FIRST_PAUSE * 2**row.attempts, LONGEST_PAUSE)
        claim = sa.update(NOTICES).where(*key, NOTICES.c.attempts == row.attempts)
        with self._engine.begin() as connection:
            claimed = connection.execute(claim.values(attempts=attempts, next_attempt=now() + pause)).rowcount
        if not claimed:  # by another receiver of instances that works on the same database
            return True
        reason = post(self.receiver, row.body.encode())
        state = SENT if reason == "" else GIVEN_UP if attempts >= self.receiver.max_attempts else WAITING
        if state is GIVEN_UP:
            log.error("notice %s: given up after %d attempts: %s", self.receiver.name, attempts, reason)

        def write_down() -> None:
            with self._engine.begin() as connection:
                connection.execute(sa.update(NOTICES).where(*key).values(state=state, reason=reason))

        patient(write_down)()  # it was told, and must not be told again
        return True


def _failed(connection: sa.Connection) -> Iterator[tuple[str, dict[str, Any]]]:
    """Jobs that failed; why stands in the job's record, which may name a series, and is not told."""
    given_up = sa.and_(JOBS.c.state == JobState.SET_ASIDE.value, JOBS.c.deaths >= GIVEN_UP_DEATHS)
    query = sa.select(JOBS.c.job_id, JOBS.c.runs, JOBS.c.step).where(
        sa.or_(JOBS.c.state == JobState.FAILED.value, given_up), JOBS.c.updated > now() - LOOK_BACK_SECONDS
    )
    for row in connection.execute(query):
        text = f"job {row.job_id} failed in step {row.step or 'none'}; `braingemma jobs show` says why"
        yield f"failed:{row.job_id}:{row.runs}", _body("failed", text, job=row.job_id, step=row.step)


def _dead(connection: sa.Connection) -> Iterator[tuple[str, dict[str, Any]]]:
    """Destinations with objects in the dead letter: once for each hour in which one came."""
    query = (
        sa.select(
            DELIVERIES.c.destination,
            sa.func.count().label("objects"),
            sa.func.max(DELIVERIES.c.updated).label("last"),
        )
        .where(DELIVERIES.c.state == DeliveryState.DEAD.value)
        .group_by(DELIVERIES.c.destination)
    )
    for row in connection.execute(query):
        if row.last > now() - LOOK_BACK_SECONDS:
            text = f"{row.objects} objects for {row.destination} lie in the dead letter"
            body = _body("dead_letter", text, destination=row.destination, objects=int(row.objects))
            yield f"dead_letter:{row.destination}:{int(row.last // 3600)}", body


def _body(event: str, text: str, **facts: Any) -> dict[str, Any]:
    when = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"event": event, "text": f"BrainGemma3D: {text}", "time": when, **facts}


def post(receiver: Notice, body: bytes) -> str:
    """One attempt.

    Returns:
        Why the receiver did not take it; empty where it did (a status of 2xx).
    """
    parts = urlsplit(receiver.url.get_secret_value())
    headers = {"Content-Type": "application/json", "User-Agent": "BrainGemma3D-for-PACS"}
    if token := receiver.token.get_secret_value():
        headers["Authorization"] = f"Bearer {token}"
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    kind: Mapping[str, Any] = {"https": http.client.HTTPSConnection, "http": http.client.HTTPConnection}
    more = {"context": ssl.create_default_context()} if parts.scheme == "https" else {}
    connection = kind[parts.scheme](parts.hostname, parts.port, timeout=ATTEMPT_SECONDS / 3, **more)
    late = threading.Event()
    watch = threading.Timer(ATTEMPT_SECONDS, _cut, [connection, late])
    watch.daemon = True
    watch.start()
    try:
        connection.request("POST", target, body, headers)
        status = int(connection.getresponse().status)
    except (OSError, http.client.HTTPException, ValueError) as error:
        return NO_ANSWER if late.is_set() else type(error).__name__
    finally:
        watch.cancel()
        connection.close()
    if late.is_set():  # what came was cut off
        return NO_ANSWER
    if 200 <= status < 300:
        return ""
    return f"status {status}" + (": redirects are not followed" if 300 <= status < 400 else "")


def _cut(connection: http.client.HTTPConnection, late: threading.Event) -> None:
    """End an attempt at a receiver that sends a byte now and then."""
    late.set()
    if connection.sock is not None:
        with contextlib.suppress(OSError):
            connection.sock.shutdown(socket.SHUT_RDWR)
