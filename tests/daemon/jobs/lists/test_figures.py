"""Figures by month and scanner: each job once, no identity, and the rates that are plotted."""

from __future__ import annotations

from pathlib import Path

import pydicom
import pytest
from record_support import a_report
from web_support import add_job, start_site

from daemon.database.engine import open_database
from daemon.jobs.lists.figures import Figures, count_report, figures_of, rates
from daemon.jobs.records import Check
from daemon.jobs.report import write_report
from dicom_io.volume.geometry import SeriesGeometry, SourceSlice

MARKER = "MARKER^OTTILIE"


def reported(site, name: str, *, warned: bool, far: bool | None, scanner: str = "ACME") -> None:
    folder = add_job(site, name)
    file = folder.input / "000001.dcm"
    dataset = pydicom.dcmread(file)
    dataset.Manufacturer, dataset.ManufacturerModelName, dataset.PatientName = scanner, "One", MARKER
    dataset.StationName, dataset.InstitutionName = MARKER, MARKER
    dataset.save_as(file)
    SeriesGeometry(
        "1.2", "1.3", None, 8, 8, (1.0, 1.0), 1.0, (1, 0, 0, 0, 1, 0),
        (SourceSlice("000001.dcm", "1.2", str(dataset.SOPInstanceUID), None, (0, 0, 0)),),
    ).save(folder.geometry)  # fmt: skip
    report = a_report(warnings=["Noise."] if warned else [])
    checks = () if far is None else (Check(name="domain", passed=not far, detail=MARKER),)
    write_report(folder, report.model_copy(update={"input": report.input.model_copy(update={"checks": checks})}))
    engine = open_database(site.settings)
    for _ in range(2):  # a step that was interrupted runs again
        count_report(engine, name, folder)


def test_reports_are_counted_once_by_scanner_and_shown(tmp_path: Path) -> None:
    site = start_site(tmp_path)
    try:
        assert b"No report has been written yet" in site.ask("/figures")[2]
        reported(site, "a", warned=True, far=True)
        reported(site, "b", warned=False, far=False)
        reported(site, "c", warned=False, far=None, scanner="")
        found = {one.scanner: one for one in figures_of(open_database(site.settings))}
        assert set(found) == {"ACME One", "One"}
        assert found["ACME One"].numbers["reports"] == 2
        assert found["ACME One"].rate("warned") == 0.5
        assert found["ACME One"].rate("failed:domain", "judged:domain") == 0.5
        assert found["One"].rate("failed:domain", "judged:domain") is None
        metrics, page = site.ask("/metrics")[2].decode(), site.ask("/figures")[2].decode()
    finally:
        site.server.stop()
    assert 'braingemma_reports_total{scanner="ACME One"} 2.0' in metrics
    assert 'braingemma_report_warnings_total{scanner="ACME One"} 1.0' in metrics
    assert 'braingemma_report_checks_failed_total{check="domain",scanner="ACME One"} 1.0' in metrics
    assert 'braingemma_report_findings_total{finding="lesion"' in metrics
    assert page.count("<polyline") >= 3
    assert "ACME One" in page
    for text in (metrics, page):
        assert "OTTILIE" not in text


def test_rates_stand_by_month_and_are_absent_where_nothing_was_judged() -> None:
    figures = [
        Figures(
            "2026-01",
            "A",
            {"reports": 4, "warned": 1, "finding:lesion:present": 2, "finding:ventricular_compression:present": 1},
        ),
        Figures("2026-02", "A", {"reports": 2, "finding:lesion:absent": 2, "judged:domain": 2, "failed:domain": 1}),
        Figures("2026-02", "B", {"reports": 1, "warned": 1}),
    ]
    found = rates(figures)
    assert found["ventricular compression present"]["A"] == [("2026-01", 0.25), ("2026-02", 0.0)]
    assert found["lesion present"]["A"] == [("2026-01", 0.5), ("2026-02", 0.0)]
    assert found["warned"] == {"A": [("2026-01", 0.25), ("2026-02", 0.0)], "B": [("2026-02", 1.0)]}
    assert found["far from training"] == {"A": [("2026-02", 0.5)]}


def test_stats_prints_what_the_page_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from daemon.cli.serve import stats

    config = tmp_path / "braingemma.toml"
    config.write_text(f'[storage]\nfolder = "{tmp_path / "data"}"\n')
    site = start_site(tmp_path / "data")
    try:
        reported(site, "a", warned=True, far=True)
    finally:
        site.server.stop()
    stats(config)
    said = capsys.readouterr().out
    assert "ACME One: 1 reports" in said
    assert "100%" in said
