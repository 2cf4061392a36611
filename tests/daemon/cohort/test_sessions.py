"""Sessions of a subject compared in a batch, once all are reported; with reports of the test's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from record_support import a_report, a_selection

from daemon.cohort.batch import CASE_FILE, CaseRecord
from daemon.cohort.cases import find_cases
from daemon.cohort.sessions import Compared, compare_sessions
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
    a_report(measurements=[measured]).write(folder.report_json)
    if series_uid is not None:
        a_selection(series_uid).write(folder.selection)
    CaseRecord(case=case, status="reported").write(folder.root / CASE_FILE)


def comparison(out: Path, case: str) -> Any:
    return Report.read(JobFolder(out / "cases" / case).report_json).comparison


def bids(folder: Path, *cases: str, tables: Mapping[str, str] | None = None) -> Path:
    """A data set of empty images `01_1` (subject and session), and of tables."""
    for case in cases:
        subject, session = case.split("_")
        anat = folder / f"sub-{subject}" / f"ses-{session}" / "anat"
        anat.mkdir(parents=True)
        (anat / f"sub-{subject}_ses-{session}_FLAIR.nii.gz").touch()
    for name, text in (tables or {}).items():
        (folder / name).write_text(text)
    return folder


def test_sessions_of_a_bids_subject_are_compared_in_their_order(tmp_path: Path) -> None:
    out, found = tmp_path / "out", find_cases(bids(tmp_path / "in", "01_2", "01_9", "01_10", "02_9"))
    volumes = {"sub-01_ses-2": 10.0, "sub-01_ses-9": 30.0, "sub-01_ses-10": 30.5, "sub-02_ses-9": 80.0}
    for subject, volume in volumes.items():
        reported(out, f"{subject}_FLAIR", None, volume)
    for _ in range(2):
        assert compare_sessions(found.cases, out, named=True) == Compared(2)
    assert comparison(out, "sub-01_ses-2_FLAIR") is None
    assert comparison(out, "sub-02_ses-9_FLAIR") is None
    second, third = (comparison(out, f"sub-01_ses-{name}_FLAIR") for name in (9, 10))
    assert (second.job_id, second.label, second.stated) == ("sub-01_ses-2_FLAIR", "ses-2", "larger")
    assert (third.job_id, third.stated) == ("sub-01_ses-9_FLAIR", "not distinguishable")
    row = next(row for row in rows_of(out) if row["case"] == "sub-01_ses-9_FLAIR")
    assert (row["earlier_case"], row["lesion_change"], row["lesion_change_ml"]) == (second.job_id, "larger", 20.0)
    assert "examination ses-2" in (out / "cases" / "sub-01_ses-9_FLAIR" / "report.txt").read_text()


FLAIR = "anat/sub-01_ses-{0}_FLAIR.nii.gz"
PRE, POST = "2025-03-01T10:00:00", "2025-03-09T09:00:00"
SESSIONS = "sub-01/sub-01_sessions.tsv"
SCANS = "sub-01/ses-{0}/sub-01_ses-{0}_scans.tsv"


@pytest.mark.parametrize(
    ("labels", "tables", "earlier"),
    [
        (("pre", "post"), {}, None),
        (("pre", "post"), {SESSIONS: f"session_id\tacq_time\nses-post\t{POST}\nses-pre\t{PRE}\n"}, "pre"),
        (("pre", "post"), {SCANS.format(s): f"filename\tacq_time\n{FLAIR.format(s)}\t{t}\n"
                           for s, t in (("pre", PRE), ("post", POST))}, "pre"),
        (("pre", "post"), {"sub-01/sub-01_scans.tsv": "filename\tacq_time\n" + "".join(
            f"ses-{s}/{FLAIR.format(s)}\t{t}\n" for s, t in (("pre", PRE), ("post", POST)))}, "pre"),
        (("pre", "post"), {SESSIONS: f"session_id\tacq_time\nses-post\tn/a\nses-pre\t{PRE}\n"}, None),
        (("pre", "post"), {SESSIONS: f"session_id\tacq_time\nses-post\t{POST}Z\nses-pre\t{PRE}\n"}, None),
        (("pre", "post"), {SESSIONS: f"session_id\tacq_time\nses-post\tlater\nses-pre\t{PRE}\n"}, None),
        (("1", "2"), {SESSIONS: f"session_id\tacq_time\nses-1\t{POST}\nses-2\t{PRE}\n"}, "2"),
        (("1", "2"), {SESSIONS: f"session_id\tacq_time\nses-1\t{PRE}\nses-2\t{PRE}\n"}, "1"),
        (("M9", "M12"), {}, "M9"),
        (("day3", "week2"), {}, None),
        (("1", "01"), {}, None),
    ],
)  # fmt: skip
def test_no_session_is_called_earlier_that_nothing_says_is(
    tmp_path: Path, labels: tuple[str, str], tables: Mapping[str, str], earlier: str | None
) -> None:
    """By the subject's tables, else by numbers; otherwise there is no comparison, and a line that says so."""
    out, found = (
        tmp_path / "out",
        find_cases(bids(tmp_path / "in", *(f"01_{label}" for label in labels), tables=tables)),
    )
    for label in labels:
        reported(out, f"sub-01_ses-{label}_FLAIR", None, 40.0)
    compared = compare_sessions(found.cases, out, named=True)
    told = {label: comparison(out, f"sub-01_ses-{label}_FLAIR") for label in labels}
    if earlier is None:
        assert set(told.values()) == {None}
        assert compared == Compared(0, ("sub-01",))
        assert "sub-01: expected acq_time" in compared.note
    else:
        assert {label: one.label for label, one in told.items() if one} == {
            label: f"ses-{earlier}" for label in labels if label != earlier
        }
        assert (compared.number, compared.note) == (1, "")
    assert [file.name for file, _ in found.problems] == [Path(t).name for t, text in tables.items() if "later" in text]


@pytest.mark.parametrize(
    ("changes", "compared"),
    [({}, 1), ({"PatientBirthDate": "19610101"}, 0), ({"StudyDate": "20260101", "StudyTime": ""}, 0)],
)
def test_studies_of_a_patient_are_compared_by_date_and_identity(
    tmp_path: Path, changes: dict[str, str], compared: int
) -> None:
    volume = make_phantom(900_001, spacing=(9.0, 9.0, 12.0)).volume
    whose = {"PatientID": "4711", "PatientBirthDate": "19600101", "PatientName": "Doe^Jane", "StudyTime": "120000"}
    for number, told in enumerate(({"StudyDate": "20260101"}, {"StudyDate": "20250101", **changes})):
        uids = {"StudyInstanceUID": f"1.2.{number}", "SeriesInstanceUID": f"1.2.{number}.1"}
        write_series(volume, tmp_path / "in" / str(number), overrides=whose | told | uids)
    out, found = tmp_path / "out", find_cases(tmp_path / "in")
    by_study = {next(iter(case.facts.values())).study_uid: case.name for case in found.cases}
    for study, volume_ml in (("1.2.0", 60.0), ("1.2.1", 20.0)):
        reported(out, by_study[study], f"{study}.1", volume_ml)
    assert compare_sessions(found.cases, out, named=False).number == compared
    assert comparison(out, by_study["1.2.1"]) is None
    if compared:
        later = comparison(out, by_study["1.2.0"])
        assert (later.stated, later.days_before, later.study_date) == ("larger", 365, "")
