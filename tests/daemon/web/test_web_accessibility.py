"""axe-core on every page, light and dark, wide and narrow: nothing serious."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from web_support import Site, a_verdict, add_job, start_site

from daemon.database.tables import JobState

CHROMIUM = shutil.which("chromium")
TOKEN = "a-token-of-24-characters"
PATHS = ("/", "/?state=failed", "/jobs/j1?plane=axial", "/jobs/j2", "/jobs/none", "/refused", "/reviews", "/upload")
SERIOUS = ("serious", "critical")

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed"),
]
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """Pages with all that they can show."""
    viewer = "https://pacs.example/v?a={StudyInstanceUID}"
    served = start_site(tmp_path, {"token": TOKEN, "upload": True, "viewer_url": viewer})
    add_job(served, "j1", JobState.DELIVERING)
    served.store.put_deliveries("j1", "pacs", [("1.1", "sr", "sr.dcm")])
    served.store.give_up_delivery("j1", "pacs", "connection refused")
    served.store.put_verdicts("j1", [a_verdict("1.2.4", "refused", "ok: MR", "REFUSED: T1", description="t1")])
    add_job(served, "j2", JobState.FAILED, reported=False)
    served.store.update("j2", reason="the model process was killed")
    add_job(served, "j3", JobState.RUNNING, reported=False)
    served.store.update("j3", progress="explaining, volume 3/100")
    served.store.pause("reader")
    yield served
    served.server.stop()


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 390)])
def test_axe_finds_nothing_serious(site: Site, scheme: str, width: int) -> None:
    found: list[str] = []
    looked = 0
    with playwright.sync_playwright() as driver:
        arguments = ["--no-sandbox"] if os.getuid() == 0 else []
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=arguments, timeout=120_000)
        view = {"color_scheme": scheme, "viewport": {"width": width, "height": 800}, "bypass_csp": True}
        known = browser.new_context(extra_http_headers={"Authorization": f"Bearer {TOKEN}"}, **view)
        stranger = browser.new_context(**view)
        for context, path in [*((known, path) for path in PATHS), (stranger, "/login")]:
            page = context.new_page()
            page.set_default_timeout(120_000)
            page.goto(site.url + path)
            response = axe.Axe().run(page).response
            looked += len(response["passes"])
            found += [
                f"{path} {violation['id']} ({violation['impact']}): {node['html'][:160]}"
                for violation in response["violations"]
                if violation["impact"] in SERIOUS
                for node in violation["nodes"]
            ]
            page.close()
        browser.close()
    assert looked > 10 * len(PATHS), "axe looked at nothing"
    assert found == []
