"""Earlier results of ours in a PACS: found by C-FIND or QIDO-RS, read by C-GET or WADO-RS, kept nowhere."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Iterator
from typing import TypeAlias

from pydicom import Dataset

from daemon.config.sections import Settings, Source
from daemon.errors import DaemonError
from daemon.jobs.comparison import Patient, is_same
from daemon.jobs.records import EarlierResult
from daemon.pull.client import SourceClient, client_of
from dicom_io import header
from dicom_io.content.equipment import MANUFACTURER
from dicom_io.objects.read_sr import read_sr

log = logging.getLogger(__name__)

SECONDS = 10.0
"""A report waits so long at the most, whatever the sources do."""
MOST_STUDIES = 10
"""Studies of a patient that are looked at, the latest first."""

Answer: TypeAlias = "queue.SimpleQueue[EarlierResult | None]"


def earlier_in_pacs(settings: Settings, who: Patient, study_uid: str, before: tuple[str, str]) -> EarlierResult | None:
    """The latest result of ours of a patient's earlier study, in the sources with `compare`; None where there is none.

    All sources are asked at once; of those that have one the first in the configuration counts. What a source has not
    answered after `SECONDS` is passed over.

    Args:
        settings: The whole configuration.
        who: The patient.
        study_uid: The study that is reported now.
        before: Its date and time.
    """
    deadline = time.monotonic() + SECONDS
    asked: list[tuple[Source, Answer]] = []
    for source in (source for source in settings.sources if source.compare):
        answer: Answer = queue.SimpleQueue()
        call = (answer, settings, source, who, study_uid, before, deadline)
        threading.Thread(target=_ask, args=call, name=f"earlier results {source.name}", daemon=True).start()
        asked.append((source, answer))
    for source, answer in asked:
        try:
            found = answer.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            log.warning("source %s was not asked for earlier results: no answer in %g s", source.name, SECONDS)
            continue
        if found is not None:
            return found
    return None


def _ask(
    answer: Answer,
    settings: Settings,
    source: Source,
    who: Patient,
    study_uid: str,
    before: tuple[str, str],
    deadline: float,
) -> None:
    found = None
    try:
        found = _latest(client_of(settings, source, seconds=SECONDS), who, study_uid, before, deadline)
    except DaemonError as error:
        log.warning("source %s was not asked for earlier results: %s", source.name, type(error).__name__)
    finally:
        answer.put(found)


def _latest(
    client: SourceClient, who: Patient, study_uid: str, before: tuple[str, str], deadline: float
) -> EarlierResult | None:
    studies = [
        study
        for study in client.studies({"PatientID": who.patient_id})
        if header.text(study, "PatientID") == who.patient_id
        and header.uid(study, "StudyInstanceUID") not in ("", study_uid)
        and "" < header.text(study, "StudyDate") <= before[0]
        and "SR" in (header.texts(study, "ModalitiesInStudy") or ("SR",))
    ]
    for study in sorted(studies, key=lambda s: header.text(s, "StudyDate"), reverse=True)[:MOST_STUDIES]:
        if time.monotonic() > deadline:  # nobody waits any more
            return None
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
