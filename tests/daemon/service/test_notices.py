"""Notices reach a receiver once, survive one that fails, hangs or redirects, and never name anybody."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from daemon.config.sections import Notice, Settings
from daemon.database import patience
from daemon.database.engine import open_database, upsert
from daemon.database.tables import DELIVERIES, HEARD, INSTANCES, NOTICES, DeliveryState, JobState
from daemon.jobs.store import JobStore, now
from daemon.service import notices
from daemon.service.notices import Teller, post

MARKER = "MARKER^OTTILIE"
TOKEN = "a-token-of-the-chat"


class Receiver:
    """A web server that answers as it is told to, and keeps what came."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.came: list[tuple[str, dict[str, str], bytes]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.came.append((self.path, dict(self.headers), body))
                self.send_response(outer.statuses.pop(0) if outer.statuses else 204)
                self.send_header("Location", "/elsewhere")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook?x=1"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    one = Receiver()
    yield one
    one.server.shutdown()
    one.server.server_close()


def site(folder: Path, url: str, **more: Any) -> tuple[Teller, JobStore, sa.Engine]:
    notice = {"name": "team", "url": url, "token": TOKEN, "senders": ["MR1"], **more}
    settings = Settings.model_validate({"storage": {"folder": folder}, "notices": [notice]})
    engine = open_database(settings)
    return Teller(settings.notices[0], engine, engine), JobStore(engine), engine


def troubles(store: JobStore, engine: sa.Engine) -> None:
    """A job that failed, one whose objects are dead, and a sender that is silent; all with a name in their records."""
    store.add("j1", study_uid="1.2.77", supersedes=None)
    store.update("j1", state=JobState.FAILED, step="report", reason=f"{MARKER} broke", result=MARKER)
    store.add("j2", study_uid="1.2.78", supersedes=None)
    store.update("j2", state=JobState.DELIVERING)
    dead = {
        "job_id": "j2", "destination": "pacs", "sop_instance_uid": "1.2.99", "kind": "sr", "file": MARKER,
        "state": DeliveryState.DEAD.value, "reason": MARKER, "updated": now(),
    }  # fmt: skip
    with engine.begin() as connection:
        connection.execute(upsert(engine, DELIVERIES, dead, update=()))
    watch(engine, 0.0)
    hear(engine, now() - 30 * 3600)


def watch(engine: sa.Engine, since: float) -> None:
    with engine.begin() as connection:
        connection.execute(upsert(engine, HEARD, {"sender": "MR1", "last": since}, update=()))


def hear(index: sa.Engine, at: float) -> None:
    """An image of MR1 came."""
    came = {
        "study_uid": "1.2.77", "series_uid": "1.2.77.1", "sop_uid": "1.2.77.2", "sha256": "0", "sop_class_uid": "1",
        "transfer_syntax_uid": "1", "state": "handed_over", "file": MARKER, "segment": "s", "data_offset": 0,
        "data_length": 0, "association": "a", "calling_aet": "MR1", "peer": "10.0.0.7", "received": at,
        "last_received": at,
    }  # fmt: skip
    with index.begin() as connection:
        connection.execute(upsert(index, INSTANCES, came, update=("last_received",)))


def rows(engine: sa.Engine) -> dict[str, Any]:
    with engine.connect() as connection:
        return {row.subject.split(":")[0]: row for row in connection.execute(sa.select(NOTICES))}


def tell_all(teller: Teller) -> None:
    while teller.tell_next():
        pass


def test_each_thing_is_told_once_and_names_nobody(tmp_path: Path, receiver: Receiver) -> None:
    teller, store, engine = site(tmp_path, receiver.url)
    troubles(store, engine)
    for _ in range(3):
        teller.look()
        tell_all(teller)
    bodies = [json.loads(body) for _, _, body in receiver.came]
    assert sorted(body["event"] for body in bodies) == ["dead_letter", "failed", "silent_sender"]
    assert {path for path, _, _ in receiver.came} == {"/hook?x=1"}
    assert {headers["Authorization"] for _, headers, _ in receiver.came} == {f"Bearer {TOKEN}"}
    by_event = {body["event"]: body for body in bodies}
    assert (by_event["failed"]["job"], by_event["failed"]["step"]) == ("j1", "report")
    assert (by_event["dead_letter"]["destination"], by_event["dead_letter"]["objects"]) == ("pacs", 1)
    assert by_event["silent_sender"]["sender"] == "MR1"
    assert all(body["text"].startswith("BrainGemma3D: ") for body in bodies)
    everything = repr(receiver.came)
    for identity in ("MARKER", "OTTILIE", "1.2.77", "1.2.78", "1.2.99", "10.0.0.7"):
        assert identity not in everything


