"""What a person may do on the page: destinations, dead letters, the queue, studies that wait; and where it leads."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from ingest_support import Bench, make_series
from pydantic import ValidationError
from pynetdicom import AE
from pynetdicom.sop_class import Verification
from web_support import Site, add_job, audit_lines, start_site

from daemon.assemble.index import complete_now
from daemon.config.sections import Web
from daemon.database.tables import COMPLETE_NOW, DELIVERIES, INSTANCES, DeliveryState, JobState
from daemon.errors import DaemonError
from daemon.pipeline import actions
from daemon.web.slices import Stack

TOKEN = "a-token-of-24-characters"


@pytest.fixture
def pacs() -> Iterator[int]:
    """A PACS that answers C-ECHO; its port."""
    entity = AE("PACS")
    entity.add_supported_context(Verification)
    server = entity.start_server(("127.0.0.1", 0), block=False)
    yield server.socket.getsockname()[1]
    server.shutdown()


def two(port: int) -> list[dict[str, object]]:
    """A destination that answers, and one that does not."""
    silent = {"name": "silent", "ae_title": "NONE", "host": "127.0.0.1", "port": 1}
    return [{"name": "pacs", "ae_title": "PACS", "host": "127.0.0.1", "port": port}, silent]


@pytest.fixture
def site(tmp_path: Path, pacs: int) -> Iterator[Site]:
    served = start_site(tmp_path, destinations=two(pacs))
    yield served
    served.server.stop()


def post(site: Site, path: str, **fields: str) -> tuple[int, str]:
    status, _, body = site.ask(path, method="POST", form={"form_token": site.form_token("/"), **fields})
    return status, body.decode()


POSTS = (
    "/destinations/pacs/test", "/destinations/pacs/retry", "/queue/pause", "/queue/resume", "/arriving/complete",
    "/jobs/j1/deliveries/pacs/retry", "/jobs/j1/retry", "/search",
)  # fmt: skip


@pytest.mark.parametrize("path", POSTS)
def test_each_needs_a_form_of_ours(site: Site, path: str) -> None:
    add_job(site, "j1", reported=False)
    assert site.ask(path, method="POST", form={})[0] == 403
    token = site.form_token("/")
    assert site.ask(path, method="POST", form={"form_token": token}, Origin="https://evil.example")[0] == 403
    assert site.ask(path)[0] in (404, 405)
    assert site.store.paused() is None
    assert audit_lines(site) == []


def test_a_destination_is_tested(site: Site) -> None:
    assert "answers C-ECHO" in post(site, "/destinations/pacs/test")[1]
    status, text = post(site, "/destinations/silent/test")
    assert status == 200
    assert "127.0.0.1:1" in text
    assert 'role="alert"' in text
    assert post(site, "/destinations/nowhere/test")[0] == 404
    assert [(line["event"], line["answers"]) for line in audit_lines(site)] == [("tested", True), ("tested", False)]


@pytest.fixture
def enqueued(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Deliveries that were queued."""
    found: list[tuple[str, ...]] = []
    monkeypatch.setattr(actions, "_enqueue_delivery", lambda _client, *what: found.append(what))
    return found


def test_a_dead_letter_says_so_while_others_are_served_and_is_sent_again(
    site: Site, enqueued: list[tuple[str, ...]]
) -> None:
    add_job(site, "j1", JobState.DELIVERING)
    for name in ("pacs", "silent"):
        site.store.put_deliveries("j1", name, [("1.1", "sr", "sr.dcm")])
    site.store.give_up_delivery("j1", "silent", "connection refused")
    text = " ".join(site.ask("/jobs/j1")[2].decode().split())
    assert "<strong>silent</strong> does not have the results: 1 object given up" in text
    assert "Others are still being served" in text
    assert "1 given up" in site.ask("/")[2].decode()
    assert post(site, "/jobs/j1/deliveries/pacs/retry")[0] == 400
    assert enqueued == []
    assert post(site, "/jobs/j1/deliveries/silent/retry")[0] == 303
    assert enqueued == [("j1-r2:silent", "j1", "silent")]
    assert {d.state for d in site.store.deliveries("j1")} == {DeliveryState.WAITING}
    assert [line["event"] for line in audit_lines(site)] == ["retried"]


def test_all_that_a_destination_was_given_up_for_is_sent_again(site: Site, enqueued: list[tuple[str, ...]]) -> None:
    for job_id, state in (("j1", JobState.FAILED), ("j2", JobState.FAILED), ("j3", JobState.RUNNING)):
        add_job(site, job_id, state, reported=False)
        site.store.put_deliveries(job_id, "silent", [("1.1", "sr", "sr.dcm")])
        site.store.give_up_delivery(job_id, "silent", "connection refused")
    assert post(site, "/destinations/silent/retry")[0] == 303
    assert sorted(job for _, job, _ in enqueued) == ["j1", "j2"]  # the third is at work
    with site.store.engine.connect() as connection:
        dead = sa.select(DELIVERIES.c.job_id).where(DELIVERIES.c.state == DeliveryState.DEAD.value)
        assert list(connection.execute(dead).scalars()) == ["j3"]


