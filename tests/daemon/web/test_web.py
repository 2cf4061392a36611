"""The page over HTTP: who is let in, what is shown, what may be changed; no browser needed."""

import io
import json
import logging
import os
import pwd
import re
import subprocess
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
from PIL import Image
from record_support import an_arrival
from web_support import BANNER, NAME, SHOWN_NAME, Site, a_verdict, add_job, audit_lines, start_site

from daemon.database.tables import JobState
from daemon.errors import ConfigurationError
from daemon.jobs.lists.worklist import note_study
from daemon.jobs.report import read_report, write_report

TOKEN = "a-token-of-24-characters"
BY_PROXY = {"user_header": "X-Remote-User", "trusted_proxies": ["127.0.0.1"]}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    served = start_site(tmp_path)
    yield served
    served.server.stop()


def test_overview_counts_and_lists_jobs_and_says_what_the_model_may_not(site: Site) -> None:
    add_job(site, "j1")
    add_job(site, "j2", JobState.FAILED, reported=False)
    site.store.update("j2", reason="the model process was killed by SIGSEGV")
    site.store.put_deliveries("j1", "pacs", [("1.1", "sr", "sr.dcm")])
    status, headers, body = site.ask("/")
    text = body.decode()
    assert status == 200
    assert "/jobs/j1" in text
    assert "the model process was killed by SIGSEGV" in text
    assert "1 object of 1 job waiting" in text
    for limit in ("NOT FOR DIAGNOSIS", "English only", "glioblastoma", "not for emergencies", BANNER):
        assert limit in text
    assert NAME not in text
    assert SHOWN_NAME not in text
    assert headers["cache-control"] == "no-store"
    assert "default-src 'none'" in headers["content-security-policy"]
    only_failed = site.ask("/?state=failed")[2].decode()
    assert "row-j2" in only_failed
    assert "row-j1" not in only_failed


def test_a_page_that_did_not_change_is_not_sent_again(site: Site) -> None:
    _, headers, _ = site.ask("/")
    assert site.ask("/", If_None_Match=headers["etag"])[0] == 304
    add_job(site, "j1", reported=False)
    assert site.ask("/", If_None_Match=headers["etag"])[0] == 200


def test_a_job_shows_report_findings_warnings_and_files(site: Site) -> None:
    add_job(site, "j1")
    site.store.put_verdicts(
        "j1", [a_verdict("1.2.3", "accepted", "ok: named FLAIR"), a_verdict("1.2.4", "refused", "REFUSED: T1")]
    )
    text = site.ask("/jobs/j1")[2].decode()
    for shown in ("left frontal lobe", "91 %", "Slices are 4 mm thick.", "REFUSED: T1", SHOWN_NAME, "weights_sha256"):
        assert shown in text
    status, headers, body = site.ask("/jobs/j1/files/report.json")
    assert (status, json.loads(body)["findings"][0]["laterality"]) == (200, "left")
    assert 'filename="j1-report.json"' in headers["content-disposition"]
    before = set(site.settings.storage.folder.iterdir())
    packed = zipfile.ZipFile(io.BytesIO(site.ask("/jobs/j1/files.zip")[2]))
    assert set(site.settings.storage.folder.iterdir()) == before
    assert {"j1/report.txt", "j1/explain/saliency.nii.gz"} <= set(packed.namelist())
    assert not [name for name in packed.namelist() if "input" in name]
    assert [line["event"] for line in audit_lines(site)] == ["downloaded", "downloaded"]
    assert site.ask("/refused")[2].decode().count("REFUSED: T1") == 1


@pytest.mark.parametrize("said", [BANNER, None, "Other weights."])
def test_a_job_says_what_its_own_weights_may_not(site: Site, said: str | None) -> None:
    """Other weights are at work by now; those that wait will be reported by them."""
    folder = add_job(site, "j1")
    write_report(folder, read_report(folder).model_copy(update={"banner": said}))
    banners = re.findall(r'<p class="banner">(.*?)</p>', site.ask("/jobs/j1")[2].decode())
    assert banners == ([said] if said else [])
    add_job(site, "j2", JobState.QUEUED, reported=False)
    assert BANNER in site.ask("/jobs/j2")[2].decode()


