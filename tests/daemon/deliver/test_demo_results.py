"""Results of weights that were trained on synthetic images only stay on this machine, at each connection anew."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydantic
import pytest
from delivery_support import FaultyPacs, add_job, deliver, make_store, outcomes
from dicomweb_support import Server

from daemon.config.sections import Destination
from daemon.database.tables import DeliveryState
from daemon.deliver.delivery import plan_deliveries
from daemon.files import write_json
from daemon.jobs.folder import JobFolder
from daemon.jobs.store import JobStore
from daemon.trial.pacs import LOOPBACK

# pynetdicom drops the socket of a refused connection without closing it.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

ELSEWHERE = "192.0.2.1"
"""Of the documentation's network (RFC 5737): nobody's."""

STAYS = "trained on synthetic images only stay on this machine"


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    return make_store(tmp_path)


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.stop()


@pytest.fixture
def connected(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Where sockets were to connect to; those that are not on this machine do not."""
    places: list[object] = []
    connect = socket.socket.connect

    def note(self: socket.socket, address: Any) -> None:
        places.append(address[0])
        if address[0] == ELSEWHERE:
            raise ConnectionRefusedError("the test lets nothing leave")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", note)
    return places


def names_lead_to(monkeypatch: pytest.MonkeyPatch, name: str, *addresses: str) -> None:
    real = socket.getaddrinfo

    def resolve(host: Any, port: Any, *arguments: Any, **more: Any) -> Any:
        if host != name:
            return real(host, port, *arguments, **more)
        return [entry for address in addresses for entry in real(address, port, *arguments, **more)]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)


def job_for(store: JobStore, folder: Path, there: Destination, *, synthetic_only: bool = True) -> JobFolder:
    made = add_job(store, folder, "j1", synthetic_only=synthetic_only)
    plan_deliveries(store, "j1", made, [there])
    return made


def by_dimse(host: str, port: int = 104) -> Destination:
    return Destination(name="pacs", ae_title="PACS", host=host, port=port)


def by_web(host: str, port: int = 8042) -> Destination:
    return Destination(name="pacs", stow_url=f"http://{host}:{port}/dicom-web")


@pytest.mark.parametrize("to", [by_dimse, by_web])
@pytest.mark.parametrize("host", [ELSEWHERE, "pacs.example"])
def test_they_go_to_no_other_machine_whatever_weights_are_configured_now(
    store: JobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, connected: list[object], to: Any, host: str
) -> None:
    names_lead_to(monkeypatch, "pacs.example", LOOPBACK, ELSEWHERE)
    there = to(host)
    folder = job_for(store, tmp_path, there)
    assert deliver(store, folder, there) is None
    assert {v[0] for v in outcomes(store).values()} == {"dead_letter"}
    assert all(STAYS in d.reason and ELSEWHERE in d.reason for d in store.deliveries("j1"))
    assert connected == []


@pytest.mark.parametrize("to", [by_dimse, by_web])
@pytest.mark.parametrize(("synthetic_only", "allow_demo"), [(True, True), (False, False)])
def test_other_results_and_those_of_tests_may_go(
    store: JobStore, tmp_path: Path, connected: list[object], to: Any, synthetic_only: bool, allow_demo: bool
) -> None:
    there = to(ELSEWHERE)
    folder = job_for(store, tmp_path, there, synthetic_only=synthetic_only)
    assert deliver(store, folder, there, allow_demo=allow_demo) is not None
    assert ELSEWHERE in connected
    assert {v[0] for v in outcomes(store).values()} == {"waiting"}


def test_a_name_that_leads_here_is_good_and_one_that_moves_is_found_out(
    store: JobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server, connected: list[object]
) -> None:
    names_lead_to(monkeypatch, "pacs.example", "::1", LOOPBACK)  # nobody listens at the first
    there = by_web("pacs.example", server.port)
    folder = job_for(store, tmp_path, there)
    server.stow = (503, "text/plain", b"")
    assert deliver(store, folder, there) is not None
    assert {d.attempts for d in store.deliveries("j1")} == {1}
    names_lead_to(monkeypatch, "pacs.example", ELSEWHERE)
    assert deliver(store, folder, there) is None
    assert all(STAYS in d.reason for d in store.deliveries("j1"))
    assert ELSEWHERE not in connected


def test_a_pacs_on_this_machine_gets_them(store: JobStore, tmp_path: Path) -> None:
    pacs = FaultyPacs(find=True)
    there = by_dimse("localhost", pacs.port)
    folder = job_for(store, tmp_path, there)
    try:
        assert deliver(store, folder, there) is None
    finally:
        pacs.stop()
    assert {v[0] for v in outcomes(store).values()} == {"sent"}


@pytest.mark.parametrize("manifest", [{"objects": []}, {"objects": [], "synthetic_only": "no"}])
def test_a_pack_that_does_not_say_goes_nowhere(
    store: JobStore, tmp_path: Path, connected: list[object], manifest: dict[str, object]
) -> None:
    there = by_dimse(LOOPBACK)
    folder = job_for(store, tmp_path, there)
    write_json(folder.dicom / "pack.json", manifest)
    accepted, waiting = store.deliveries("j1")
    uid = accepted.sop_instance_uid
    store.note_delivery("j1", "pacs", uid, state=DeliveryState.UNCONFIRMED, status="0000", reason="")
    assert deliver(store, folder, there) is None
    states = {d.sop_instance_uid: str(d.state) for d in store.deliveries("j1")}
    assert states == {uid: "sent", waiting.sop_instance_uid: "dead_letter"}, "nothing is left open for ever"
    assert any("synthetic_only" in d.reason for d in store.deliveries("j1"))
    assert connected == []


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_nobody_is_followed_to_another_place(store: JobStore, tmp_path: Path, server: Server, status: int) -> None:
    """The second place would get the token, and a request without its body that counts as stored."""
    other = Server()
    there = Destination.model_validate({"name": "pacs", "stow_url": server.url, "token": "secret", "max_attempts": 2})
    folder = job_for(store, tmp_path, there, synthetic_only=False)
    server.stow = (status, "text/plain", b"")
    server.location = other.url
    try:
        for _ in range(2):
            wait = deliver(store, folder, there)
    finally:
        other.stop()
    assert wait is None
    assert other.requests == []
    assert all(f"HTTP {status}" in d.reason for d in store.deliveries("j1"))


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1\\@pacs.example/dicom-web",
        "http://pacs.example\\@127.0.0.1/dicom-web",
        "http://127.0.0.1@pacs.example/dicom-web",
        "http://127.0.0.1#@pacs.example/",
        "http://127.0.0.1?@pacs.example/",
        "http://127.0.0.1 .pacs.example/",
        "http://127.0.0.1/a\\..\\b",
        "http://[::1/x",
        "file:///etc/passwd",
    ],
)
def test_urls_that_two_programs_may_read_in_two_ways_are_refused(url: str) -> None:
    with pytest.raises(pydantic.ValidationError, match="stow_url"):
        Destination(name="pacs", stow_url=url)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "[::1]", "localhost"])
def test_plain_urls_say_where_they_lead(host: str) -> None:
    assert by_web(host).is_loopback
    assert not by_web("127.0.0.1.pacs.example").is_loopback
