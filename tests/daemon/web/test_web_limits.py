"""What strangers may cost: connections, bodies, downloads and guesses are bounded, and health stays quick."""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from ingest_support import encode, make_series, wait_until
from web_support import Site, add_job, start_site

import daemon.web.context as context
import daemon.web.server as server
from daemon.assemble.part10 import part10_head

TOKEN = "a-token-of-length-32-or-so-abcde"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = start_site(tmp_path, {"token": TOKEN})
    yield site
    site.server.stop()


def connect(site: Site) -> socket.socket:
    return socket.create_connection(("127.0.0.1", site.server.port), timeout=30)


def ended(connection: socket.socket) -> bool:
    with contextlib.suppress(ConnectionResetError):
        return connection.recv(1000) == b""
    return True


def test_idle_connections_make_room_for_those_that_ask(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MOST_CONNECTIONS", 8)
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(connect(site)) for _ in range(40)]
        assert site.ask("/healthz")[0] == 200
        assert ended(idle[0]), "the oldest"
        assert len(site.server.connections) <= 9


def test_a_connection_that_asks_for_nothing_is_closed(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "ASK_SECONDS", 0.1)
    with connect(site) as connection:
        connection.sendall(b"GET /healthz HT")
        assert ended(connection)


def test_an_answer_that_nobody_takes_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "STALL_SECONDS", 0.2)
    site = start_site(tmp_path, {})
    folder = add_job(site, "j1")
    (folder.root / "report.html").write_bytes(bytes(32 << 20))
    with connect(site) as connection:
        connection.sendall(b"GET /jobs/j1/files.zip HTTP/1.1\r\nHost: localhost\r\n\r\n")
        wait_until(lambda: len(site.server.connections) == 1)
        wait_until(lambda: not site.server.connections)
    site.server.stop()


@pytest.mark.parametrize("path", ["/login", "/search"])
def test_a_body_is_read_no_further_than_a_form_needs(site: Site, path: str) -> None:
    """The sender says 1 GB; what it is told comes long before that is sent."""
    with connect(site) as connection:
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n"
        connection.sendall(f"{head}Authorization: Bearer {TOKEN}\r\n\r\n".encode())
        with contextlib.suppress(OSError):
            for _ in range(300):
                connection.sendall(bytes(1 << 20))
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            answer = connection.recv(1000)
        assert b" 413 " in answer or not answer


def test_a_body_that_does_not_come_ends(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "FORM_SECONDS", 0.1)
    with connect(site) as connection:
        connection.sendall(b"POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 20\r\n\r\ntoken=")
        assert b" 408 " in connection.recv(1000)


def test_a_login_of_another_site_is_refused(site: Site, tmp_path: Path) -> None:
    form = {"token": TOKEN}
    assert site.ask("/login", method="POST", form=form, Origin="https://elsewhere.example")[0] == 403
    assert site.ask("/login", method="POST", form=form, Sec_Fetch_Site="cross-site")[0] == 403
    (tmp_path / "open").mkdir()
    without = start_site(tmp_path / "open", {})
    assert without.ask("/login", method="POST", form=form)[0] == 404, "there is no token to be shown"
    without.server.stop()


def test_wrong_logins_neither_slow_health_nor_keep_anybody_out(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """While as many as may wait do so, the next is told at once, and the right token is let in."""
    import daemon.web.app as app

    monkeypatch.setattr(app, "WRONG_SECONDS", 3600)
    body = b"token=wrong"
    head = f"POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with contextlib.ExitStack() as stack:
        guesses = [stack.enter_context(connect(site)) for _ in range(app.MOST_WRONG_LOGINS + 1)]
        for connection in guesses:
            connection.sendall(head + body)
        [answered], _, _ = select.select(guesses, [], [], 60)
        assert b" 429 " in answered.recv(1000)
        assert site.ask("/login", method="POST", form={"token": TOKEN})[0] == 303
        assert site.ask("/healthz")[0] == 200


@pytest.mark.parametrize("inside", [b"\x08\x00\x99\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" * 3000])
def test_a_study_nested_without_end_has_a_page(tmp_path: Path, inside: bytes) -> None:
    site = start_site(tmp_path, {})
    folder = add_job(site, "j1")
    dataset = make_series(1)[0]
    head = part10_head(
        sop_class_uid=dataset.SOPClassUID, sop_uid=dataset.SOPInstanceUID,
        transfer_syntax_uid="1.2.840.10008.1.2.1", calling_aet="X",
    )  # fmt: skip
    raw = encode(dataset)
    place = raw.index(b"\x10\x00\x10\x00PN")
    for path in folder.input.glob("*.dcm"):
        path.unlink()
    (folder.input / "000001.dcm").write_bytes(head + raw[:place] + inside + raw[place:])
    assert site.ask("/jobs/j1")[0] == 200
    site.server.stop()


def test_a_database_that_is_away_is_said_in_a_line(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    from daemon.jobs.lists import overview

    def away(*_: object, **__: object) -> None:
        raise sa.exc.OperationalError("SELECT 1", {}, OSError("refused"))

    monkeypatch.setattr(overview, "backlogs", away)
    status, _, text = site.ask("/", Authorization=f"Bearer {TOKEN}")
    assert (status, text.decode().split(":")[0]) == (503, "the database does not answer just now")