def test_the_list_shows_findings_beside_a_reason_and_no_long_uid(site: Site) -> None:
    add_job(site, "j1", JobState.FAILED, reported=False)
    uid = "1.2.826.0.1.3680043.8.498.1111997464662913642263474203676117744"
    site.store.update("j1", result="lesion left frontal", reason=f"archive: of series {uid} nothing was stored")
    text = site.ask("/")[2].decode()
    assert "lesion left frontal" in text
    assert "archive: of series … nothing was stored" in text
    assert uid not in text
    assert uid in site.ask("/jobs/j1")[2].decode()


@pytest.mark.parametrize(
    "path",
    ["/jobs/none", "/jobs/j1/files/input/000001.dcm", "/jobs/j1/files/../j1/report.txt", "/jobs/j1/files/%2e%2e/x",
     "/jobs/j1/slices/axial/999.png", "/jobs/j1/slices/oblique/1.png"],
)  # fmt: skip
def test_what_is_not_there_is_not_found(site: Site, path: str) -> None:
    add_job(site, "j1")
    assert site.ask(path)[0] == 404


def test_left_is_on_the_right_of_axial_and_coronal_slices(site: Site) -> None:
    add_job(site, "j1")
    for plane, index in (("axial", 23), ("coronal", 29)):
        grey = np.asarray(Image.open(io.BytesIO(site.ask(f"/jobs/j1/slices/{plane}/{index}.png")[2])))
        rows, columns = grey.shape
        inner = grey[:, columns // 8 : -columns // 8]  # the letters stand at the edges
        bright = np.argwhere(inner > 0.9 * inner.max())[:, 1].mean()
        assert bright > inner.shape[1] * 0.55
        layer = np.asarray(Image.open(io.BytesIO(site.ask(f"/jobs/j1/saliency/{plane}/{index}.png")[2])))
        assert layer.shape == (rows, columns, 4)
        coloured = np.argwhere(layer[..., 3] > 60)[:, 1]
        assert coloured.mean() > columns * 0.55
        red, _, blue = (layer[..., c][layer[..., 3] > 60].mean() for c in range(3))
        assert red > 2 * blue


def test_what_the_explanation_says_is_shown_of_the_map(site: Site) -> None:
    """Full colour, the least that is coloured, and the outlined regions, of both sides; as in the other pictures."""
    folder = add_job(site, "j1")
    image = nibabel.load(folder.explain / "saliency.nii.gz")
    ball = np.asarray(image.dataobj) > 0  # in the patient's left half
    weights = np.where(ball, 1.0, np.where(ball[::-1], 0.2, 0)).astype(np.float32)
    labels = (ball * 5 + ball[::-1] * 2).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(weights, image.affine), folder.explain / "saliency.nii.gz")
    nibabel.save(nibabel.Nifti1Image(labels, image.affine), folder.explain / "supervoxels.nii.gz")
    shown = {"limit": 2.0, "least_share": 0.4, "regions": [5, 2]}
    (folder.explain / "lime_weights.json").write_text(json.dumps({"shown": shown}))
    layer = np.asarray(Image.open(io.BytesIO(site.ask("/jobs/j1/saliency/axial/23.png")[2]))).astype(int)
    line = (layer[..., 3] == 255) & (layer[..., 0] > 200) & (layer[..., 1] > 180) & (layer[..., 2] < 60)
    columns = np.argwhere(line)[:, 1]
    assert (columns > layer.shape[1] / 2).sum() == pytest.approx((columns < layer.shape[1] / 2).sum(), rel=0.2)
    assert len(columns) > 100
    colour = (layer[..., 3] > 0) & ~line
    assert np.argwhere(colour)[:, 1].min() > layer.shape[1] / 2  # the right has 0.1 of full colour: none
    assert np.median(layer[..., 3][colour]) == pytest.approx(0.5 * 0.7 * 255, abs=2)
    (folder.explain / "lime_weights.json").write_text("[")
    os.utime(folder.explain / "saliency.nii.gz", (1, 1))  # read anew
    assert site.ask("/jobs/j1/saliency/axial/23.png")[0] == 400


def test_the_strongest_slice_is_shown_first(site: Site) -> None:
    add_job(site, "j1")
    text = site.ask("/jobs/j1?plane=axial")[2].decode()
    index = int(text.split('id="slice" type="range"')[1].split('value="')[1].split('"')[0])
    assert abs(index - (10 + 84) / 4) <= 1


