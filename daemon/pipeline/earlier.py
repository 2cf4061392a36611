"""Earlier results of the same patient: noted when a report is written, looked up when the next one is.

What is noted names nobody: digests of id and issuer, name and date of birth. Results whose patient was corrected since
are not compared with.
"""

from __future__ import annotations

from collections.abc import Callable

import sqlalchemy as sa
from pydicom import Dataset

from daemon.config.sections import Settings
from daemon.database.engine import upsert
from daemon.database.tables import RESULTS
from daemon.jobs.comparison import Patient, measured_volume, same_keys
from daemon.jobs.files import JobFiles
from daemon.jobs.folder import JobFolder
from daemon.jobs.records import Arrival, EarlierResult, Report, Selection
from daemon.jobs.store import JobStore, now
from daemon.jobs.study import UNREADABLE
from daemon.pipeline.corrections import find_correction
from dicom_io import header
from dicom_io.reading import read_elements

TAGS = [
    "SpecificCharacterSet", "PatientID", "IssuerOfPatientID", "PatientName", "PatientBirthDate",
    "PatientIdentityRemoved", "StudyDate", "StudyTime", "SeriesInstanceUID",
]  # fmt: skip


Elsewhere = Callable[[Patient, str, tuple[str, str]], EarlierResult | None]
"""Asked for a patient's latest result before a date and time, of another study than this, where none is known here."""


def look_up(
    engine: sa.Engine, settings: Settings, files: JobFiles, job_id: str, elsewhere: Elsewhere | None = None
) -> None:
    """Write the latest earlier result of the job's patient into its folder; none where there is none.

    Args:
        engine: The daemon's database.
        settings: Say where this host keeps what it received, and the index of it.
        files: Where the folders of jobs are.
        job_id: The job, whose series is chosen.
        elsewhere: Asked where none is known here.
    """
    folder = files.fetch(job_id)
    folder.earlier.unlink(missing_ok=True)
    head = _reported(folder)
    if head is None or find_correction(engine, settings, folder) is not None:
        return
    who, date = Patient.of(head), header.text(head, "StudyDate")
    job = JobStore(engine).get(job_id)
    if not who.key or not date or job is None:
        return
    before = date, header.text(head, "StudyTime")
    for row in _candidates(engine, who.key, job.study_uid, before):
        names = ((row.name, who.name_key), (row.birth, who.birth_key))
        if same_keys(row.patient, who.key, names) and not _corrected(engine, settings, files, row.job_id):
            EarlierResult(
                job_id=row.job_id,
                study_date=row.study_date,
                model_name=row.model_name,
                model_version=row.model_version,
                weights_sha256=row.weights_sha256,
                volume_ml=row.volume_ml,
                study_date_now=date,
            ).write(folder.earlier)
            return
    found = None if elsewhere is None else elsewhere(who, job.study_uid, before)
    if found is not None:
        found.model_copy(update={"study_date_now": date}).write(folder.earlier)


def _candidates(
    engine: sa.Engine, patient: str, study_uid: str, before: tuple[str, str]
) -> list[sa.Row[tuple[object, ...]]]:
    """Results of other studies before a date and time, the latest study first, of each study the latest result."""
    query = sa.select(RESULTS).where(RESULTS.c.patient == patient, RESULTS.c.study_uid != study_uid)
    latest = query.order_by(RESULTS.c.study_date.desc(), RESULTS.c.study_time.desc(), RESULTS.c.created.desc())
    with engine.connect() as connection:
        rows = connection.execute(latest).all()
    return [row for row in rows if row.study_date and (row.study_date, row.study_time) < before]


def _corrected(engine: sa.Engine, settings: Settings, files: JobFiles, job_id: str) -> bool:
    """Whether another identity came for the job's study since; a job whose files are gone has none that could tell."""
    if JobStore(engine).get(job_id) is None:
        return False
    folder = files.fetch(job_id)
    return Arrival.read_if_there(folder.arrival) is not None and find_correction(engine, settings, folder) is not None


def note(engine: sa.Engine, folder: JobFolder, job_id: str, report: Report) -> None:
    """Keep what later studies are compared with."""
    head, job = _reported(folder), JobStore(engine).get(job_id)
    if head is None or job is None:
        return
    who = Patient.of(head)
    row = {
        "job_id": job_id, "study_uid": job.study_uid, "patient": who.key, "name": who.name_key, "birth": who.birth_key,
        "study_date": header.text(head, "StudyDate"), "study_time": header.text(head, "StudyTime"),
        "model_name": report.model.name, "model_version": report.model.version,
        "weights_sha256": report.model.weights_sha256, "volume_ml": measured_volume(report), "created": now(),
    }  # fmt: skip
    with engine.begin() as connection:
        connection.execute(upsert(engine, RESULTS, row, update=[name for name in row if name != "job_id"]))


def forget(engine: sa.Engine, job_id: str) -> None:
    """Compare nothing with a result any more: its patient was corrected."""
    with engine.begin() as connection:
        connection.execute(sa.delete(RESULTS).where(RESULTS.c.job_id == job_id))


def _reported(folder: JobFolder) -> Dataset | None:
    """A header of the chosen series; None where it cannot be read."""
    arrival, selection = Arrival.read_if_there(folder.arrival), Selection.read_if_there(folder.selection)
    if arrival is None or selection is None or selection.chosen is None:
        return None
    file = next((i.file for i in arrival.instances if i.series_uid == selection.chosen), None)
    if file is None:
        return None
    try:
        with header.quiet("pydicom"):
            return read_elements(folder.input / file, TAGS)
    except UNREADABLE:
        return None
