"""How often reports say what, by month and scanner: it outlives the jobs, and names nobody."""

from __future__ import annotations

import datetime
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pydicom
import sqlalchemy as sa

from daemon.database.engine import upsert
from daemon.database.tables import FIGURED, FIGURES
from daemon.jobs.folder import JobFolder
from daemon.jobs.records import Report
from daemon.jobs.report import read_report
from dicom_io import header
from dicom_io.errors import DicomIoError
from dicom_io.reading import read_dataset
from dicom_io.volume.geometry import SeriesGeometry

REPORTS, WARNED = "reports", "warned"
UNKNOWN = "unknown"
"""Scanner of images that do not name one."""
LONGEST_NAME = 64


@dataclass(frozen=True)
class Figures:
    """What the reports of one month about pictures of one scanner say.

    Attributes:
        numbers: Reports by what they say: "reports", "warned", "finding:<finding>:<presence>", "judged:<check>",
            "failed:<check>"; the check "domain" is the distance from what the weights were trained on.
    """

    month: str
    scanner: str
    numbers: Mapping[str, int]

    def rate(self, name: str, of: str = REPORTS) -> float | None:
        """Share of the reports `of` that say `name`; None where there are none."""
        total = self.numbers.get(of, 0)
        return self.numbers.get(name, 0) / total if total else None


def count_report(engine: sa.Engine, job_id: str, folder: JobFolder) -> None:
    """Count what a job's report says; each job once, however often its step runs."""
    report = read_report(folder)
    month, scanner = datetime.datetime.now(datetime.UTC).strftime("%Y-%m"), _scanner(folder)
    with engine.begin() as connection:
        if not connection.execute(upsert(engine, FIGURED, {"job_id": job_id}, update=())).rowcount:
            return
        for name in _said(report):
            row = {"month": month, "scanner": scanner, "name": name, "number": 0}
            connection.execute(upsert(engine, FIGURES, row, update=()))
            key = (FIGURES.c.month == month, FIGURES.c.scanner == scanner, FIGURES.c.name == name)
            connection.execute(sa.update(FIGURES).where(*key).values(number=FIGURES.c.number + 1))


def _said(report: Report) -> Iterator[str]:
    yield REPORTS
    if report.warnings:
        yield WARNED
    for finding in report.findings:
        yield f"finding:{finding.finding}:{finding.presence}"
    for check in report.input.checks:
        if check.passed is not None:
            yield f"judged:{check.name}"
        if check.passed is False:
            yield f"failed:{check.name}"


def _scanner(folder: JobFolder) -> str:
    """Manufacturer and model, as the first slice names them."""
    try:
        first = SeriesGeometry.load(folder.geometry).slices[0].file
        dataset = read_dataset(folder.input / first, pixels=False)
    except (DicomIoError, OSError, pydicom.errors.InvalidDicomError, *header.MALFORMED):
        return UNKNOWN
    named = " ".join(header.text(dataset, keyword) for keyword in ("Manufacturer", "ManufacturerModelName"))
    return " ".join("".join(c if c.isprintable() else " " for c in named).split())[:LONGEST_NAME] or UNKNOWN


def figures_of(engine: sa.Engine) -> list[Figures]:
    """All figures, by month and then by scanner."""
    found: dict[tuple[str, str], dict[str, int]] = defaultdict(dict)
    with engine.connect() as connection:
        for row in connection.execute(sa.select(FIGURES)):
            found[row.month, row.scanner][row.name] = int(row.number)
    return [Figures(month, scanner, numbers) for (month, scanner), numbers in sorted(found.items())]


def rates(figures: Sequence[Figures]) -> dict[str, dict[str, list[tuple[str, float]]]]:
    """What is plotted: line to scanner to (month, share of the reports).

    Lines are "<finding> present", "warned" and "far from training".
    """
    lines: dict[str, dict[str, list[tuple[str, float]]]] = {}
    findings = sorted({name.split(":")[1] for f in figures for name in f.numbers if name.startswith("finding:")})
    wanted = {f"{finding.replace('_', ' ')} present": (f"finding:{finding}:present", REPORTS) for finding in findings}
    wanted |= {"warned": (WARNED, REPORTS), "far from training": ("failed:domain", "judged:domain")}
    for line, (name, of) in wanted.items():
        lines[line] = {}
        for one in figures:
            rate = one.rate(name, of)
            if rate is not None:
                lines[line].setdefault(one.scanner, []).append((one.month, rate))
    return lines
