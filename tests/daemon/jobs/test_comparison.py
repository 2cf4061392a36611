"""What is compared with what, what is said of it, and who counts as the same patient."""

from __future__ import annotations

from typing import Any

import pytest
from pydicom import Dataset
from record_support import a_report

from braingemma.reading.change import uncertainty_ml
from daemon.jobs.comparison import Patient, compare, comparison_lines, is_same
from daemon.jobs.records import EarlierResult, Report
from daemon.jobs.report import impression, report_text

SHA = "0" * 64


def earlier(**changes: Any) -> EarlierResult:
    fields: dict[str, Any] = {
        "job_id": "j0", "study_date": "20251201", "model_name": "demo", "model_version": "5", "weights_sha256": SHA,
        "volume_ml": 20.0,
    }  # fmt: skip
    return EarlierResult(**fields | changes)


def report(volume: float | None) -> Report:
    measured = {
        "name": "lesion_volume", "value": volume, "unit": "mL", "method": "lesion map of the model",
        "laterality": "left",
    }  # fmt: skip
    return a_report(measurements=[] if volume is None else [measured])


@pytest.mark.parametrize(
    ("before", "now", "stated"),
    [
        (20.0, 40.0, "larger"), (40.0, 20.0, "smaller"), (20.0, 20.5, "not distinguishable"),
        (None, 20.0, None), (20.0, None, None), (None, None, None),
    ],
)  # fmt: skip
def test_a_change_is_stated_where_it_is_larger_than_its_uncertainty(
    before: float | None, now: float | None, stated: str | None
) -> None:
    found = compare(earlier(volume_ml=before), report(now), "20260115")
    assert found is not None
    assert (found.stated, found.days_before) == (stated, 45)
    if before and now:
        assert found.change_ml == pytest.approx(now - before)
        assert found.uncertainty_ml == pytest.approx(uncertainty_ml(before, now), abs=0.05)
    lines = comparison_lines(found)
    assert "the study of 2025-12-01 (45 days earlier)" in lines[0]
    assert "demo 5" in lines[0]
    assert ("then 20.0 mL, now 40.0 mL: change +20.0 mL, larger; uncertainty" in lines[1]) is (now == 40.0)


def test_de_identified_results_name_the_days_and_not_the_date() -> None:
    hidden = compare(earlier(), report(40.0), "20260115", dated=False)
    compared = report(40.0).model_copy(update={"comparison": hidden})
    for said in (report_text(compared), "\n".join(impression(compared)), compared.model_dump_json()):
        assert "2025" not in said
    assert "Compared with the study 45 days earlier" in report_text(compared)


def test_only_results_of_the_same_weights_and_of_before_are_compared() -> None:
    assert compare(earlier(weights_sha256="1" * 64), report(40.0), "20260115") is None
    assert compare(earlier(study_date="20260201"), report(40.0), "20260115") is None
    assert "examination ses-01" in comparison_lines(compare(earlier(study_date="", label="ses-01"), report(1.0), ""))[0]  # type: ignore[arg-type]


ONE = Patient("4711", "SITE", "doe jane", "19600101")


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (ONE, True),
        (Patient("4711", "SITE", "doe jane", ""), True),
        (Patient("4711", "SITE", "", "19600101"), True),
        (Patient("4711", "SITE", "", ""), False),
        (Patient("4711", "", "doe jane", "19600101"), False),
        (Patient("4711", "ELSE", "doe jane", "19600101"), False),
        (Patient("4712", "SITE", "doe jane", "19600101"), False),
        (Patient("4711", "SITE", "roe jane", "19600101"), False),
        (Patient("4711", "SITE", "doe jane", "19600102"), False),
        (Patient("", "SITE", "doe jane", "19600101"), False),
    ],
)
def test_the_same_patient_is_one_of_whom_nothing_says_otherwise(other: Patient, same: bool) -> None:
    assert is_same(ONE, other) is same
    assert is_same(other, ONE) is same


@pytest.mark.parametrize(
    ("one", "same"),
    [
        (Patient("ANON", "", "anonymous", ""), False),
        (Patient("ANON", "SITE", "anonymous", "19600101"), False),
        (Patient("0000", "", "doe jane", "19600101"), False),
        (Patient("n/a", "", "doe jane", "19600101"), False),
        (Patient("4711", "", "anon patient", ""), False),
        (Patient("4711", "", "xxxx", "19000101"), False),
        (Patient("4711", "", "de identified", "19600101"), True),
        (Patient("ANON0042", "", "anon0042", ""), True),
        (Patient("S01", "", "s01", "", identity_removed=True), False),
        (Patient("S01", "", "s01", "19000101", identity_removed=True), False),
        (Patient("S01", "", "s01", "19600101", identity_removed=True), True),
        (Patient("S01", "TRIAL", "s01", "", identity_removed=True), True),
    ],
)
def test_what_stands_for_everybody_proves_nothing(one: Patient, same: bool) -> None:
    assert is_same(one, one) is same


def test_a_placeholder_still_contradicts() -> None:
    dated = Patient("4711", "SITE", "doe jane", "19700101")
    assert is_same(dated, dated)
    assert not is_same(dated, ONE)
    removed = Patient("4711", "SITE", "doe jane", "19600101", identity_removed=True)
    assert is_same(removed, ONE)


def test_names_are_read_without_case_accents_and_marks() -> None:
    heads = []
    for name in ("DOE^JANE^^Dr.", "Doe^Jané^^Dr"):
        head = Dataset()
        head.PatientID, head.PatientName = "1", name
        heads.append(Patient.of(head))
    assert heads[0].name == heads[1].name == "doe jane dr"