def test_silence_lasts_over_restarts_and_is_told_once(
    tmp_path: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the images went to another host, and where nothing of the sender ever came."""
    start = now()
    _, _, engine = site(tmp_path / "a", receiver.url)
    other, _, other_index = site(tmp_path / "b", receiver.url)
    other._engine = engine  # two hosts on one database, each with its own index
    for hours, told in ((0, 0), (15, 0), (30, 1), (40, 1)):
        monkeypatch.setattr(notices, "now", lambda hours=hours: start + 3600 * hours)
        teller = Teller(other.receiver, engine, engine)  # as after a restart
        for one in (teller, other):
            one.look()
            tell_all(one)
        assert len(receiver.came) == told, hours
    hear(other_index, start + 41 * 3600)
    for hours, told in ((42, 1), (60, 1), (70, 2)):
        monkeypatch.setattr(notices, "now", lambda hours=hours: start + 3600 * hours)
        for one in (other, teller):
            one.look()
            tell_all(one)
        assert len(receiver.came) == told, hours


def test_what_was_given_up_is_told_and_what_was_refused_is_not(tmp_path: Path, receiver: Receiver) -> None:
    teller, store, _ = site(tmp_path, receiver.url, events=["failed"])
    for job, deaths in (("refused", 0), ("given-up", 3)):
        store.add(job, study_uid="1.2", supersedes=None)
        store.update(job, state=JobState.SET_ASIDE, deaths=deaths)
    teller.look()
    tell_all(teller)
    assert [json.loads(body)["job"] for _, _, body in receiver.came] == ["given-up"]


def test_a_database_that_is_locked_afterwards_does_not_have_it_told_again(
    tmp_path: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    teller, store, engine = site(tmp_path, receiver.url, events=["failed"])
    troubles(store, engine)
    teller.look()
    monkeypatch.setattr(patience, "DATABASE_PAUSE", 0.01)
    locked = [True] * 3

    def lock(*_: Any) -> None:
        if receiver.came and locked:
            locked.pop()
            raise sa.exc.OperationalError("UPDATE", {}, Exception("database is locked"))

    sa.event.listen(engine, "before_cursor_execute", lock)
    assert teller.tell_next()
    assert rows(engine)["failed"].state == notices.SENT
    assert len(receiver.came) == 1


def test_two_tellers_of_one_database_tell_it_once(tmp_path: Path, receiver: Receiver) -> None:
    teller, store, engine = site(tmp_path, receiver.url, events=["failed"])
    troubles(store, engine)
    teller.look()
    other = Teller(teller.receiver, engine, engine)
    both = [threading.Thread(target=tell_all, args=(one,)) for one in (teller, other)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert len(receiver.came) == 1


def test_another_process_does_not_tell_it_again(tmp_path: Path, receiver: Receiver) -> None:
    teller, store, engine = site(tmp_path, receiver.url, events=["failed"])
    troubles(store, engine)
    teller.look()
    tell_all(teller)
    again, _, _ = site(tmp_path, receiver.url, events=["failed"])
    again.look()
    assert not again.tell_next()
    store.update("j1", state=JobState.FAILED, runs=2)  # failed again after a person tried
    again.look()
    assert again.tell_next()


def test_what_is_not_taken_is_tried_again_and_given_up_at_last(
    tmp_path: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    teller, store, engine = site(tmp_path, receiver.url, events=["failed"], max_attempts=3)
    troubles(store, engine)
    receiver.statuses = [500, 302]
    teller.look()
    assert teller.tell_next()
    assert not teller.tell_next()  # not due yet
    assert rows(engine)["failed"].next_attempt > now()
    clock = now()
    monkeypatch.setattr(notices, "now", lambda: clock + 7200)
    assert teller.tell_next()
    assert rows(engine)["failed"].reason == "status 302: redirects are not followed"
    receiver.statuses = [500]
    monkeypatch.setattr(notices, "now", lambda: clock + 20000)
    assert teller.tell_next()
    assert rows(engine)["failed"].state == "given up"
    assert not teller.tell_next()
    assert [path for path, _, _ in receiver.came] == ["/hook?x=1"] * 3


def test_more_than_a_receiver_can_take_is_bounded(
    tmp_path: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notices, "MOST_WAITING", 3)
    teller, store, _ = site(tmp_path, receiver.url, events=["failed"])
    for number in range(6):
        store.add(f"j{number}", study_uid="1.2", supersedes=None)
        store.update(f"j{number}", state=JobState.FAILED)
    teller.look()
    tell_all(teller)
    assert len(receiver.came) == 3


@pytest.mark.parametrize("says", [b"", b"HTTP/1.1 200 OK"], ids=["nothing", "a byte now and then"])
def test_a_receiver_that_hangs_ends_with_the_attempt(says: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notices, "ATTEMPT_SECONDS", 1.5)
    listener = socket.create_server(("127.0.0.1", 0))
    done = threading.Event()

    def hang() -> None:
        connection, _ = listener.accept()
        with connection:
            while not done.wait(0.1):
                try:
                    connection.sendall(says)
                except OSError:
                    return

    threading.Thread(target=hang, daemon=True).start()
    reason = post(Notice(name="x", url=f"http://127.0.0.1:{listener.getsockname()[1]}/"), b"{}")
    done.set()
    listener.close()
    assert reason in ("no answer in time", "TimeoutError")


def test_nobody_there_is_a_reason() -> None:
    assert post(Notice(name="x", url="http://127.0.0.1:1/"), b"{}") == "ConnectionRefusedError"


@pytest.mark.parametrize("url", ["ftp://a/b", "http://user:word@host/", "https://", "hook", "http://[1/"])
def test_addresses_that_are_none_are_refused_by_the_configuration(url: str) -> None:
    with pytest.raises(ValueError, match="expected https://HOST/PATH"):
        Notice(name="x", url=url)
