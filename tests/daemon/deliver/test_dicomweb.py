"""STOW-RS and QIDO-RS: what a server may say, by a scripted one; Orthanc's plug-in is in the end-to-end tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from delivery_support import add_job, deliver, make_store, outcomes
from dicomweb_support import JSON, Server

from daemon.config.sections import Destination
from daemon.database.tables import COMMITMENTS
from daemon.deliver.delivery import plan_deliveries
from daemon.jobs.folder import JobFolder
from daemon.jobs.store import JobStore
from daemon.trial.pacs import LOOPBACK, free_port


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.stop()


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    return make_store(tmp_path)


@pytest.fixture
def job(tmp_path: Path, store: JobStore, server: Server) -> JobFolder:
    folder = add_job(store, tmp_path, "j1")
    plan_deliveries(store, "j1", folder, [to(server.url)])
    return folder


def to(url: str, **more: Any) -> Destination:
    return Destination.model_validate({"name": "web", "stow_url": url, "max_attempts": 3, **more})


def uid_of(store: JobStore, kind: str) -> str:
    return next(d.sop_instance_uid for d in store.deliveries("j1") if d.kind == kind)


def test_each_object_has_the_outcome_that_the_server_names(server: Server, store: JobStore, job: JobFolder) -> None:
    sr, seg = uid_of(store, "sr"), uid_of(store, "seg")
    server.says(202, stored={sr: 0xB000}, failed={seg: 0x0122})
    server.holds(sr)
    assert deliver(store, job, to(server.url)) is not None
    assert outcomes(store) == {"sr": ("sent", "B000", "QIDO-RS"), "seg": ("waiting", "0122", "")}
    reasons = {d.kind: d.reason for d in store.deliveries("j1")}
    assert "0xB000" in reasons["sr"]
    assert "failure reason 0x0122" in reasons["seg"]
    server.says(200, stored={seg: 0})
    server.holds(seg)
    assert deliver(store, job, to(server.url)) is None
    assert outcomes(store) == {"sr": ("sent", "B000", "QIDO-RS"), "seg": ("sent", "0000", "QIDO-RS")}
    posts = [body for method, _, _, body in server.requests if method == "POST"]
    assert [(sr.encode() in body, seg.encode() in body) for body in posts] == [(True, True), (False, True)]


def test_a_file_that_is_no_longer_what_was_encoded_is_not_sent(server: Server, store: JobStore, job: JobFolder) -> None:
    file, sr = job.dicom / "seg.dcm", uid_of(store, "sr")
    encoded = file.read_bytes()
    server.says(200, stored={sr: 0})
    server.holds(sr)
    file.write_bytes(encoded[:-1] + bytes([encoded[-1] ^ 1]))
    for _ in range(2):  # the second time there is nothing else to send
        assert deliver(store, job, to(server.url)) is not None
    assert outcomes(store) == {"sr": ("sent", "0000", "QIDO-RS"), "seg": ("waiting", "", "")}
    [reason] = [d.reason for d in store.deliveries("j1") if d.kind == "seg"]
    assert "expected the bytes that were encoded" in reason
    posts = [body for method, _, _, body in server.requests if method == "POST"]
    assert [(sr.encode() in body, uid_of(store, "seg").encode() in body) for body in posts] == [(True, False)]


def test_a_conflict_is_not_called_sent(server: Server, store: JobStore, job: JobFolder) -> None:
    """409: none was stored; the library raises, and the body still says why for each."""
    server.says(409, failed={uid_of(store, k): 0xA700 for k in ("sr", "seg")})
    assert deliver(store, job, to(server.url)) is not None
    assert outcomes(store) == {k: ("waiting", "A700", "") for k in ("sr", "seg")}


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        ((401, "text/plain", b"no"), "HTTP 401"),
        ((503, "text/html", b"<p>later</p>"), "HTTP 503"),
        ((202, JSON, b""), "does not name the instance"),
        ((409, "text/plain", b"?"), "does not name the instance"),
        ((200, JSON, b"{"), "not JSON"),
        ((200, JSON, b'"stored"'), "no DICOM JSON"),
        ((200, JSON, b"[[]]"), "no DICOM JSON"),
        ((202, JSON, b'{"00081199": {"vr": "SQ", "Value": [{}]}}'), "no DICOM JSON"),
        ((202, JSON, b'{"00081199": {"vr": "SQ", "Value": ["x"]}}'), "no DICOM JSON"),
        ((202, JSON, b'{"00081199": {"vr": "??", "Value": 7}}'), "no DICOM JSON"),
        ((202, JSON, b'{"nonsense": {"vr": "SQ"}}'), "no DICOM JSON"),
        ((200, JSON, b"[" * 20_000), "JSON"),
    ],
)
def test_what_is_no_word_on_an_object_is_no_success(
    server: Server, store: JobStore, job: JobFolder, answer: tuple[int, str, bytes], word: str
) -> None:
    server.stow = answer
    there = to(server.url)
    for _ in range(3):
        wait = deliver(store, job, there)
    assert wait is None
    assert {v[0] for v in outcomes(store).values()} == {"dead_letter"}
    assert all(word in d.reason for d in store.deliveries("j1"))


def test_a_plain_200_is_confirmed_by_a_query(server: Server, store: JobStore, job: JobFolder) -> None:
    server.stow = (200, "application/dicom+xml", b"<x/>")
    server.holds(uid_of(store, "sr"), uid_of(store, "seg"))
    assert deliver(store, job, to(server.url)) is None
    assert outcomes(store) == {k: ("sent", "0000", "QIDO-RS") for k in ("sr", "seg")}
    with store.engine.connect() as connection:
        asked = connection.execute(sa.select(COMMITMENTS)).all()
    assert asked == [], "a server that has no storage commitment leaves no transaction that waits"


@pytest.mark.parametrize("answer", [(200, JSON, b"[]"), (404, "text/plain", b"")])
def test_a_server_that_forgets_is_found_out(
    server: Server, store: JobStore, job: JobFolder, answer: tuple[int, str, bytes]
) -> None:
    server.says(200, stored={uid_of(store, k): 0 for k in ("sr", "seg")})
    server.qido = answer
    for _ in range(20):
        wait = deliver(store, job, to(server.url))
        if wait is None:
            break
    assert {v[0] for v in outcomes(store).values()} == {"dead_letter"}
    assert all("QIDO-RS does not find it" in d.reason for d in store.deliveries("j1"))


def test_without_qido_the_record_says_that_nothing_was_confirmed(
    server: Server, store: JobStore, job: JobFolder
) -> None:
    server.says(200, stored={uid_of(store, k): 0 for k in ("sr", "seg")})
    server.qido = (501, "text/plain", b"")
    assert deliver(store, job, to(server.url)) is None
    assert outcomes(store) == {k: ("sent", "0000", "not possible") for k in ("sr", "seg")}


def test_nobody_there(store: JobStore, job: JobFolder) -> None:
    there = to(f"http://{LOOPBACK}:{free_port()}/dicom-web")
    assert deliver(store, job, there) is not None
    assert all(d.attempts == 1 and "refused" in d.reason for d in store.deliveries("j1"))


def test_who_we_are_is_said_and_never_shown(server: Server, store: JobStore, job: JobFolder) -> None:
    server.stow = (401, "text/plain", b"")
    for how, expected in (
        ({"username": "us", "password": "secret"}, "Basic dXM6c2VjcmV0"),
        ({"token": "secret"}, "Bearer secret"),
    ):
        there = to(server.url, **how)
        deliver(store, job, there)
        assert server.requests[-1][2]["authorization"] == expected
        assert "secret" not in repr(there)
    assert all("secret" not in d.reason for d in store.deliveries("j1"))


@pytest.mark.parametrize("answer", [b"[7]", b'[{"00080018": []}]', b'[{"00080018": {"Value": 3}}]', b"{"])
def test_an_answer_to_a_query_that_is_no_dicom_json_is_asked_for_again_and_not_for_ever(
    server: Server, store: JobStore, job: JobFolder, answer: bytes
) -> None:
    server.says(200, stored={uid_of(store, k): 0 for k in ("sr", "seg")})
    server.qido = (200, JSON, answer)
    turns = 0
    while deliver(store, job, to(server.url)) is not None:
        turns += 1
        assert turns < 20
    assert {v[0] for v in outcomes(store).values()} == {"dead_letter"}
    assert all("could not be asked" in d.reason for d in store.deliveries("j1"))


def test_failed_is_not_called_stored_whatever_its_reason(server: Server, store: JobStore, job: JobFolder) -> None:
    server.says(202, failed={uid_of(store, "sr"): 0xB000, uid_of(store, "seg"): 0x0110})
    assert deliver(store, job, to(server.url)) is not None
    assert {v[0] for v in outcomes(store).values()} == {"waiting"}


def test_an_attempt_that_breaks_in_a_way_that_nobody_foresaw_counts_and_ends(
    store: JobStore, job: JobFolder, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_down(*_: object, **__: object) -> None:
        raise ZeroDivisionError("deep in a library")

    monkeypatch.setattr("daemon.deliver.dicomweb.DicomwebClient.store", break_down)
    for _ in range(3):
        wait = deliver(store, job, to(server.url))
    assert wait is None
    assert all(d.attempts == 3 and "ZeroDivisionError" in d.reason for d in store.deliveries("j1"))
    assert {v[0] for v in outcomes(store).values()} == {"dead_letter"}


@pytest.mark.parametrize("name", ["nobody.invalid", "a" * 64 + ".example", "two..dots"])
@pytest.mark.parametrize("how", ["stow_url", "host"])
def test_a_name_that_does_not_resolve_is_an_attempt_that_failed(
    store: JobStore, tmp_path: Path, name: str, how: str
) -> None:
    where = {"stow_url": f"http://{name}/x"} if how == "stow_url" else {"ae_title": "PACS", "host": name, "port": 104}
    there = Destination.model_validate({"name": "web", "max_attempts": 2, **where})
    folder = add_job(store, tmp_path, "j1")
    plan_deliveries(store, "j1", folder, [there])
    assert deliver(store, folder, there) is not None
    assert deliver(store, folder, there) is None
    assert {(str(d.state), d.attempts) for d in store.deliveries("j1")} == {("dead_letter", 2)}
    assert all(name[:20] in d.reason for d in store.deliveries("j1"))