def test_retry_and_cancel_need_our_own_form(site: Site) -> None:
    add_job(site, "j1", JobState.QUEUED, reported=False)
    token = site.form_token("/jobs/j1")
    assert site.ask("/jobs/j1/cancel", method="POST", form={})[0] == 403
    assert site.ask("/jobs/j1/cancel", method="POST", form={"form_token": "0" * 64})[0] == 403
    foreign = {"Origin": "https://evil.example", "Host": f"127.0.0.1:{site.server.port}"}
    assert site.ask("/jobs/j1/cancel", method="POST", form={"form_token": token}, **foreign)[0] == 403
    assert site.ask("/jobs/j1/cancel", method="POST", form={"form_token": token}, Sec_Fetch_Site="cross-site")[0] == 403
    assert site.ask("/jobs/j1/cancel")[0] == 405
    job = site.store.get("j1")
    assert job is not None
    assert job.state is JobState.QUEUED
    assert site.ask("/jobs/j1/cancel", method="POST", form={"form_token": token})[0] == 303
    job = site.store.get("j1")
    assert job is not None
    assert job.state is JobState.CANCELLED
    status, _, body = site.ask("/jobs/j1/cancel", method="POST", form={"form_token": token})
    assert (status, "has ended" in body.decode()) == (400, True)
    assert [line["event"] for line in audit_lines(site)] == ["cancelled"]


def test_basic_credentials_which_browsers_add_by_themselves_are_no_form_token(tmp_path: Path) -> None:
    """A proxy that asks for Basic passwords hands the header on: a form of another site would carry it, too."""
    site = start_site(tmp_path, {**BY_PROXY, "token": TOKEN})
    try:
        add_job(site, "j1", JobState.QUEUED, reported=False)
        for authorization in ("Basic cmVhZGVyOng=", "Bearer wrong"):
            headers = {"Authorization": authorization, "X_Remote_User": "reader"}
            assert site.ask("/jobs/j1/cancel", method="POST", form={}, **headers)[0] == 403
        headers = {"Authorization": f"Bearer {TOKEN}"}
        assert site.ask("/jobs/j1/cancel", method="POST", form={}, **headers)[0] == 303
    finally:
        site.server.stop()


def test_a_local_program_that_names_a_reader_is_not_believed(tmp_path: Path) -> None:
    """Beside a proxy on the same machine any program can write its header; the kernel knows whose connection it is."""
    me = pwd.getpwuid(os.getuid()).pw_name
    other = next(entry.pw_name for entry in pwd.getpwall() if entry.pw_uid not in (0, os.getuid()))
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    mine = start_site(tmp_path / "a", {**BY_PROXY, "proxy_user": me})
    others = start_site(tmp_path / "b", {**BY_PROXY, "proxy_user": other})
    try:
        assert mine.ask("/", X_Remote_User="reader")[0] == 200
        assert others.ask("/", X_Remote_User="reader")[0] == 403
        if os.getuid() == 0:
            for site, status in ((mine, 403), (others, 200)):
                program = (
                    "import http.client\n"
                    f"c = http.client.HTTPConnection('127.0.0.1', {site.server.port}, timeout=60)\n"
                    "c.request('GET', '/', headers={'X-Remote-User': 'reader'})\n"
                    "print(c.getresponse().status)"
                )
                done = subprocess.run(
                    ["/usr/bin/env", "-i", "python3", "-c", program], user=other, cwd="/", capture_output=True,
                    text=True, check=False, timeout=60,
                )  # fmt: skip
                assert done.stdout.strip() == str(status), done.stderr
    finally:
        mine.server.stop()
        others.server.stop()


def test_a_session_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = start_site(tmp_path, {"token": TOKEN, "session_hours": 2})
    try:
        headers = site.ask("/login", method="POST", form={"token": TOKEN})[1]
        assert "Max-Age=7200" in headers["set-cookie"]
        cookie = headers["set-cookie"].partition(";")[0]
        assert site.ask("/", Cookie=cookie)[0] == 200
        end, _, digest = cookie.partition("=")[2].partition(".")
        for forged in (f"{int(end) + 9}.{digest}", digest, f".{digest}", f"{end}.", "", "9" * 5000, f"-{end}.{digest}"):
            assert site.ask("/", Cookie=f"braingemma={forged}")[0] == 401
        now = time.time()
        monkeypatch.setattr("daemon.web.access.time", SimpleNamespace(time=lambda: now + 2 * 3600 + 1))
        assert site.ask("/", Cookie=cookie)[0] == 401
    finally:
        site.server.stop()


