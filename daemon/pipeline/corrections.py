"""Whether a patient's identity was corrected after a study came: then no result may go out under the old one unnoticed.

A correction shows as an instance of the study that came after the study was handed over and says something else: of a
late series, or one that was sent again under the same SOP Instance UID. The latest that names a patient counts; where
it says again what the images say, the correction is taken back.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from pydicom import Dataset

from daemon.assemble.part10 import UNDECODABLE, read_header
from daemon.config.data_folder import DataFolder
from daemon.config.sections import Settings
from daemon.database.engine import open_index
from daemon.database.tables import INSTANCES, InstanceState
from daemon.jobs.folder import JobFolder
from daemon.jobs.records import Arrival, CorrectedIdentity, Selection
from dicom_io import header
from dicom_io.content.sources import IDENTITY, PATIENT_AND_STUDY
from dicom_io.errors import FileError, SeriesError
from dicom_io.reading import read_elements

log = logging.getLogger(__name__)

KEYWORDS = ("PatientID", "IssuerOfPatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber")
"""Who the patient is, and which order it was."""
UNREADABLE = "\ufffd"
"""Stands in texts whose bytes do not fit their character set."""
_TELLING = [str(s) for s in (InstanceState.PENDING, InstanceState.HANDED_OVER, InstanceState.CONFLICT)]


class Correction(CorrectedIdentity):
    """What is said of a patient now, and how an instance takes it over."""

    @property
    def named(self) -> str:
        """What was corrected, without saying to what: it stands in messages that leave the machine."""
        return ", ".join(self.changed)

    def apply(self, dataset: Dataset) -> None:
        """Give an instance the corrected identity, in place.

        Raises:
            SeriesError: the corrected identity, or the rest of the received one, does not fit its character set:
                written anew in another one it would be another identity.
        """
        self._check_readable(dataset)
        dataset.decode()  # every text, before the character set that it was read in is replaced
        dataset.SpecificCharacterSet = "ISO_IR 192"
        for keyword, text in self.values.items():
            setattr(dataset, keyword, text)

    def _check_readable(self, dataset: Dataset) -> None:
        unclear = [k for k, text in self.values.items() if UNREADABLE in text]
        for keyword in PATIENT_AND_STUDY:
            if keyword not in self.values and not header.fits_its_label(dataset, keyword):
                if keyword in IDENTITY:
                    unclear.append(keyword)
                else:
                    del dataset[keyword]
        if unclear:
            raise SeriesError(
                "corrected patient: expected texts of the stated character set, got other bytes in "
                f"{', '.join(unclear)}"
            )


def find_correction(engine: sa.Engine, settings: Settings, folder: JobFolder) -> Correction | None:
    """The correction of a job's patient; None where what came last says what the images say.

    Where nothing can be read any more of what came later, the correction that `identity.json` holds stands.

    Args:
        engine: The daemon's database.
        settings: Say where this host keeps what it received, and the index of it.
        folder: The job's, with `arrival.json` and `selection.json`.
    """
    arrival = Arrival.read_if_there(folder.arrival)
    if arrival is None:
        return None
    reported = _reported(folder, arrival)
    newest = _newest_after(open_index(settings, engine), settings.data, arrival.study_uid, arrival.completed)
    if reported is None or newest is None:
        return Correction.read_if_there(folder.identity)
    values = {k: _text(newest, k) for k in KEYWORDS if _text(newest, k)}
    changed = tuple(k for k, text in values.items() if text != _text(reported, k))
    return Correction(values=values, changed=changed) if changed else None


def _reported(folder: JobFolder, arrival: Arrival) -> Dataset | None:
    """Header of an instance of the reported series."""
    chosen = Selection.read(folder.selection).chosen
    file = next((i.file for i in arrival.instances if i.series_uid == chosen), None)
    return None if file is None else _read(folder.input / file)


def _newest_after(index: sa.Engine, data: DataFolder, study_uid: str, completed: float) -> Dataset | None:
    """Header of the instance that came last, after its study was handed over, and says who the patient is."""
    query = sa.select(INSTANCES).where(
        INSTANCES.c.study_uid == study_uid, INSTANCES.c.state.in_(_TELLING), INSTANCES.c.received > completed
    )
    with index.connect() as connection:
        rows = connection.execute(query.order_by(INSTANCES.c.received.desc())).all()
    headers = (_header_of(data, row) for row in rows)
    return next((found for found in headers if found is not None and _text(found, "PatientID")), None)


def _header_of(data: DataFolder, row: sa.Row[Any]) -> Dataset | None:
    """What a received instance says; None where it cannot be read."""
    if row.state == InstanceState.CONFLICT and row.file:
        return _read(data.conflicts / row.file)
    return read_header(data.spool, data.jobs, row, KEYWORDS)


def _read(path: Path) -> Dataset | None:
    try:
        with header.quiet("pydicom"):
            return read_elements(path, KEYWORDS)
    except (OSError, FileError, *UNDECODABLE) as error:
        log.warning("%s: not read for the patient's identity: %s", path.name, type(error).__name__)
        return None


def _text(dataset: Dataset, keyword: str) -> str:
    text = header.text(dataset, keyword).rstrip("^ ")
    return text if header.fits_its_label(dataset, keyword) else text.replace(UNREADABLE, "") + UNREADABLE
