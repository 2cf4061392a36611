"""Comparison across the sessions of a subject, once all cases of a batch are reported.

BIDS: sessions of one subject in the order of their acquisition, or of their numbers. DICOM: studies of one patient in
the order of their dates. Each case is compared with the latest earlier one, and with none where nothing says which came
first. DICOM objects that were encoded before are taken away: `Batch.encode_anew` makes them of the report that says so.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from daemon.cohort.batch import CASE_FILE, CaseRecord, chosen_uid
from daemon.cohort.cases import Case, SeriesFacts
from daemon.jobs.comparison import Patient, compare, is_same, measured_volume
from daemon.jobs.folder import JobFolder
from daemon.jobs.records import EarlierResult, Report
from daemon.jobs.report import write_report

Dated = tuple[Case, SeriesFacts, JobFolder]
Place = tuple[str, str]
"""Date and time of day, or what stands for a date; of a later study it is larger."""


@dataclass(frozen=True)
class Compared:
    """What `compare_sessions` did.

    Attributes:
        number: Of cases that were compared with an earlier one.
        unordered: BIDS subjects with several reported sessions of which nothing says which came first.
    """

    number: int
    unordered: tuple[str, ...] = ()

    @property
    def note(self) -> str:
        """What a person must know, in one line; empty where there is nothing."""
        if not self.unordered:
            return ""
        named = ", ".join(self.unordered[:5]) + (", …" if len(self.unordered) > 5 else "")
        return (
            f"the sessions of {len(self.unordered)} subjects were not compared: {named}: expected acq_time of each "
            "session in sub-*_sessions.tsv or sub-*_scans.tsv, or labels that differ in one number at their end"
        )


def compare_sessions(cases: Sequence[Case], out: Path, *, named: bool) -> Compared:
    """Write into each report how the lesion changed since the subject's latest earlier case.

    Args:
        cases: Of the batch's source, with what their headers say.
        out: The batch's folder.
        named: Whether results may name dates.
    """
    done = [found for case in cases if (found := _reported(case, out)) is not None]
    places = _session_places(cases)
    compared = 0
    for one in done:
        earlier = [other for other in done if _same_subject(other, one) and _is_before(other, one, places)]
        report = Report.read(one[2].report_json)
        latest = _result(max(earlier, key=lambda other: _place(other, places))) if earlier else None
        comparison = None if latest is None else compare(latest, report, one[1].study_date, dated=named)
        if comparison != report.comparison:
            shutil.rmtree(one[2].dicom, ignore_errors=True)  # first: a call that is killed here leaves work, not a lie
            write_report(one[2], report.model_copy(update={"comparison": comparison}), named=named)
        compared += comparison is not None
    sessions = {case.subject: _subject(case) for case, _, _ in done if _subject(case) and case.subject not in places}
    subjects = list(sessions.values())
    return Compared(compared, tuple(sorted({s for s in subjects if subjects.count(s) > 1})))


def _reported(case: Case, out: Path) -> Dated | None:
    folder = JobFolder(out / "cases" / case.name)
    record = CaseRecord.read_if_there(folder.root / CASE_FILE)
    if record is None or record.status != "reported" or not folder.report_json.exists():
        return None
    facts = case.facts.get(chosen_uid(folder)) or next(iter(case.facts.values()), None)
    return None if facts is None else (case, facts, folder)


def _session_places(cases: Sequence[Case]) -> dict[str, Place]:
    """The place of each BIDS session, by `Case.subject`; without those of subjects whose order nothing tells."""
    subjects: dict[str, list[Case]] = {}
    for case in cases:
        if _subject(case):
            subjects.setdefault(_subject(case), []).append(case)
    places: dict[str, Place] = {}
    for members in subjects.values():
        sessions = {case.subject: _session(case) for case in members}
        places |= _by_time(members, sessions) or _by_number(sessions)
    return places


def _by_time(members: Sequence[Case], sessions: Mapping[str, str]) -> dict[str, Place]:
    """By the first image of each session; empty where one has no time of its own, or only some have a time zone."""
    times: dict[str, str] = {}
    for case in members:
        if case.acquired:
            times[case.subject] = min(case.acquired, times.get(case.subject, case.acquired))
    zoned = {time.endswith("+00:00") for time in times.values()}
    if len(set(times.values())) < len(sessions) or len(zoned) != 1:  # also where a constant stands for all dates
        return {}
    return {session: (time, "") for session, time in times.items()}


def _by_number(sessions: Mapping[str, str]) -> dict[str, Place]:
    """By the number at the end of each label; empty where one has none, or they differ in more than that."""
    found = {session: re.fullmatch(r"(.*\D)([0-9]+)", label) for session, label in sessions.items()}
    numbers = {session: match for session, match in found.items() if match is not None}
    places = {session: (f"{int(match[2]):030d}", "") for session, match in numbers.items()}
    if len(set(places.values())) < len(sessions) or len({match[1] for match in numbers.values()}) != 1:
        return {}
    return places


def _place(one: Dated, sessions: Mapping[str, Place]) -> Place:
    case, facts, _ = one
    if _subject(case):
        return sessions.get(case.subject, ("", ""))
    return re.sub(r"\D", "", facts.study_date), facts.study_time.replace(":", "")  # without the marks of ACR-NEMA


def _is_before(one: Dated, other: Dated, sessions: Mapping[str, Place]) -> bool:
    (date, time), (other_date, other_time) = _place(one, sessions), _place(other, sessions)
    if not date or not other_date:
        return False
    return date < other_date or (date == other_date and bool(time) and time < other_time)


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
    return Patient(facts.patient_id, facts.issuer, facts.patient_name, facts.birth_date, facts.identity_removed)


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
