"""Two studies of one patient through the daemon with the bundled weights: the second report says what changed."""

from __future__ import annotations

from pathlib import Path

import pytest
from e2e_support import MARKERS, assert_nobody_is_named, sections

from daemon.database.tables import JobState
from daemon.jobs.records import Report
from daemon.trial.daemon import TrialService
from daemon.trial.pacs import EmbeddedPacs
from dicom_io.series_writer import write_series
from training.phantoms.phantom import make_phantom

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(1800)]

WHO = MARKERS | {"PatientBirthDate": "19600101"}


def test_the_second_report_names_the_first_and_the_change(pacs: EmbeddedPacs, tmp_path: Path) -> None:
    service = TrialService(tmp_path / "daemon", sections(pacs.port, explain={"enabled": False}))
    service.start()
    try:
        for number, (date, growth) in enumerate((("20250101", 1.0), ("20250601", 2.0))):
            phantom = make_phantom(7_300_021, spacing=(2.0, 2.0, 3.0), with_lesion=True, growth=growth)
            uids = {
                "StudyInstanceUID": f"1.2.826.0.1.9.{number + 1}",
                "SeriesInstanceUID": f"1.2.826.0.1.9.{number + 1}.1",
            }
            whose = WHO | {"StudyDate": date} | uids
            service.send(write_series(phantom.volume, tmp_path / f"study{number}", overrides=whose))
            jobs = service.wait_for_jobs(number + 1, seconds=800)
        assert {(job.state, job.reason) for job in jobs} == {(JobState.DONE, "")}
        second, first = jobs
        assert Report.read(service.folder_of(first).report_json).comparison is None
        report = Report.read(service.folder_of(second).report_json)
        found = report.comparison
        assert found is not None
        assert (found.job_id, found.study_date, found.days_before) == (first.job_id, "20250101", 151)
        assert found.weights_sha256 == report.model.weights_sha256
        assert found.stated == "larger"
        assert "the study of 2025-01-01 (151 days earlier)" in service.folder_of(second).report_html.read_text()
        [document] = [d for d in pacs.instances() if d.Modality == "SR" and d.StudyDate == "20250601"]
        headings = [item.ConceptNameCodeSequence[0].CodeValue for item in document.ContentSequence]
        assert headings.index("18834-2") == headings.index("59776-5") + 1
        assert_nobody_is_named(service, "job_studies", "job_words")
    finally:
        service.stop()
