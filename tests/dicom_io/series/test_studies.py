"""No study is taken for another's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from series_factory import edit_files, make_files

from dicom_io.errors import SeriesError
from dicom_io.series.group import scan_folder
from dicom_io.series.studies import of_one_study, studies_of

FIRST = {"PatientID": "P1", "PatientName": "One^A", "StudyInstanceUID": "1.2.3", "StudyDate": "20250301"}


def two_studies(folder: Path, **second: Any) -> None:
    make_files(folder / "a", overrides={**FIRST, "SeriesNumber": "5"})
    others = make_files(folder / "b", overrides={**FIRST, "SeriesNumber": "4"})
    values = {"StudyInstanceUID": "1.2.4", "SeriesInstanceUID": "1.2.4.1", **second}
    edit_files(others, lambda d, _: [setattr(d, k, v) for k, v in values.items()])


@pytest.mark.parametrize(
    "other",
    [{"PatientID": "P2"}, {"StudyDate": "20260101"}, {"PatientName": "Two^B"}, {"IssuerOfPatientID": "elsewhere"},
     {"PatientID": ""}],
)  # fmt: skip
def test_several_patients_or_days_need_a_name(tmp_path: Path, other: dict[str, str]) -> None:
    two_studies(tmp_path, **other)
    series = scan_folder(tmp_path).series
    with pytest.raises(SeriesError, match=r"2 studies of several patients or days: name one by --study UID") as caught:
        of_one_study(series)
    assert all(said in str(caught.value) for said in ("1.2.3 (P1, One^A", "1.2.4 (", "20250301", "1 series"))
    assert [s.study_uid for s in of_one_study(series, "1.2.3")] == ["1.2.3"]
    assert [s.study_uid for s in of_one_study(series, "1.2.4")] == ["1.2.4"]
    with pytest.raises(SeriesError, match=r"expected a study 1.2.9, found 1.2.4 \("):
        of_one_study(series, "1.2.9")


def test_one_examination_in_two_studies_is_no_choice(tmp_path: Path) -> None:
    two_studies(tmp_path, PatientName="ONE^A")
    series = scan_folder(tmp_path).series
    assert of_one_study(series) == series
    assert [study.series for study in studies_of(series)] == [1, 1]
