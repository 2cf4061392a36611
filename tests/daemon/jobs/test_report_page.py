"""The page of a report: what a reader needs first stands first, whose study it is, and nobody where nobody is named."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid
from record_support import a_report, a_selection

from daemon.config.sections import Settings
from daemon.jobs.folder import JobFolder
from daemon.jobs.records import CorrectedIdentity, SourceFile
from daemon.jobs.report import findings_line, write_report
from daemon.pipeline.steps.encode import result_content

CHROMIUM = shutil.which("chromium")
MEASURED = {"name": "lesion_volume", "value": 93.9, "unit": "mL", "method": "lesion map", "laterality": "left"}


@pytest.fixture
def folder(tmp_path: Path) -> JobFolder:
    """Two series; the second is the one that is reported."""
    made = JobFolder(tmp_path)
    made.input.mkdir()
    for number, (uid, series) in enumerate((("1.2.1", "AX T1"), ("1.2.3", "AX FLAIR"))):
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = MRImageStorage
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
        dataset.PatientName, dataset.PatientID, dataset.StudyDate = "Doe^Jane", "P001", "20260102"
        dataset.SeriesInstanceUID, dataset.SeriesDescription = uid, series
        dataset.save_as(made.input / f"{number}.dcm", enforce_file_format=True)
    a_selection("1.2.3").write(made.selection)
    return made


def page_of(folder: JobFolder, **more: bool) -> str:
    warnings = ("Check the side.",)
    write_report(folder, a_report(measurements=[MEASURED], warnings=warnings, banner="Demo weights."), **more)
    return folder.report_html.read_text(encoding="utf-8")


def test_what_a_reader_needs_first_stands_first(folder: JobFolder) -> None:
    words = re.sub(r"<style>.*?</style>|<[^>]+>", " ", page_of(folder), flags=re.S)
    order = (
        "UNVERIFIED AI DRAFT",
        "Demo weights.",
        "Doe, Jane",
        "Check the side.",
        "lesion: present, left frontal",
        "93.9 mL, estimated by image processing",
        "Confidence",
        "left frontal lobe.",
        "weights_sha256",
    )
    places = [words.index(text) for text in order]
    assert places == sorted(places)


def test_a_finding_that_everything_else_denies_is_not_said_to_be_unnamed(folder: JobFolder) -> None:
    denied, absent = {"finding": "lesion", "presence": "undetermined"}, {"finding": "edema", "presence": "absent"}
    told = {}
    for name, findings in (("denied", [denied, absent]), ("absent", [absent])):
        report = a_report("There is a lesion.", findings=findings)
        write_report(folder, report)
        told[name] = (folder.report_html.read_text(encoding="utf-8"), findings_line(report.findings))
    assert "No finding could be confirmed as present; read the text and the warnings." in told["denied"][0]
    assert "names no abnormal finding" not in told["denied"][0]
    assert "The text names no abnormal finding as present." in told["absent"][0]
    assert (told["denied"][1], told["absent"][1]) == ("nothing confirmed as present", "nothing stated as present")


@pytest.mark.parametrize(("certainty", "told"), [("possible", True), ("likely", False), ("none", False)])
def test_a_lesion_that_only_the_second_look_shows_is_possible(folder: JobFolder, certainty: str, told: bool) -> None:
    seen = {"peak": 0.1, "second_look_peak": 0.7, "volume_ml": 12.4, "laterality": "right", "sites": ["frontal"]}
    report = a_report("No lesion is seen.", findings=[], lesion_estimate={**seen, "certainty": certainty})
    write_report(folder, report)
    for path in (folder.report_text, folder.report_html):
        assert ("possible lesion, right frontal: about 12 mL, seen only with" in path.read_text("utf-8")) is told
    said = result_content(Settings(), folder, report).possible
    assert said.startswith("Possible lesion, right frontal: about 12 mL, ") if told else said == ""


def test_it_says_whose_study_and_which_series(folder: JobFolder) -> None:
    page = page_of(folder)
    for text in ("Doe, Jane", "P001", "2026-01-02", "AX FLAIR"):
        assert text in page
    assert "AX T1" not in page


def test_a_corrected_identity_stands_in_place_of_the_received_one(folder: JobFolder) -> None:
    CorrectedIdentity(values={"PatientID": "P002"}, changed=("PatientID",)).write(folder.identity)
    page = page_of(folder)
    assert "P002" in page
    assert "P001" not in page


def test_nobody_is_named_where_results_go_without_identities(folder: JobFolder) -> None:
    page = page_of(folder, named=False)
    assert [text for text in ("Doe", "P001", "2026-01-02") if text in page] == []


def test_of_a_file_only_its_name_is_known(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path, tmp_path / "head.nii.gz")
    SourceFile(file="head.nii.gz").write(folder.source_facts)
    assert "head.nii.gz" in page_of(folder)


def test_pictures_are_inside_with_words_and_small(folder: JobFolder) -> None:
    folder.explain.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (1800, 2600), dtype=np.uint8)
    Image.fromarray(np.kron(noise[::8, ::8], np.ones((8, 8), np.uint8))).save(folder.explain / "overlay_slices.png")
    page = page_of(folder)
    [alt] = re.findall(r'<img src="data:image/webp;base64,[^"]+" alt="([^"]+)">', page)
    assert alt == "Every slice with the overlay"
    assert len(page) < 2_000_000


def test_what_cannot_be_read_is_left_out(folder: JobFolder) -> None:
    for path in folder.input.iterdir():
        path.write_bytes(b"no DICOM")
    assert "Patient ID" not in page_of(folder)
    with pytest.raises(pydicom.errors.InvalidDicomError):
        pydicom.dcmread(folder.input / "0.dcm")


@pytest.mark.e2e
@pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed")
def test_it_prints_on_two_pages(folder: JobFolder) -> None:
    """With all pictures in their sizes, eight warnings, a long text and as much provenance as there is."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    folder.explain.mkdir()
    sizes = {"lime_2x3_grid.png": (1600, 1098), "lime_top_supervoxels_grid.png": (1600, 2140)}
    for name, size in {**sizes, "overlay_slices.png": (1600, 1408)}.items():
        Image.new("L", size, 60).save(folder.explain / name)
    report = a_report(
        "The lesion area is in the left frontal and parietal lobes. Edema is seen around it. No necrosis is seen. " * 4,
        measurements=[MEASURED] * 4,
        warnings=["The text names edema on the left and the lesion map does not: check the side of it in the pictures."]
        * 8,
        model={"generation": {f"generation_setting_{n}": 0.25 for n in range(36)}},
        banner="Demo weights, trained on synthetic images only.",
    )
    write_report(folder, report)
    with playwright.sync_playwright() as driver:
        arguments = ["--no-sandbox"] if os.getuid() == 0 else []
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=arguments, timeout=120_000)
        page = browser.new_page()
        page.set_default_timeout(120_000)
        page.goto(folder.report_html.as_uri())
        printed = page.pdf(prefer_css_page_size=True)
        browser.close()
    assert len(re.findall(rb"/Type\s*/Page\b", printed)) == 2