def test_the_queue_is_paused_and_goes_on(site: Site) -> None:
    assert post(site, "/queue/pause")[0] == 303
    assert "The queue is paused since" in site.ask("/")[2].decode()
    assert site.store.paused() is not None
    assert post(site, "/queue/resume")[0] == 303
    assert site.store.paused() is None
    assert [line["event"] for line in audit_lines(site)] == ["paused", "resumed"]


def test_a_study_that_waits_is_handed_over_when_a_person_says_so(tmp_path: Path) -> None:
    bench = Bench(tmp_path, quiet_seconds=1000)
    datasets = make_series(3)
    bench.receive(datasets, at=0, end=False)
    assert bench.assembler.step(1) == ()
    with pytest.raises(DaemonError, match="no study of this UID waits"):
        complete_now(bench.engine, "1.2.3")
    complete_now(bench.engine, datasets[0].StudyInstanceUID)
    [arrival] = bench.assembler.step(2)
    assert arrival.instances == 3
    assert bench.assembler.step(3) == ()
    assert bench.rows(COMPLETE_NOW) == []
    bench.close()


def test_the_page_names_the_study_that_waits(site: Site) -> None:
    row = {
        "study_uid": "1.2.3", "series_uid": "1.2.3.4", "sop_uid": "1.2.3.4.5", "sha256": "0", "sop_class_uid": "1",
        "transfer_syntax_uid": "1", "state": "pending", "segment": "s", "data_offset": 0, "data_length": 1,
        "association": "a", "calling_aet": "MR1", "peer": "127.0.0.1", "received": 0.0, "last_received": 0.0,
    }  # fmt: skip
    with site.store.engine.begin() as connection:
        connection.execute(sa.insert(INSTANCES).values(row))
    study = site.ask("/")[2].decode().split('name="study" value="')[1].split('"')[0]
    assert post(site, "/arriving/complete", study=study)[0] == 303
    assert post(site, "/arriving/complete", study="9.9")[0] == 400
    with site.store.engine.connect() as connection:
        assert list(connection.execute(sa.select(COMPLETE_NOW.c.study_uid)).scalars()) == ["1.2.3"]
    [line] = audit_lines(site)
    assert (line["event"], line["study_uid"]) == ("completed", "1.2.3")


def test_open_in_viewer(tmp_path: Path) -> None:
    url = "https://pacs.example/v?a={StudyInstanceUID}&p={PatientID}"
    site, other = start_site(tmp_path, {"viewer_url": url, "token": TOKEN}), start_site(tmp_path, {"viewer_url": url})
    try:
        add_job(site, "j1")
        site.store.put_study("j1", {"patient_id": 'P 1&x="<'}, {})
        who = {"Authorization": f"Bearer {TOKEN}"}
        for path in ("/", "/jobs/j1"):
            text = site.ask(path, **who)[2].decode()
            assert 'href="https://pacs.example/v?a=1.2.2&amp;p=P%201%26x%3D%22%3C"' in text
            assert "pacs.example" not in other.ask(path)[2].decode(), "it would name a patient's number"
    finally:
        site.server.stop()
        other.server.stop()


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("https://x/{StudyUID}", "StudyUID"), ("https://x/", "got none"), ("javascript:{StudyInstanceUID}", "http://"),
        ("https://{StudyInstanceUID}/", "a host"), ("https://x/{StudyInstanceUID!r}", "StudyInstanceUID"),
        ("https://x/{StudyInstanceUID", "expected a URL"), ("https://x/{}", "''"),
    ],
)  # fmt: skip
def test_a_viewer_url_is_looked_at_at_the_start(url: str, why: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(why)):
        Web(viewer_url=url)


def test_planes_open_at_the_peak_and_keep_the_point(site: Site) -> None:
    add_job(site, "j1")
    text = site.ask("/jobs/j1?plane=axial")[2].decode()
    point = [int(n) for n in text.split('data-point="')[1].split('"')[0].split(",")]
    assert np.abs(np.array(point) * 4 + (-90, -108, -84) - (-40, 10, 10)).max() <= 4  # the ball, on the patient's left
    for plane, axis in (("sagittal", 0), ("coronal", 1), ("axial", 2)):
        shown = site.ask(f"/jobs/j1?plane={plane}")[2].decode()
        assert f"/slices/{plane}/{point[axis]}.png" in shown
    moved = site.ask("/jobs/j1?plane=coronal&at=3,4,5&slice=9")[2].decode()
    assert "/slices/coronal/9.png" in moved
    assert "?plane=sagittal&amp;at=3,9,5#" in moved
    for odd in ("at=1,2", "at=999999,0,0", "at=-1,0,0", "at=a,b,c", "slice=99999999999999999999"):
        assert site.ask(f"/jobs/j1?plane=axial&{odd}")[0] == 200


def test_the_peak_of_a_region_lies_in_it() -> None:
    saliency = np.zeros((9, 9, 9), dtype=np.float32)
    saliency[0, 0, 0] = 5
    saliency[1:8, 4, 4] = saliency[4, 1:8, 4] = 6  # a cross
    peak = Stack(saliency, saliency, None, (0, 1), None, None).peak  # type: ignore[arg-type]
    assert peak == (4, 4, 4)
    assert Stack(saliency, None, None, (0, 1), None, None).peak == (4, 4, 4)  # type: ignore[arg-type]
