"""Where results are to name nobody: what makes pseudonyms, and a report without UIDs and texts as received."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from daemon.config.sections import Settings
from daemon.jobs.folder import JobFolder
from daemon.jobs.records import Report
from dicom_io.deidentify import Deidentifier, load_key, scrub, without_quotes, without_uids
from dicom_io.files import files_below


def deidentifier_of(settings: Settings) -> Deidentifier | None:
    """What makes pseudonyms where results are to name nobody; None elsewhere."""
    if not settings.results.deidentify:
        return None
    return Deidentifier(load_key(settings.pseudonym_key), settings.results.deface)


def nameless(settings: Settings, folder: JobFolder, report: Report) -> Report:
    """The report with the UIDs of the de-identified objects, and without names of files and what it quotes of headers.

    Once, so that these UIDs stay.
    """
    deidentifier = deidentifier_of(settings)
    if report.deidentified or deidentifier is None:
        return report
    names = _names_in(folder.input)

    def cleaned(texts: Iterable[str]) -> tuple[str, ...]:
        return tuple(without_uids(without_quotes(scrub(text, names)), deidentifier) for text in texts)

    series = report.input.series_uid
    changes = {
        "warnings": cleaned(report.warnings),
        "doubts": None if report.doubts is None else cleaned(report.doubts),
        "input": report.input.model_copy(
            update={"series_uid": deidentifier.uid(series) if series else series, "file": None}
        ),
        "deidentified": True,
    }
    return report.model_copy(update=changes)


def _names_in(source: Path) -> set[str]:
    """Of all files and folders below a folder; of a file its own."""
    if source.is_file():
        return {source.name}
    files, unread = files_below(source)
    return {part for path in (*files, *(path for path, _ in unread)) for part in path.relative_to(source).parts}
