"""Whether a patient's identity was corrected after a study came: then no result may go out under the old one unnoticed.

A correction shows as an instance of the study that came after the study was handed over and says something else: of a
late series, or one that was sent again under the same SOP Instance UID. The latest that names a patient counts; where
it says again what the images say, the correction is taken back.
"""

from __future__ import annotations

import sqlalchemy as sa
from pydicom import Dataset

from daemon.assemble.identities import UNREADABLE, Identity, latest_identity, read_identity, shared_identity
from daemon.config.sections import Settings
from daemon.database.engine import open_index
from daemon.jobs.folder import JobFolder
from daemon.jobs.records import Arrival, CorrectedIdentity, Selection
from dicom_io import header
from dicom_io.content.sources import IDENTITY, PATIENT_AND_STUDY
from dicom_io.errors import SeriesError


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
    newest = _newest_after(engine, settings, arrival)
    if reported is None or newest is None:
        return Correction.read_if_there(folder.identity)
    changed = tuple(k for k, text in newest.values.items() if text != reported.get(k, ""))
    return Correction(values=newest.values, changed=changed) if changed else None


def _reported(folder: JobFolder, arrival: Arrival) -> dict[str, str] | None:
    """What an instance of the reported series says."""
    chosen = Selection.read(folder.selection).chosen
    file = next((i.file for i in arrival.instances if i.series_uid == chosen), None)
    return None if file is None else read_identity(folder.input / file)


def _newest_after(engine: sa.Engine, settings: Settings, arrival: Arrival) -> Identity | None:
    """What came last, here or on another host, after the study was handed over."""
    here = latest_identity(open_index(settings, engine), settings.data, arrival.study_uid, arrival.completed)
    elsewhere = shared_identity(engine, arrival.study_uid, arrival.completed)
    return max((i for i in (here, elsewhere) if i is not None), key=lambda i: i.received, default=None)
