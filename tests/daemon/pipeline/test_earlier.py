"""Which earlier result a study is compared with: of the same patient, before it, the latest, not corrected since."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from record_support import a_report, a_selection, an_arrival, an_instance

from daemon.config.sections import Settings
from daemon.database.engine import open_database
from daemon.jobs.files import LocalFiles
from daemon.jobs.folder import JobFolder
from daemon.jobs.records import EarlierResult
from daemon.jobs.store import JobStore
from daemon.pipeline import earlier
from dicom_io.series_writer import write_series
from training.phantoms.phantom import make_phantom

WHO = {
    "PatientID": "4711", "IssuerOfPatientID": "SITE", "PatientName": "Doe^Jane", "PatientBirthDate": "19600101",
}  # fmt: skip


class Site:
    """Jobs with a header each, and what is known of them."""

    def __init__(self, folder: Path) -> None:
        self.settings = Settings.model_validate({"storage": {"folder": folder, "min_free_gb": 0}})
        self.engine = open_database(self.settings)
        self.store = JobStore(self.engine)
        self.files = LocalFiles(self.settings.data.jobs)
        self.volume = make_phantom(900_001, spacing=(9.0, 9.0, 12.0)).volume

    def study(self, job_id: str, date: str, *, study: str = "", volume: float | None = 20.0, **header: Any) -> None:
        """A job of a study that is reported, and noted."""
        folder, uid = self.files.fetch(job_id), study or f"1.2.{job_id[1:]}"
        series = f"{uid}.1"
        uids = {"StudyInstanceUID": uid, "SeriesInstanceUID": series}
        write_series(self.volume, folder.input, overrides=WHO | {"StudyDate": date} | uids | header)
        an_arrival(job_id, study_uid=uid, instances=[an_instance("0001.dcm", series)]).write(folder.arrival)
        a_selection(series).write(folder.selection)
        self.store.add(job_id, study_uid=uid, supersedes=None)
        measured = {"name": "lesion_volume", "value": volume, "unit": "mL", "method": "map", "laterality": "left"}
        written = a_report(measurements=[] if volume is None else [measured])
        earlier.note(self.engine, folder, job_id, written)

    def found(self, job_id: str) -> EarlierResult | None:
        earlier.look_up(self.engine, self.settings, self.files, job_id)
        return EarlierResult.read_if_there(JobFolder(self.settings.data.job(job_id)).earlier)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_the_latest_earlier_study_and_its_latest_result_count(site: Site) -> None:
    site.study("j1", "20250101", volume=10.0)
    site.study("j2", "20250601", volume=20.0)
    site.study("j3", "20250601", study="1.2.2", volume=25.0)
    site.study("j4", "20260301", volume=50.0)
    site.study("j5", "20260101", volume=None)
    found = site.found("j5")
    assert found is not None
    assert (found.job_id, found.study_date, found.volume_ml) == ("j3", "20250601", 25.0)
    assert found.study_date_now == "20260101"
    assert site.found("j1") is None
    assert site.found("j2") is not None, "j3 is the same study"


@pytest.mark.parametrize(
    "other",
    [
        {"PatientID": "4712"}, {"IssuerOfPatientID": "ELSE"}, {"IssuerOfPatientID": None}, {"PatientName": "Roe^Jane"},
        {"PatientBirthDate": "19610101"}, {"PatientName": "", "PatientBirthDate": ""},
    ],
)  # fmt: skip
def test_a_patient_who_may_be_another_is_compared_with_nobody(site: Site, other: dict[str, Any]) -> None:
    site.study("j1", "20250101", **other)
    site.study("j2", "20260101")
    assert site.found("j2") is None


@pytest.mark.parametrize(
    "everybody",
    [
        {"PatientID": "ANON", "PatientName": "ANONYMOUS", "PatientBirthDate": "", "IssuerOfPatientID": ""},
        {"PatientIdentityRemoved": "YES", "PatientBirthDate": "", "IssuerOfPatientID": ""},
    ],
)
def test_constant_placeholders_are_compared_with_nobody(site: Site, everybody: dict[str, Any]) -> None:
    site.study("j1", "20250101", **everybody)
    site.study("j2", "20260101", **everybody)
    assert site.found("j2") is None


def test_a_result_whose_patient_was_corrected_is_no_more_compared_with(site: Site) -> None:
    site.study("j1", "20250101")
    site.study("j2", "20260101")
    assert site.found("j2") is not None
    earlier.forget(site.engine, "j1")
    assert site.found("j2") is None


def test_the_database_holds_digests_and_no_identity(site: Site) -> None:
    site.study("j1", "20250101")
    site.engine.dispose()
    held = b"".join(file.read_bytes() for file in site.settings.data.root.glob("daemon.sqlite*"))
    assert b"4711" not in held
    assert b"Doe" not in held
    assert b"doe" not in held