def found(site: Site, sought: str, **headers: str) -> list[str]:
    """Jobs that the search lists."""
    fields = {"form_token": site.form_token("/", **headers), "q": sought, "state": headers.pop("state", "")}
    status, _, body = site.ask("/search", method="POST", form=fields, **headers)
    assert status == 200
    return re.findall(r'id="row-(\w+)"', body.decode())


def test_a_study_is_found_by_a_form_and_no_uid_stands_in_an_address(site: Site) -> None:
    add_job(site, "j1")
    folder = add_job(site, "j22", JobState.QUEUED, reported=False)
    an_arrival("j22", study_uid="1.2.3", series_uids=["1.2.826.77.2"]).write(folder.arrival)
    note_study(site.store, "j22", folder)
    for sought, jobs in (("1.2.826.77.2", ["j22"]), (" 1.2.826.77. ", ["j22"]), ("J1", ["j1"]), ("j", ["j22", "j1"])):
        assert found(site, sought) == jobs, sought
    fields = {"form_token": site.form_token("/"), "q": "1.2.3.4.<b>"}
    body = site.ask("/search", method="POST", form=fields)[2].decode()
    assert "1.2.3.4.&lt;b&gt;" in body
    assert "1.2.3.4.<b>" not in body
    assert site.ask("/search", method="POST", form={"q": "j1"})[0] == 403
    assert site.ask("/search?q=j1")[0] == 405


def test_patients_are_named_and_found_only_where_it_is_known_who_asks(tmp_path: Path) -> None:
    site = start_site(tmp_path, {**BY_PROXY, "token": TOKEN})
    other = start_site(tmp_path)  # the same data, for whoever reaches loopback
    try:
        add_job(site, "j1")
        add_job(site, "j22", JobState.FAILED, reported=False)
        site.store.put_deliveries("j1", "pacs", [("1.1", "sr", "sr.dcm"), ("1.2", "sc", "sc.dcm")])
        site.store.update("j1", result="lesion left frontal")
        secrets = (SHOWN_NAME, "P001", "ACC-77/3", "Brain MRI", "2026-01-02")
        for who in ({"Authorization": f"Bearer {TOKEN}"}, {"X_Remote_User": "reader"}):
            text = site.ask("/", **who)[2].decode()
            for shown in (*secrets, "lesion left frontal", "0 of 2 stored", "2 waiting"):
                assert shown in text, shown
            for sought in ("doe", "JANE", "jane doe", "Doe^J", "p001", "acc-77/3", "77", "ACC", "dóe"):
                assert found(site, sought, **who) == ["j1"], sought
            assert found(site, "doe smith", **who) == found(site, "oe", **who) == []
        text = other.ask("/")[2].decode() + other.ask("/refused")[2].decode()
        assert not [secret for secret in secrets if secret in text]
        for sought in ("doe", "p001", "acc", "77"):
            assert found(other, sought) == []
        assert found(other, "j1") == ["j1"]
    finally:
        site.server.stop()
        other.server.stop()


def test_what_headers_say_is_text_and_no_markup(tmp_path: Path) -> None:
    mark = "<img src=x onerror=alert(1)>'\""
    site = start_site(tmp_path, {"token": TOKEN})
    try:
        add_job(site, "j1")
        columns = ("patient_name", "patient_id", "accession_number", "study_date", "study_description")
        site.store.put_study("j1", dict.fromkeys((*columns, "series_description"), mark), {mark.split()[0]: True})
        site.store.put_verdicts(
            "j1", [a_verdict("1.2.3", "refused", f"REFUSED: {mark}", description=mark, number=mark)]
        )
        site.store.update("j1", reason=mark, result=mark, progress=mark)
        site.store.put_deliveries("j1", "pacs", [("1.1", "sr", "sr.dcm")])
        who = {"Authorization": f"Bearer {TOKEN}"}
        fields = {"form_token": site.form_token("/", **who), "q": "<img"}
        pages = [site.ask(path, **who)[2].decode() for path in ("/", "/refused", "/jobs/j1")]
        pages.append(site.ask("/search", method="POST", form=fields, **who)[2].decode())
        for text in pages:
            assert "&lt;img" in text
            assert "<img src=x" not in text
            assert "alert(1)>'" not in text
    finally:
        site.server.stop()


