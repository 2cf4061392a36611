"""Earlier results of ours in a PACS: found by C-FIND or QIDO-RS, read by C-GET or WADO-RS, kept nowhere."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from pydicom import Dataset

from daemon.config.sections import Settings
from daemon.errors import DaemonError
from daemon.jobs.comparison import Patient, is_same
from daemon.jobs.records import EarlierResult
from daemon.pull.client import SourceClient, client_of
from dicom_io import header
from dicom_io.content.equipment import MANUFACTURER
from dicom_io.objects.read_sr import read_sr

log = logging.getLogger(__name__)

MOST_STUDIES = 10
"""Studies of a patient that are looked at, the latest first."""


def earlier_in_pacs(settings: Settings, who: Patient, study_uid: str, before: tuple[str, str]) -> EarlierResult | None:
    """The latest result of ours of a patient's earlier study, in the sources with `compare`; None where there is none.

    A source that does not answer is passed over: a report does not wait for it.

    Args:
        settings: The whole configuration.
        who: The patient.
        study_uid: The study that is reported now.
        before: Its date and time.
    """
    for source in settings.sources:
        if not source.compare:
            continue
        try:
            found = _latest(client_of(settings, source), who, study_uid, before)
        except DaemonError as error:
            log.warning("source %s was not asked for earlier results: %s", source.name, type(error).__name__)
            continue
        if found is not None:
            return found
    return None


def _latest(client: SourceClient, who: Patient, study_uid: str, before: tuple[str, str]) -> EarlierResult | None:
    studies = [
        study
        for study in client.studies({"PatientID": who.patient_id})
        if header.text(study, "PatientID") == who.patient_id
        and header.uid(study, "StudyInstanceUID") not in ("", study_uid)
        and "" < header.text(study, "StudyDate") <= before[0]
        and "SR" in (header.texts(study, "ModalitiesInStudy") or ("SR",))
    ]
    for study in sorted(studies, key=lambda s: header.text(s, "StudyDate"), reverse=True)[:MOST_STUDIES]:
        documents = sorted(_documents(client, header.uid(study, "StudyInstanceUID")), key=_written, reverse=True)
        for document in documents:
            when = header.text(document, "StudyDate"), header.text(document, "StudyTime")
            result = read_sr(document)
            if result is not None and when < before and is_same(Patient.of(document), who):
                return EarlierResult(
                    job_id=header.uid(document, "SOPInstanceUID"),
                    study_date=when[0],
                    model_name=result.model_name,
                    model_version=result.model_version,
                    weights_sha256=result.weights_sha256,
                    volume_ml=result.volume_ml,
                )
    return None


def _documents(client: SourceClient, study_uid: str) -> Iterator[Dataset]:
    for series in client.series(study_uid):
        maker = header.text(series, "Manufacturer")
        if header.text(series, "Modality") == "SR" and maker in ("", MANUFACTURER):
            yield from client.documents(study_uid, header.uid(series, "SeriesInstanceUID"))


def _written(document: Dataset) -> tuple[str, str]:
    return header.text(document, "ContentDate"), header.text(document, "ContentTime")
