"""axe-core on every kind of page, light and dark, wide and narrow: nothing serious."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from PIL import Image
from record_support import a_report
from web_support import BANNER, Site, a_verdict, add_job, start_site

from daemon.cohort.batch import CaseRecord
from daemon.cohort.page import write_page
from daemon.cohort.table import rows_of
from daemon.database.tables import FIGURES, INSTANCES, JobState
from daemon.jobs.folder import JobFolder
from daemon.jobs.report import write_report
from daemon.jobs.reviews import add_review
from daemon.pull.asks import query
from daemon.pull.store import PullStore

CHROMIUM = shutil.which("chromium")
TOKEN = "a-token-of-24-characters"
SERIOUS = ("serious", "critical")
PATIENCE_MS = 120_000
VIEWS = [(scheme, width) for scheme in ("light", "dark") for width in (1280, 390)]

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed"),
]
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """Pages with all that they can show, for whoever has the token."""
    web = {"token": TOKEN, "upload": True, "viewer_url": "https://pacs.example/v?a={StudyInstanceUID}"}
    served = start_site(tmp_path / "named", web)
    fill(served)
    yield served
    served.server.stop()


@pytest.fixture
def nameless(tmp_path: Path) -> Iterator[Site]:
    """The page as every user of the machine sees it: no names, and jobs by their ids."""
    served = start_site(tmp_path / "nameless")
    fill(served)
    yield served
    served.server.stop()


def fill(site: Site) -> None:
    """Jobs in all states, a dead letter, a study that arrives, a pull, a pause, verdicts, figures of two scanners."""
    add_job(site, "j1", JobState.DELIVERING)
    site.store.put_deliveries("j1", "pacs", [("1.1", "sr", "sr.dcm")])
    site.store.give_up_delivery("j1", "pacs", "connection refused")
    refusals = [a_verdict(f"1.2.{number}", "refused", "ok: MR", "REFUSED: T1", description="t1") for number in (4, 5)]
    site.store.put_verdicts("j1", [a_verdict("1.2.3", "accepted", "ok: MR"), *refusals])
    add_job(site, "j2", JobState.FAILED, reported=False)
    site.store.update("j2", reason="the model process was killed")
    add_job(site, "j3", JobState.RUNNING, reported=False)
    site.store.update("j3", progress="explaining, volume 3/100")
    site.store.pause("reader")
    PullStore(site.store.engine).add("archive", [query("PatientID=4711")], all_series=False)
    folder = JobFolder(site.jobs / "j1")
    add_review(site.store.engine, folder, "j1", verdict="reject", reader="reader", reason="the other side", edited="")
    arriving = {
        "study_uid": "1.2.9", "series_uid": "1.2.9.1", "sop_uid": "1.2.9.1.1", "sha256": "0", "sop_class_uid": "1",
        "transfer_syntax_uid": "1", "state": "pending", "segment": "s", "data_offset": 0, "data_length": 1,
        "association": "a", "calling_aet": "MR1", "peer": "127.0.0.1", "received": 0.0, "last_received": 0.0,
    }  # fmt: skip
    months = [
        {"month": month, "scanner": scanner, "name": name, "number": number}
        for month in ("2026-01", "2026-02")
        for scanner in ("ACME One", "Other Two")
        for name, number in (("reports", 3), ("warned", 1), ("finding:lesion:present", 2))
    ]
    with site.store.engine.begin() as connection:
        connection.execute(sa.insert(INSTANCES).values(arriving))
        connection.execute(sa.insert(FIGURES).values(months))


def files_of(folder: Path) -> list[Path]:
    """Pages that are files: a report with all pictures, and the cases of a batch."""
    reported, refused = JobFolder(folder / "cases" / "a"), JobFolder(folder / "cases" / "b")
    reported.explain.mkdir(parents=True)
    refused.root.mkdir()
    Image.fromarray(np.zeros((64, 96), np.uint8)).save(reported.explain / "overlay_slices.png")
    write_report(reported, a_report(warnings=["Slices are 4 mm thick."], banner=BANNER))
    CaseRecord(case="a", status="reported", patient_id="P1", manufacturer="ACME").write(reported.root / "case.json")
    CaseRecord(case="b", status="refused", reason="no brain FLAIR").write(refused.root / "case.json")
    write_page(rows_of(folder), folder, BANNER)
    return [reported.report_html, folder / "index.html"]


def addresses(*paths: str) -> Iterator[tuple[str, Callable[[object], None]]]:
    """Pages that are got by an address of their own."""
    for path in paths:
        yield path, lambda page, path=path: page.goto(path)  # type: ignore[misc]


def pages_of_forms(folder: Path) -> Iterator[tuple[str, Callable[[object], None]]]:
    """Pages that answer a form."""

    def test(page) -> None:  # type: ignore[no-untyped-def]
        page.goto("/")
        page.locator("#test-pacs").click()
        page.wait_for_url("**/destinations/pacs/test")

    def search(page, sought: str) -> None:  # type: ignore[no-untyped-def]
        page.goto("/refused")  # without the script that searches while one types
        page.locator("#find").fill(sought)
        page.get_by_role("button", name="Find").click()
        page.wait_for_url("**/search")

    def upload(page) -> None:  # type: ignore[no-untyped-def]
        with zipfile.ZipFile(folder / "study.zip", "w") as archive:
            archive.writestr("notes.txt", "no DICOM")
        page.goto("/upload")
        page.locator("#files").set_input_files(folder / "study.zip")
        page.get_by_role("button", name="Upload").click()
        playwright.expect(page.get_by_role("status").first).to_be_attached()

    yield "destination tested", test
    yield "search", lambda page: search(page, "Doe")
    yield "search without a hit", lambda page: search(page, "nobody")
    yield "uploaded", upload


def wrong_token(page) -> None:  # type: ignore[no-untyped-def]
    """The login after a token that is not the one."""
    page.goto("/login")
    page.locator("#token").fill("not the token")
    page.get_by_role("button", name="Open").click()
    playwright.expect(page.get_by_role("alert")).to_be_visible()


def faults_of(page, name: str) -> Iterator[str]:  # type: ignore[no-untyped-def]
    """What axe finds on an open page in each view, and that nothing is wider than the screen."""
    for scheme, width in VIEWS:
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": width, "height": 800})
        response = axe.Axe().run(page).response
        where = f"{name} ({scheme}, {width})"
        if len(response["passes"]) < 8:
            yield f"{where}: axe looked at {len(response['passes'])} rules only"
        for violation in response["violations"]:
            if violation["impact"] in SERIOUS:
                for node in violation["nodes"]:
                    yield f"{where} {violation['id']} ({violation['impact']}): {node['html'][:160]}"
        wide = page.evaluate("document.documentElement.scrollWidth")
        if wide > width:
            yield f"{where}: {wide} pixels wide"


def test_axe_finds_nothing_serious(site: Site, nameless: Site, tmp_path: Path) -> None:
    (tmp_path / "batch").mkdir()
    known = [
        *addresses("/", "/?state=failed", "/?state=queued", "/jobs/j1", "/jobs/j1?plane=sagittal", "/jobs/j2",
                   "/jobs/none", "/jobs/j1/files/report.html", "/refused", "/reviews", "/figures", "/upload"),
        *pages_of_forms(tmp_path),
        *addresses(*(file.as_uri() for file in files_of(tmp_path / "batch"))),
    ]  # fmt: skip
    unknown = [*addresses("/login"), ("wrong token", wrong_token)]
    open_to_all = [*addresses("/", "/jobs/j1")]
    found: list[str] = []
    with playwright.sync_playwright() as driver:
        arguments = ["--no-sandbox"] if os.getuid() == 0 else []
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=arguments, timeout=PATIENCE_MS)
        for served, headers, visits in (
            (site, {"Authorization": f"Bearer {TOKEN}"}, known),
            (site, {}, unknown),
            (nameless, {}, open_to_all),
        ):
            context = browser.new_context(base_url=served.url, extra_http_headers=headers, bypass_csp=True)
            page = context.new_page()
            page.set_default_timeout(PATIENCE_MS)
            for name, visit in visits:
                visit(page)
                found += faults_of(page, name)
            context.close()
        browser.close()
    assert found == []
