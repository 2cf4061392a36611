"""The page in a real browser: Debian's Chromium, headless, driven by Playwright."""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from web_support import Site, a_verdict, add_job, start_site

from daemon.database.tables import JobState

CHROMIUM = shutil.which("chromium")

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed"),
]
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

PATIENCE_MS = 60_000


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    served = start_site(tmp_path)
    yield served
    served.server.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    with playwright.sync_playwright() as driver:
        arguments = ["--no-sandbox"] if os.getuid() == 0 else []
        started = driver.chromium.launch(executable_path=CHROMIUM, args=arguments, timeout=PATIENCE_MS)
        yield started
        started.close()


@pytest.fixture
def faults() -> list[str]:
    return []


@pytest.fixture
def page(browser, faults: list[str]):  # type: ignore[no-untyped-def]
    opened = browser.new_page()
    opened.set_default_timeout(PATIENCE_MS)
    opened.on("pageerror", lambda error: faults.append(str(error)))
    opened.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    yield opened
    opened.close()
    assert faults == []  # neither an error in a script, nor anything that the content policy stopped


def test_the_overview_updates_itself(site: Site, page) -> None:  # type: ignore[no-untyped-def]
    page.goto(site.url)
    playwright.expect(page.locator("#tile-all b")).to_have_text("0")
    add_job(site, "j1", JobState.RUNNING, reported=False)
    site.store.update("j1", step="explain", progress="explaining, volume 3/100")
    playwright.expect(page.locator("#tile-running b")).to_have_text("1", timeout=PATIENCE_MS)
    playwright.expect(page.locator(".steps li.now")).to_have_text("explain")
    playwright.expect(page.locator("#work-j1")).to_be_visible()


def test_a_job_becomes_a_report_without_reloading_by_hand(site: Site, page) -> None:  # type: ignore[no-untyped-def]
    add_job(site, "j0")
    folder = add_job(site, "j1", JobState.RUNNING, reported=False)
    page.goto(f"{site.url}/jobs/j1")
    playwright.expect(page.locator("#report-text")).to_have_count(0)
    shutil.rmtree(folder.root)
    shutil.copytree(site.jobs / "j0", folder.root)
    site.store.update("j1", state=JobState.DONE)
    playwright.expect(page.locator("#report-text")).to_contain_text("left frontal lobe", timeout=PATIENCE_MS)


def test_slices_are_scrolled_by_keyboard_and_the_overlay_is_switched(site: Site, page) -> None:  # type: ignore[no-untyped-def]
    add_job(site, "j1")
    page.goto(f"{site.url}/jobs/j1?plane=axial")
    slider, where = page.locator("#slice"), page.locator("#position")
    first = int(slider.input_value())
    slider.focus()
    page.keyboard.press("ArrowRight")
    playwright.expect(where).to_contain_text(f"{first + 2}/43")
    # the content policy forbids what Playwright's wait_for_function does with text
    playwright.expect(page.locator("#flair")).to_have_attribute("src", re.compile("^blob:"), timeout=PATIENCE_MS)
    assert page.evaluate("document.getElementById('flair').naturalWidth") > 100
    page.keyboard.press("o")
    playwright.expect(page.locator("#opacity-value")).to_have_text("0 %")
    assert page.evaluate("getComputedStyle(document.getElementById('map')).opacity") == "0"
    page.keyboard.press("o")
    playwright.expect(page.locator("#opacity-value")).to_have_text("80 %")
    page.locator("#contrast").focus()
    page.keyboard.press("End")
    assert "contrast(400%)" in page.evaluate("getComputedStyle(document.getElementById('flair')).filter").replace(
        "contrast(4)", "contrast(400%)"
    )
    page.get_by_role("link", name="coronal").click()
    playwright.expect(where).to_contain_text("/55")
    playwright.expect(page.locator("#flair")).to_have_attribute("alt", re.compile("coronal"), timeout=PATIENCE_MS)


def test_changing_the_plane_keeps_the_point(site: Site, page) -> None:  # type: ignore[no-untyped-def]
    add_job(site, "j1")
    page.goto(f"{site.url}/jobs/j1?plane=axial")
    slider = page.locator("#slice")
    slider.focus()
    page.keyboard.press("ArrowRight")
    axial = slider.input_value()
    page.get_by_role("link", name="coronal").click()
    playwright.expect(page.locator("#position")).to_contain_text("/55")
    assert abs(int(slider.input_value()) - (10 + 108) / 4) <= 1  # of the ball, whose map is strongest there
    page.keyboard.press("Tab")
    page.get_by_role("link", name="axial").click()
    playwright.expect(page.locator("#position")).to_contain_text("/43")
    assert slider.input_value() == axial


def test_the_list_narrows_as_one_types(site: Site, page) -> None:  # type: ignore[no-untyped-def]
    for job_id in ("j1", "j22"):
        add_job(site, job_id, reported=False)
    page.goto(site.url)
    playwright.expect(page.locator("#row-j1")).to_be_visible()
    page.locator("#find").press_sequentially("J22")
    playwright.expect(page.locator("#row-j1")).to_have_count(0)
    playwright.expect(page.locator("#row-j22")).to_be_visible()
    assert "J22" not in page.url
    site.store.update("j22", result="lesion left frontal")  # what is found is kept up to date, too
    playwright.expect(page.locator("main")).to_contain_text("lesion left frontal")
    page.locator("#find").fill("")
    playwright.expect(page.locator("#row-j1")).to_be_visible()


