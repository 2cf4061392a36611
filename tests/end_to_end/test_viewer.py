"""What a viewer shows of our results: OHIF in headless Chromium, on Orthanc's DICOMweb.

OHIF 3.13.2 takes a Parametric Map's frames at byte offsets that are multiples of Rows x Columns, not of four times
that, so it loads floats only where that product is a multiple of 4, as scanners' matrices are; the phantom's is, too.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image
from viewer_support import OHIF, OneOrigin, ohif

from daemon.trial.pacs import DICOM_WEB, Orthanc
from dicom_io.content.report import FindingRecord, MeasurementRecord, ModelIdentity, ReportContent
from dicom_io.pack.encode import Pack, encode_pack, wanted
from dicom_io.series.group import scan_folder
from dicom_io.series_writer import write_series
from dicom_io.volume.nifti import convert_series
from training.phantoms.phantom import make_phantom

CHROMIUM = shutil.which("chromium")

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.orthanc,
    pytest.mark.timeout(900),
    pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed"),
    pytest.mark.skipif(shutil.which("Orthanc") is None, reason="Debian's orthanc is not installed"),
    pytest.mark.skipif(not DICOM_WEB.exists(), reason="Debian's orthanc-dicomweb is not installed"),
]
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

PATIENCE_MS = 240_000
SOFTWARE_GL = ["--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]
SHOTS = os.environ.get("BRAINGEMMA_SCREENSHOTS")
"""Folder for screenshots, such as docs/; they are taken anew only by hand."""

REPORT = (
    "The lesion area is in the {side} frontal and parietal lobes with a mixed pattern of high and low signals.\n"
    "Edema is mainly observed around the lesion. Ventricular compression is not observed."
)


def results(folder: Path) -> tuple[list[Path], Pack, str]:
    """A phantom study, results whose region is the lesion that was drawn, and its side."""
    phantom = make_phantom(900_001, spacing=(2.5, 2.5, 5.0))
    volume, lesion = (padded(image) for image in (phantom.volume, phantom.lesion))
    files = write_series(volume, folder / "source", overrides={"PatientName": "Phantom^Head", "PatientID": "P900001"})
    [series] = scan_folder(folder / "source").series
    conversion = convert_series(series, folder / "volume_ras.nii.gz")
    weights = lesion.get_fdata().astype(np.float32) * 0.7
    weights[: weights.shape[0] // 4] -= 0.1 * (volume.get_fdata()[: weights.shape[0] // 4] > 100)
    x = nibabel.affines.apply_affine(volume.affine, np.argwhere(lesion.get_fdata() > 0))[:, 0]
    side = "left" if np.median(x) < 0 else "right"
    saliency = folder / "saliency.nii.gz"
    nibabel.save(nibabel.Nifti1Image(weights, volume.affine), saliency)
    nibabel.save(
        nibabel.Nifti1Image((lesion.get_fdata() > 0).astype(np.uint8), volume.affine), folder / "lesion.nii.gz"
    )
    volume_ml = round(float((lesion.get_fdata() > 0).sum()) * 2.5 * 2.5 * 5 / 1000, 1)
    pack = encode_pack(
        source_files=files,
        geometry=conversion.geometry,
        volume_path=conversion.volume_path,
        saliency_path=saliency,
        lesion_path=folder / "lesion.nii.gz",
        content=ReportContent(
            report_text=REPORT.format(side=side),
            findings=(
                FindingRecord("lesion", "present", side, ("frontal", "parietal"), 0.93),
                FindingRecord("edema", "present", side, ("frontal",)),
                FindingRecord("ventricular_compression", "absent"),
            ),
            warnings=("2 slices were repeated by the sender.",),
            banner="Demo weights: trained on synthetic images only. Their text says nothing about any patient.",
            intended_use="Research use only; not a medical device.",
            model=ModelIdentity("BrainGemma3D demo", "3", "ab" * 32, "BrainGemma3D for PACS", {"decoding": "greedy"}),
            explain={"method": "KernelSHAP", "samples": 42, "r2": 0.8},
            measurements=(MeasurementRecord("lesion_volume", volume_ml, "mL", "lesion map of the model", side),),
        ),
        kinds=wanted(),
        identity="viewer",
        out=folder / "dicom",
    )
    return files, pack, side


def padded(image: nibabel.Nifti1Image) -> nibabel.Nifti1Image:
    """With rows and columns that are multiples of 4, as scanners' are."""
    data = np.asanyarray(image.dataobj)
    return nibabel.Nifti1Image(np.pad(data, [(0, -n % 4) for n in data.shape[:2]] + [(0, 0)]), image.affine)


@dataclass
class Viewer:
    """OHIF on a study, and what went wrong in it."""

    browser: Any
    origin: OneOrigin
    pack: Pack
    side: str
    """Of the region."""
    faults: list[str] = field(default_factory=list)

    def open(self, kind: str) -> Any:
        """The page with the first object of this kind in its viewport."""
        self.faults.clear()
        self.origin.refused.clear()
        page = self.browser.new_page(viewport={"width": 1280, "height": 800})
        page.set_default_timeout(PATIENCE_MS)
        page.add_init_script("localStorage.setItem('shownTours', JSON.stringify(['basicViewerTour']))")
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("console", lambda m: self.faults.append(m.text) if m.type == "error" else None)
        series = self.pack.of_kind(kind)[0].series_uid
        query = f"StudyInstanceUIDs={self.pack.study_uid}&initialSeriesInstanceUID={series}"
        page.goto(f"{self.origin.url}/viewer?{query}", timeout=PATIENCE_MS)
        return page

    def close(self, page: Any, name: str) -> None:
        """Keep a screenshot where one is wanted, and let nothing that went wrong pass."""
        if SHOTS:
            page.screenshot(path=f"{SHOTS}/ohif-{name}.png")
        page.close()
        assert self.faults == []
        assert self.origin.refused == []


