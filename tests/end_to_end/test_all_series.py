"""A study with two FLAIR series, `[selection] report = "all"`: two reports come back, and each names its own series."""

from __future__ import annotations

from pathlib import Path

import pytest
from e2e_support import sections
from pydicom.uid import generate_uid

from daemon.config.sections import Settings
from daemon.database.tables import JobState
from daemon.files import read_json
from daemon.pipeline.process import process
from daemon.trial.daemon import TrialService
from daemon.trial.pacs import EmbeddedPacs
from dicom_io.series_writer import write_series
from training.phantoms.phantom import make_phantom

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


@pytest.fixture
def two_series(tmp_path: Path) -> list[Path]:
    """One study: axial and coronal FLAIR of one head."""
    volume = make_phantom(900_001, spacing=(3.0, 3.0, 5.0)).volume
    study = {"StudyInstanceUID": generate_uid(), "FrameOfReferenceUID": generate_uid()}
    files = write_series(volume, tmp_path / "study" / "axial", overrides={**study, "SeriesDescription": "AX FLAIR"})
    other = {**study, "SeriesDescription": "COR FLAIR", "SeriesNumber": "6"}
    return files + write_series(volume, tmp_path / "study" / "coronal", plane="coronal", overrides=other)


def test_every_flair_of_a_study_is_reported(pacs: EmbeddedPacs, two_series: list[Path], tmp_path: Path) -> None:
    more = {"selection": {"report": "all"}, "explain": {"enabled": False}}
    service = TrialService(tmp_path / "daemon", sections(pacs.port, **more))
    service.start()
    try:
        service.send(two_series)
        jobs = service.wait_for_jobs(2, seconds=400)
    finally:
        service.stop()
    assert [(job.state, job.reason) for job in jobs] == [(JobState.DONE, "")] * 2
    assert len({job.study_uid for job in jobs}) == 1
    reports = [d for d in pacs.instances() if d.Modality == "SR"]
    assert len(reports) == 2
    named = [
        {str(s.SeriesInstanceUID) for study in d.CurrentRequestedProcedureEvidenceSequence
         for s in study.ReferencedSeriesSequence}
        for d in reports
    ]  # fmt: skip
    wanted = {job.series_uid for job in jobs}
    assert len(wanted) == 2
    assert sorted(len(found & wanted) for found in named) == [1, 1]
    assert set.union(*(found & wanted for found in named)) == wanted


def test_process_reports_them_side_by_side(two_series: list[Path], tmp_path: Path) -> None:
    settings = Settings.model_validate({"selection": {"report": "all"}, "explain": {"enabled": False}})
    folder = process(two_series[0].parents[1], tmp_path / "out", settings)
    [further] = (tmp_path / "out" / "further").iterdir()
    best = read_json(folder.report_json)["input"]["series_uid"]
    other = read_json(further / "report.json")["input"]["series_uid"]
    assert further.name == other != best
    assert (further / "dicom" / "sr.dcm").exists()