def test_a_verdict_is_given_by_keyboard_alone(site: Site, page) -> None:  # type: ignore[no-untyped-def]
    add_job(site, "j1")
    page.goto(f"{site.url}/jobs/j1")
    page.locator("input[name=verdict][value=agree]").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")  # agree, edit, reject
    page.locator("#why").focus()
    page.keyboard.type("the lesion is on the other side")
    page.keyboard.press("Enter")
    playwright.expect(page.locator(".given")).to_contain_text("the lesion is on the other side")
    page.goto(f"{site.url}/reviews")
    playwright.expect(page.locator("tbody tr")).to_contain_text("reject")


def test_cancel_by_its_button(site: Site, page) -> None:  # type: ignore[no-untyped-def]
    add_job(site, "j1", JobState.QUEUED, reported=False)
    page.goto(f"{site.url}/jobs/j1")
    page.get_by_role("button", name="Cancel this job").click()
    playwright.expect(page.locator(".badge.cancelled")).to_be_visible()
    playwright.expect(page.get_by_role("button", name="Try again")).to_be_visible()


def test_a_page_whose_service_is_gone_says_of_when_it_is(site: Site, browser) -> None:  # type: ignore[no-untyped-def]
    page = browser.new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.goto(site.url)
    playwright.expect(page.locator("#stale")).to_be_hidden()
    site.server.stop()
    playwright.expect(page.locator("#stale")).to_contain_text("The service does not answer", timeout=PATIENCE_MS)
    page.close()


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_nothing_is_wider_than_the_screen(site: Site, browser, width: int) -> None:  # type: ignore[no-untyped-def]
    """WCAG 2.2, 1.4.10: at 320 pixels nothing but tables needs to be scrolled sideways."""
    add_job(site, "j1")
    add_job(site, "j2", JobState.SET_ASIDE, reported=False)
    uid = "1.2.826.0.1.3680043.8.498.1111997464662913642263474203676117744"
    site.store.update("j2", reason=f"no brain FLAIR among 1 series: {uid}")
    site.store.put_verdicts("j2", [a_verdict(uid, "refused", f"REFUSED: {uid}")])
    page = browser.new_page(viewport={"width": width, "height": 800})
    page.set_default_timeout(PATIENCE_MS)
    for path in ("/", "/jobs/j1", "/jobs/j2", "/refused", "/reviews"):
        page.goto(site.url + path)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
    page.close()


def test_everything_is_reached_by_the_tab_key(site: Site, page) -> None:  # type: ignore[no-untyped-def]
    add_job(site, "j1")
    page.goto(f"{site.url}/jobs/j1?plane=axial")
    wanted = {"find", "slice", "opacity", "brightness", "contrast", "edited", "why"}
    reached, visible = set(), True
    for _ in range(60):
        page.keyboard.press("Tab")
        name, outlined = page.evaluate(
            "[document.activeElement.id, getComputedStyle(document.activeElement).outlineStyle !== 'none']"
        )
        reached.add(name)
        visible = visible and (outlined or not name)
    assert wanted <= reached
    assert visible, "the focus cannot be seen"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_background(site: Site, browser, scheme: str) -> None:  # type: ignore[no-untyped-def]
    """WCAG 2.2, 1.4.3: a contrast of 4.5 or more."""
    add_job(site, "j1")
    context = browser.new_context(color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.goto(f"{site.url}/jobs/j1")
    for selector in ("body", ".limits", ".banner", ".report", "small", "button", ".badge.done", "h2", ".hint small"):
        contrast = page.evaluate(CONTRAST, selector)
        assert contrast >= 4.5, (scheme, selector, contrast)
    back = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (back == "rgb(17, 23, 28)") is (scheme == "dark")
    context.close()


def test_without_scripts_everything_is_still_there(site: Site, browser) -> None:  # type: ignore[no-untyped-def]
    add_job(site, "j1")
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.goto(f"{site.url}/jobs/j1?plane=axial&slice=20")
    playwright.expect(page.locator("#report-text")).to_contain_text("left frontal lobe")
    page.get_by_role("link", name="Next slice").click()
    playwright.expect(page.locator("#position")).to_contain_text("22/43")
    page.locator("#find").fill("no such job")
    page.get_by_role("button", name="Find").click()
    playwright.expect(page.locator("#row-j1")).to_have_count(0)
    page.locator("#find").fill("j1")
    page.locator("#find").press("Enter")
    playwright.expect(page.locator("#row-j1")).to_be_visible()
    context.close()


CONTRAST = """selector => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const element = document.querySelector(selector);
  let back = element;
  while (back && (parse(getComputedStyle(back).backgroundColor)[3] ?? 1) === 0) back = back.parentElement;
  const a = luminance(parse(getComputedStyle(element).color));
  const b = luminance(parse(getComputedStyle(back).backgroundColor));
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
}"""
