"""Sessions of a subject compared in a batch, once all are reported; with reports of the test's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from record_support import a_report

from daemon.cohort.batch import CASE_FILE, CaseRecord
from daemon.cohort.cases import find_cases
from daemon.cohort.sessions import compare_sessions
from daemon.cohort.table import rows_of
from daemon.jobs.folder import JobFolder
from daemon.jobs.records import Report
from dicom_io.series_writer import write_series
from training.phantoms.phantom import make_phantom


def reported(out: Path, case: str, series_uid: str | None, volume: float) -> None:
    """A case as the batch leaves it."""
    folder = JobFolder(out / "cases" / case)
    folder.root.mkdir(parents=True)
    measured: dict[str, Any] = {"name": "lesion_volume", "value": volume, "unit": "mL", "method": "map"}
    a_report(measurements=[measured], input={"series_uid": series_uid}).write(folder.report_json)
    CaseRecord(case=case, status="reported").write(folder.root / CASE_FILE)


def comparison(out: Path, case: str) -> Any:
    return Report.read(JobFolder(out / "cases" / case).report_json).comparison


def test_sessions_of_a_bids_subject_are_compared_in_their_order(tmp_path: Path) -> None:
    for subject, session in (("01", "a"), ("01", "b"), ("01", "c"), ("02", "b")):
        anat = tmp_path / "in" / f"sub-{subject}" / f"ses-{session}" / "anat"
        anat.mkdir(parents=True)
        (anat / f"sub-{subject}_ses-{session}_FLAIR.nii.gz").touch()
        (anat / f"sub-{subject}_ses-{session}_FLAIR.json").write_text(json.dumps({"Manufacturer": "ACME"}))
    out, found = tmp_path / "out", find_cases(tmp_path / "in")
    for case, volume in zip(found.cases, (10.0, 30.0, 30.5, 80.0), strict=True):
        reported(out, case.name, None, volume)
    for _ in range(2):
        assert compare_sessions(found.cases, out, named=True) == 2
    assert comparison(out, "sub-01_ses-a_FLAIR") is None
    assert comparison(out, "sub-02_ses-b_FLAIR") is None
    second, third = (comparison(out, f"sub-01_ses-{name}_FLAIR") for name in "bc")
    assert (second.job_id, second.label, second.stated) == ("sub-01_ses-a_FLAIR", "ses-a", "larger")
    assert (third.job_id, third.stated) == ("sub-01_ses-b_FLAIR", "not distinguishable")
    row = next(row for row in rows_of(out) if row["case"] == "sub-01_ses-b_FLAIR")
    assert (row["earlier_case"], row["lesion_change"], row["lesion_change_ml"]) == (second.job_id, "larger", 20.0)
    assert "examination ses-a" in (out / "cases" / "sub-01_ses-b_FLAIR" / "report.txt").read_text()


@pytest.mark.parametrize(("birth", "compared"), [("19600101", 1), ("19610101", 0)])
def test_studies_of_a_patient_are_compared_by_date_and_identity(tmp_path: Path, birth: str, compared: int) -> None:
    volume = make_phantom(900_001, spacing=(9.0, 9.0, 12.0)).volume
    for number, (date, born) in enumerate((("20260101", "19600101"), ("20250101", birth))):
        whose = {"PatientID": "4711", "PatientBirthDate": born, "PatientName": "Doe^Jane", "StudyDate": date}
        uids = {"StudyInstanceUID": f"1.2.{number}", "SeriesInstanceUID": f"1.2.{number}.1"}
        write_series(volume, tmp_path / "in" / str(number), overrides=whose | uids)
    out, found = tmp_path / "out", find_cases(tmp_path / "in")
    by_study = {next(iter(case.facts.values())).study_uid: case.name for case in found.cases}
    for study, volume_ml in (("1.2.0", 60.0), ("1.2.1", 20.0)):
        reported(out, by_study[study], f"{study}.1", volume_ml)
    assert compare_sessions(found.cases, out, named=False) == compared
    assert comparison(out, by_study["1.2.1"]) is None
    if compared:
        later = comparison(out, by_study["1.2.0"])
        assert (later.stated, later.days_before, later.study_date) == ("larger", 365, "")