def test_a_search_is_kept_within_a_state_and_has_pages(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.web.pages.ROWS", 2)
    for number in range(5):
        add_job(site, f"k{number}", JobState.DONE if number else JobState.FAILED, reported=False)
    token = site.form_token("/")

    def ask(**fields: str) -> str:
        return site.ask("/search", method="POST", form={"form_token": token, "q": "k", **fields})[2].decode()

    assert re.findall(r'id="row-(\w+)"', ask()) == ["k4", "k3"]
    assert re.findall(r'id="row-(\w+)"', ask(page="3")) == ["k0"]
    assert 'form="search" name="page" value="2"' in ask()
    failed = ask(state="failed")
    assert re.findall(r'id="row-(\w+)"', failed) == ["k0"]
    assert '<input type="hidden" name="state" value="failed">' in failed


def test_a_refused_series_says_what_it_was(site: Site) -> None:
    add_job(site, "j1")
    refused = a_verdict("1.2.4", "refused", "REFUSED: T1", description="t1 mprage sag", number="7", instances=176)
    site.store.put_verdicts("j1", [refused])
    for path in ("/refused", "/jobs/j1"):
        text = " ".join(site.ask(path)[2].decode().split())
        assert re.search(r"t1 mprage sag(</strong>)?, series 7, 176 images", text), path


def test_a_job_that_was_replaced_says_so_and_names_the_newest(site: Site) -> None:
    add_job(site, "j1")
    for job_id, before in (("j2", "j1"), ("j3", "j2")):
        site.store.add(job_id, study_uid="1.2", supersedes=before)
    text = site.ask("/jobs/j1")[2].decode()
    assert 'id="replaced-by" href="/jobs/j3"' in text
    assert "Do not use this report" in text
    assert "replaced-by" not in site.ask("/jobs/j3")[2].decode()


def test_a_reader_is_told_before_a_word_of_his_becomes_a_verified_report(tmp_path: Path) -> None:
    site = start_site(tmp_path, BY_PROXY, review={"verified_sr": True, "organization": "Test Clinic"})
    try:
        add_job(site, "j1")
        text = site.ask("/jobs/j1", X_Remote_User="reader")[2].decode()
        assert "VERIFIED by you</strong>, Test Clinic" in text
        form = {"form_token": site.form_token("/jobs/j1", X_Remote_User="reader"), "verdict": "agree"}
        status, _, body = site.ask("/jobs/j1/review", method="POST", form=form, X_Remote_User="reader")
        assert (status, "only a report that went out as an SR" in body.decode()) == (400, True)
        assert site.ask("/reviews.jsonl", X_Remote_User="reader")[2] == b""  # what is refused is not kept
    finally:
        site.server.stop()


def test_another_sites_name_for_loopback_opens_nothing(site: Site) -> None:
    assert site.ask("/", Host="evil.example")[0] == 421
    assert site.ask("/", Host="localhost")[0] == 200


def test_without_loopback_a_token_or_a_proxy_is_needed(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="is not loopback"):
        _load(tmp_path, '[web]\nhost = "0.0.0.0"\n')
    with pytest.raises(ConfigurationError, match="at least 16") as short:
        _load(tmp_path, '[web]\ntoken = "hush-hush"\n')
    assert "hush-hush" not in str(short.value)
    assert _load(tmp_path, f'[web]\nhost = "0.0.0.0"\ntoken = "{TOKEN}"\n').web.host == "0.0.0.0"


def _load(folder: Path, text: str):  # type: ignore[no-untyped-def]
    from daemon.config.load import load_settings

    path = folder / "x.toml"
    path.write_text(text)
    return load_settings(path)


def test_a_token_opens_by_header_and_by_cookie(tmp_path: Path) -> None:
    site = start_site(tmp_path, {"token": TOKEN})
    try:
        assert site.ask("/")[0] == 401
        status, headers, _ = site.ask("/", Accept="text/html")
        assert (status, headers["location"]) == (303, "/login")
        assert site.ask("/", Authorization=f"Bearer {TOKEN}")[0] == 200
        assert site.ask("/", Authorization="Bearer wrong")[0] == 401
        assert site.ask("/login", method="POST", form={"token": "wrong"})[0] == 401
        status, headers, _ = site.ask("/login", method="POST", form={"token": TOKEN})
        assert status == 303
        cookie = headers["set-cookie"]
        assert TOKEN not in cookie
        assert "HttpOnly" in cookie
        assert "samesite=strict" in cookie.lower()
        assert site.ask("/", Cookie=cookie.split(";")[0])[0] == 200
        assert site.ask("/healthz")[0] == 200
    finally:
        site.server.stop()


def test_a_proxy_names_the_reader_and_only_from_its_address(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    trusting = start_site(tmp_path / "a", BY_PROXY)
    distrusting = start_site(tmp_path / "b", {**BY_PROXY, "trusted_proxies": ["192.0.2.9"]})
    try:
        add_job(trusting, "j1")
        assert trusting.ask("/")[0] == 403
        assert trusting.ask("/", X_Remote_User="reader")[0] == 200
        assert distrusting.ask("/", X_Remote_User="reader")[0] == 403
        token = trusting.form_token("/jobs/j1", X_Remote_User="reader")
        form = {"form_token": token, "verdict": "agree"}
        assert trusting.ask("/jobs/j1/review", method="POST", form=form, X_Remote_User="other")[0] == 403
        assert trusting.ask("/jobs/j1/review", method="POST", form=form, X_Remote_User="reader")[0] == 303
        [line] = trusting.ask("/reviews.jsonl", X_Remote_User="reader")[2].splitlines()
        assert json.loads(line)["reader"] == "reader"
    finally:
        trusting.server.stop()
        distrusting.server.stop()


def test_a_verdict_needs_what_belongs_to_it_and_is_exported(site: Site) -> None:
    add_job(site, "j1")
    token = site.form_token("/jobs/j1")

    def judge(**fields: str) -> int:
        return site.ask("/jobs/j1/review", method="POST", form={"form_token": token, **fields})[0]

    assert judge(verdict="perhaps") == 400
    assert judge(verdict="reject") == 400
    assert judge(verdict="edit", edited="The lesion area is in the left frontal lobe.") == 400
    assert judge(verdict="reject", reason="wrong side") == 303
    assert judge(verdict="edit", edited="The lesion area is in the right frontal lobe.") == 303
    rows = [json.loads(line) for line in site.ask("/reviews.jsonl")[2].splitlines()]
    assert [(r["verdict"], r["reason"], r["edited"]) for r in rows] == [
        ("reject", "wrong side", ""),
        ("edit", "", "The lesion area is in the right frontal lobe."),
    ]
    assert rows[0]["report"] == "The lesion area is in the left frontal lobe."
    assert rows[0]["facts"]["model"]["name"] == "demo"
    assert NAME not in json.dumps(rows)
    metrics = site.ask("/metrics")[2].decode()
    assert 'braingemma_reader_verdicts_total{verdict="reject"}' in metrics


def test_metrics_and_health(site: Site) -> None:
    add_job(site, "j1")
    site.store.put_deliveries("j1", "pacs", [("1.1", "sr", "sr.dcm")])
    metrics = site.ask("/metrics")[2].decode()
    assert 'braingemma_jobs{state="done"} 1.0' in metrics
    assert 'braingemma_delivery_waiting_objects{destination="pacs"} 1.0' in metrics
    for name in ("braingemma_disk_free_bytes", "braingemma_open_files", "braingemma_memory_bytes"):
        assert name in metrics
    assert "1.2.3" not in metrics
    assert site.ask("/healthz")[0] == 200
    assert json.loads(site.ask("/readyz")[2]) == {"ready": True, "obstacles": []}


def test_logs_and_addresses_hold_nothing_of_patients(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    add_job(site, "j1")
    with caplog.at_level(logging.DEBUG):
        text = site.ask("/jobs/j1")[2].decode()
        site.ask("/jobs/j1/files/none")
        site.ask("/jobs/j1/cancel", method="POST", form={"form_token": site.form_token("/jobs/j1")})
    assert "download: 404" in caplog.text
    for secret in (NAME, "P001", "Doe"):
        assert secret not in caplog.text
        assert not [part for part in text.split('href="')[1:] if secret in part.split('"')[0]]