@pytest.fixture(scope="module")
def viewer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Viewer]:
    try:
        files = ohif()
    except FileNotFoundError:
        pytest.skip("npm is not installed")
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"npm does not give {OHIF}: {error}")
    folder = tmp_path_factory.mktemp("viewer")
    received, pack, side = results(folder)
    orthanc = Orthanc(folder / "orthanc", modalities={}, dicom_web=True)
    for file in [*received, *(item.path for item in pack.objects)]:
        orthanc.post("/instances", file.read_bytes())
    origin = OneOrigin(files, orthanc)
    with playwright.sync_playwright() as driver:
        arguments = [*SOFTWARE_GL, *(["--no-sandbox"] if os.getuid() == 0 else [])]
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=arguments, timeout=PATIENCE_MS)
        yield Viewer(browser, origin, pack, side)
        browser.close()
    origin.stop()
    orthanc.stop()


def in_colour(page: Any) -> np.ndarray:
    """Mask of the middle of the viewport: where it is in colour. Legends and letters are outside."""
    shot = page.locator("[data-cy=viewport-grid]").screenshot()
    pixels = np.asarray(Image.open(io.BytesIO(shot)).convert("RGB")).astype(int)
    rows, columns = pixels.shape[0] // 6, pixels.shape[1] // 6
    middle = pixels[rows:-rows, columns:-columns]
    return np.asarray(middle.max(axis=2) - middle.min(axis=2) > 60)


def colourful(page: Any) -> int:
    """How many pixels are in colour."""
    return int(in_colour(page).sum())


def half_of_colour(page: Any) -> str:
    """The patient's side on which most of the colour is: the left is on the right of an axial picture."""
    mask = in_colour(page)
    return "left" if np.median(np.nonzero(mask)[1]) > mask.shape[1] / 2 else "right"


def wait_for_colour(page: Any, least: int, *, key: str | None = None) -> None:
    """Wait until that many pixels are in colour; `key` is pressed in between, to get to another slice."""
    for _ in range(PATIENCE_MS // 1000):
        if colourful(page) >= least:
            return
        if key is not None:
            page.keyboard.press(key)
        page.wait_for_timeout(1000)
    raise AssertionError(f"expected {least} pixels in colour, got {colourful(page)}")


def texts_of(items: Any) -> Iterator[str]:
    for item in items:
        if item.ValueType == "TEXT":
            yield str(item.TextValue)
        yield from texts_of(item.get("ContentSequence", []))


def test_the_full_text_of_the_report_is_on_the_screen(viewer: Viewer) -> None:
    page = viewer.open("sr")
    page.get_by_text("Diagnostic Imaging Report").first.wait_for()
    shown = " ".join(page.locator("body").inner_text().split())
    said = list(texts_of(pydicom.dcmread(viewer.pack.of_kind("sr")[0].path).ContentSequence))
    assert any(f"lesion area is in the {viewer.side} frontal" in " ".join(text.split()) for text in said)
    for text in said:
        assert " ".join(text.split()) in shown
    for meaning in (viewer.side.capitalize(), "Frontal lobe", "Absent", "Device Observer UID", "UNVERIFIED AI DRAFT"):
        assert meaning in shown
    viewer.close(page, "sr")


def test_the_impression_is_on_the_first_screen(viewer: Viewer) -> None:
    """Banner, warnings and impression, without scrolling, at 1280 x 800."""
    page = viewer.open("sr")
    for words in ("UNVERIFIED AI DRAFT", "Warning: 2 slices were repeated", f"Lesion: present, {viewer.side}"):
        shown = page.get_by_text(words).first
        shown.wait_for()
        box = shown.bounding_box()
        assert box is not None, words
        assert box["y"] + box["height"] <= 800, (words, box)
    viewer.close(page, "sr-first-screen")


def test_the_overlay_is_in_colour(viewer: Viewer) -> None:
    page = viewer.open("sc")
    page.locator("[data-cy=viewport-grid] canvas").first.click()
    wait_for_colour(page, 2000, key="ArrowDown")  # it opens at an end of the head, where there is nothing
    assert half_of_colour(page) == viewer.side
    viewer.close(page, "overlay")


def test_segments_lie_over_the_source_on_their_side(viewer: Viewer) -> None:
    page = viewer.open("seg")
    wait_for_colour(page, 200)
    assert half_of_colour(page) == viewer.side
    viewer.close(page, "seg")


def test_the_parametric_map_loads_without_an_error(viewer: Viewer) -> None:
    page = viewer.open("pm")
    page.locator("[data-cy=viewport-grid] canvas").first.wait_for()
    playwright.expect(page.get_by_text("Loading Parametric Map")).to_have_count(0, timeout=PATIENCE_MS)
    wait_for_colour(page, 2000)
    assert half_of_colour(page) == viewer.side
    viewer.close(page, "pm")
