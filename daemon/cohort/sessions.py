"""Comparison across the sessions of a subject, once all cases of a batch are reported.

BIDS: sessions of one subject in the order of their labels. DICOM: studies of one patient in the order of their dates.
Each case is compared with the latest earlier one. DICOM objects that were encoded before are taken away:
`Batch.encode_anew` makes them of the report that says so.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from daemon.cohort.batch import CASE_FILE, CaseRecord
from daemon.cohort.cases import Case, SeriesFacts
from daemon.jobs.comparison import Patient, compare, is_same, measured_volume
from daemon.jobs.folder import JobFolder
from daemon.jobs.records import EarlierResult, Report
from daemon.jobs.report import write_report

Dated = tuple[Case, SeriesFacts, JobFolder]


def compare_sessions(cases: Sequence[Case], out: Path, *, named: bool) -> int:
    """Write into each report how the lesion changed since the subject's latest earlier case; how many could be.

    Args:
        cases: Of the batch's source, with what their headers say.
        out: The batch's folder.
        named: Whether results may name dates.
    """
    done = [found for case in cases if (found := _reported(case, out)) is not None]
    compared = 0
    for one in sorted(done, key=_when):
        earlier = [other for other in done if _when(other) < _when(one) and _same_subject(other, one)]
        report = Report.read(one[2].report_json)
        latest = _result(max(earlier, key=_when)) if earlier else None
        comparison = None if latest is None else compare(latest, report, one[1].study_date, dated=named)
        if comparison != report.comparison:
            shutil.rmtree(one[2].dicom, ignore_errors=True)  # first: a call that is killed here leaves work, not a lie
            write_report(one[2], report.model_copy(update={"comparison": comparison}), named=named)
        compared += comparison is not None
    return compared


def _reported(case: Case, out: Path) -> Dated | None:
    folder = JobFolder(out / "cases" / case.name)
    record = CaseRecord.read_if_there(folder.root / CASE_FILE)
    if record is None or record.status != "reported" or not folder.report_json.exists():
        return None
    chosen = Report.read(folder.report_json).input.series_uid or ""
    facts = case.facts.get(chosen) or next(iter(case.facts.values()), None)
    return None if facts is None else (case, facts, folder)


def _when(one: Dated) -> tuple[str, str, str]:
    case, facts, _ = one
    return facts.study_date, facts.study_time, _session(case)


def _session(case: Case) -> str:
    return next((part for part in case.subject.split("_") if part.startswith("ses-")), "")


def _subject(case: Case) -> str:
    return next((part for part in case.subject.split("_") if part.startswith("sub-")), "")


def _same_subject(one: Dated, other: Dated) -> bool:
    if _subject(one[0]) or _subject(other[0]):
        return _subject(one[0]) == _subject(other[0]) and _session(one[0]) != _session(other[0])
    if not one[1].study_date or one[1].study_uid == other[1].study_uid:
        return False
    return is_same(_patient(one[1]), _patient(other[1]))


def _patient(facts: SeriesFacts) -> Patient:
    return Patient(facts.patient_id, facts.issuer, facts.patient_name, facts.birth_date)


def _result(one: Dated) -> EarlierResult:
    case, facts, folder = one
    report = Report.read(folder.report_json)
    return EarlierResult(
        job_id=case.name,
        study_date=facts.study_date,
        label=_session(case),
        model_name=report.model.name,
        model_version=report.model.version,
        weights_sha256=report.model.weights_sha256,
        volume_ml=measured_volume(report),
    )
