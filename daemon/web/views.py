"""What the templates show, prepared: plain values, times in words, nothing looked up while a page is written."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from urllib.parse import quote

from daemon.database.tables import OPEN_DELIVERIES, STOPPED_STATES, DeliveryState, JobState
from daemon.jobs.folder import JobFolder
from daemon.jobs.records import Arrival, ReportFinding
from daemon.jobs.report import finding_rows, impression, provenance_rows, read_report
from daemon.jobs.steps import DELIVER, STEPS
from daemon.jobs.store import Delivery, Job, now

_LONG_UID = re.compile(r"\b\d+(?:\.\d+){5,}\b")
MARKED_STEPS = (*STEPS, DELIVER)
"""The row of steps on a job's page."""

LIMITS = (
    "Research use only, not for diagnosis and not for emergencies. English only; models of this kind were trained "
    "mainly on glioblastoma and may be wrong about anything, the side included."
)
"""Limits of the model, on every page."""

STATE_WORDS = {
    JobState.QUEUED: "queued",
    JobState.RUNNING: "at work",
    JobState.DELIVERING: "delivering",
    JobState.DONE: "done",
    JobState.SET_ASIDE: "set aside",
    JobState.FAILED: "failed",
    JobState.CANCELLED: "cancelled",
    JobState.REMOVING: "being removed",
}


@dataclass(frozen=True)
class StepMark:
    """One step of the row of steps: `done`, `now`, `broken` or `ahead`."""

    name: str
    state: str
    seconds: float | None


def steps_of(job: Job) -> list[StepMark]:
    """How far a job has come."""
    reached = DELIVER if job.state in (JobState.DELIVERING, JobState.DONE) else job.step
    position = MARKED_STEPS.index(reached) if reached in MARKED_STEPS else -1
    marks = []
    for number, name in enumerate(MARKED_STEPS):
        state = "done" if number < position or job.state is JobState.DONE else "ahead"
        if number == position and job.state is not JobState.DONE:
            ended_badly = job.state in (JobState.FAILED, JobState.SET_ASIDE, *STOPPED_STATES)
            state = "broken" if ended_badly else "now"
        marks.append(StepMark(name, state, job.timings.get(name)))
    return marks


@dataclass(frozen=True)
class DestinationView:
    """One destination of a job: how many objects stand where."""

    name: str
    sent: int
    waiting: int
    dead: int
    attempts: int
    reason: str

    @property
    def total(self) -> int:
        """All objects but those that later results replaced before they were sent."""
        return self.sent + self.waiting + self.dead


def destinations_of(deliveries: Sequence[Delivery]) -> list[DestinationView]:
    """Deliveries, one row a destination."""
    views = []
    for name in sorted({d.destination for d in deliveries}):
        mine = [d for d in deliveries if d.destination == name]
        waiting = sum(d.state in OPEN_DELIVERIES for d in mine)
        dead = sum(d.state is DeliveryState.DEAD for d in mine)
        reasons = [d.reason for d in mine if d.reason and d.state in (*OPEN_DELIVERIES, DeliveryState.DEAD)]
        views.append(
            DestinationView(
                name,
                sum(d.state is DeliveryState.SENT for d in mine),
                waiting,
                dead,
                max(d.attempts for d in mine),
                reasons[0] if reasons else "",
            )
        )
    return views


@dataclass(frozen=True)
class ResultFile:
    """One file that can be downloaded; `path` is relative to the job's folder."""

    path: str
    size: int


def result_files_of(folder: JobFolder) -> list[ResultFile]:
    """Every result file of a job: not what was received, nor a volume with its face, nothing that is being written."""
    found = []
    for path in sorted(folder.root.rglob("*")):
        relative = path.relative_to(folder.root)
        hidden = any(part.startswith(".") for part in relative.parts)
        if path.is_file() and relative.parts[0] not in ("input", folder.whole_head.name) and not hidden:
            found.append(ResultFile(relative.as_posix(), path.stat().st_size))
    return found


@dataclass(frozen=True)
class ReportView:
    """The report of a job."""

    text: str
    findings: Sequence[tuple[ReportFinding, str]]
    impression: Sequence[str]
    warnings: Sequence[str]
    banner: str | None
    intended_use: str
    provenance: Sequence[tuple[str, str]]


def report_of(folder: JobFolder) -> ReportView | None:
    """The report, where the job came that far."""
    if not folder.report_json.exists():
        return None
    report = read_report(folder)
    return ReportView(
        report.report,
        finding_rows(report),
        impression(report),
        report.warnings,
        report.banner,
        report.intended_use,
        provenance_rows(report),
    )


def arrival_of(folder: JobFolder) -> Arrival | None:
    """Who sent the instances, and when; None where the job did not come by C-STORE."""
    return Arrival.read_if_there(folder.arrival)


def ago(seconds: float) -> str:
    """A time in words, seen from now."""
    passed = max(0.0, now() - seconds)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if passed >= size:
            return f"{passed / size:.0f} {unit} ago"
    return f"{passed:.0f} s ago"


def clock(seconds: float) -> str:
    """A time as the machine's clock shows it."""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def viewer_link(template: str, job: Job, study: Mapping[str, str], *, named: bool) -> str:
    """Where a job's study is shown; empty where no viewer is configured, or what the template needs is not known.

    Args:
        template: `[web] viewer_url`.
        job: The job.
        study: What `daemon.jobs.lists.worklist` knows of its study.
        named: Whether numbers of patients and orders may stand in the link.
    """
    values = {"StudyInstanceUID": job.study_uid, "SeriesInstanceUID": job.series_uid}
    if named:
        values |= {"PatientID": study.get("patient_id", ""), "AccessionNumber": study.get("accession_number", "")}
    needed = {name for _, name, _, _ in Formatter().parse(template) if name}
    if not needed or not all(values.get(name) for name in needed):
        return ""
    return template.format(**{name: quote(values[name], safe="") for name in needed})


def minute(seconds: float) -> str:
    """The same to the minute."""
    return clock(seconds)[:16]


def brief(text: str) -> str:
    """A reason without the UIDs in it: the list has no room for them, the job's own page has."""
    return _LONG_UID.sub("…", text)


def day(date: str) -> str:
    """A date of a header (DA, PS3.5 6.2) as people write it; what is none stays as it is."""
    return f"{date[:4]}-{date[4:6]}-{date[6:]}" if len(date) == 8 and date.isdecimal() else date


def megabytes(size: int) -> str:
    """A size for people."""
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def is_inside(root: Path, relative: str) -> bool:
    """Whether a relative path stays inside a folder, links resolved."""
    return (root / relative).resolve().is_relative_to(root.resolve())
