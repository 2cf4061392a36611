"""A report without received UIDs and without names of files, where results are to name nobody."""

from __future__ import annotations

from collections.abc import Iterable

from daemon.config.sections import Settings
from daemon.jobs.folder import JobFolder
from daemon.jobs.records import Report
from dicom_io.deidentify import Deidentifier, load_key, scrub, without_uids


def nameless(settings: Settings, folder: JobFolder, report: Report) -> Report:
    """The report with the UIDs of the de-identified objects, and `[file]` for each file; once, so that these stay."""
    if report.deidentified or not settings.results.deidentify:
        return report
    names = [path.name for path in folder.input.rglob("*")]
    deidentifier = Deidentifier(load_key(settings.pseudonym_key))

    def cleaned(texts: Iterable[str]) -> tuple[str, ...]:
        return tuple(without_uids(scrub(text, names), deidentifier) for text in texts)

    series = report.input.series_uid
    changes = {
        "warnings": cleaned(report.warnings),
        "doubts": None if report.doubts is None else cleaned(report.doubts),
        "input": report.input.model_copy(update={"series_uid": deidentifier.uid(series) if series else series}),
        "deidentified": True,
    }
    return report.model_copy(update=changes)
